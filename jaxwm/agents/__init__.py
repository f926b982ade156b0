"""Learners made of blocks.

`dream.dream(world_model, config)` is an agent that learns in imagination,
`online.online(agent, batch_env, replay, config)` the loop around it; `presets` are
settings of both that belong together.
`behaviour.behaviour(world_model, config)` is an actor-critic by derivatives through
imagination. `mpc.mpc(world_model, config)` plans at every
step. `ppo.ppo(batch_env, config)` learns without a model, `shac.shac(batch_env,
config)` through one that can be differentiated, `shac.apg` and `shac.bptt` likewise
without a critic.
"""

from jaxwm.agents import behaviour, dream, mpc, online, ppo, presets, shac

__all__ = ["behaviour", "dream", "mpc", "online", "ppo", "presets", "shac"]
