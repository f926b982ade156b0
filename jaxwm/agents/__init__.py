"""Learners made of blocks.

`dream.dream(world_model, config)` is an agent that learns in imagination,
`online.online(agent, batch_env, replay, config)` the loop around it; `presets` are
settings of both that belong together. `ppo.ppo(batch_env, config)` learns without a
model, `shac.shac(batch_env, config)` through one that can be differentiated.
"""

from jaxwm.agents import dream, online, ppo, presets, shac

__all__ = ["dream", "online", "ppo", "presets", "shac"]
