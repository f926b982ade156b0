"""World models made of blocks, one module each; the builder is named like its module.

`from_step` (any function that predicts one step), `whole_trajectory` (any function that
imagines a whole trajectory), `from_env` (the environment itself), `ensemble`,
`transformer`, `autoregressive_diffusion`, `rssm` (latent), `modular` (dynamics and
reward apart); `abilities` asks a model what it can do and makes models of other models.
"""

from jaxwm.dynamics import (
    autoregressive_diffusion,
    ensemble,
    modular,
    rssm,
    transformer,
)
from jaxwm.dynamics.abilities import frozen, require, with_reward
from jaxwm.dynamics.from_env import from_env
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.dynamics.whole_trajectory import whole_trajectory

__all__ = [
    "Step",
    "autoregressive_diffusion",
    "ensemble",
    "from_env",
    "from_step",
    "frozen",
    "modular",
    "require",
    "rssm",
    "transformer",
    "whole_trajectory",
    "with_reward",
]
