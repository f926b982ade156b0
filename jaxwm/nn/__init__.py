"""Networks: flax.linen modules for ONE example; `jax.vmap` adds the batch.

`MLP`; `ResidualDenoiser` and `TransformerDenoiser` (whole trajectories of rows and
actions at a noise level); `Transformer` (causal body with optional key-value cache);
`Actor`, `SquashedActor` and `Critic` heads. Time features: `FourierTime` for log-sigma,
`RandomTime` for the raw index of a level. `GrokMLP` and `GrokTransformer` read symbols.
`PiecewiseLinearCell` is a recurrent map,
`MessagePassing` reads small graphs, `ResidualUNet` fields on grids.
"""

from jaxwm.nn.conv import ConvEncoder
from jaxwm.nn.denoiser import FourierTime, RandomTime, ResidualDenoiser, TimeEmbedding
from jaxwm.nn.graph import MessagePassing
from jaxwm.nn.grok import GrokMLP, GrokTransformer
from jaxwm.nn.heads import (
    Actor,
    Critic,
    GaussianHead,
    SquashedActor,
    colour,
    whiten,
)
from jaxwm.nn.mlp import MLP
from jaxwm.nn.recurrent import PiecewiseLinearCell
from jaxwm.nn.transformer import Cache, Transformer, TransformerDenoiser, empty_cache
from jaxwm.nn.unet import ResidualUNet

__all__ = [
    "MLP",
    "Actor",
    "Cache",
    "ConvEncoder",
    "Critic",
    "FourierTime",
    "GaussianHead",
    "GrokMLP",
    "GrokTransformer",
    "MessagePassing",
    "PiecewiseLinearCell",
    "RandomTime",
    "ResidualDenoiser",
    "ResidualUNet",
    "SquashedActor",
    "TimeEmbedding",
    "Transformer",
    "TransformerDenoiser",
    "colour",
    "empty_cache",
    "whiten",
]
