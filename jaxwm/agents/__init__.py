"""Learners made of blocks.

`dream.dream(world_model, config)` is an agent that learns in imagination,
`online.online(agent, batch_env, replay, config)` the loop around it; `presets` are
settings of both that belong together.
"""

from jaxwm.agents import dream, online, presets

__all__ = ["dream", "online", "presets"]
