"""Networks: flax.linen modules for ONE example; `jax.vmap` adds the batch.

`MLP`; `ResidualDenoiser` and `TransformerDenoiser` (whole trajectories of rows and
actions at a noise level); `Transformer` (causal body with optional key-value cache);
`Actor`, `SquashedActor` and `Critic` heads. Time features: `FourierTime` for log-sigma,
`RandomTime` for the raw index of a level. `GrokMLP` and `GrokTransformer` read symbols.
`PiecewiseLinearCell` is a recurrent map,
`MessagePassing` reads small graphs, `SparseTransformer` passes sampled edges only,
`ResidualUNet` reads fields on grids; `Latent` and what begins with it are the parts of
latent world models, `ConvDecoder` paints their images.
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
from jaxwm.nn.latent import (
    ConvDecoder,
    Latent,
    LatentPosterior,
    LatentTransition,
    balanced_kl,
    code_kl,
    draw_code,
    mixed_log_probs,
)
from jaxwm.nn.mlp import MLP
from jaxwm.nn.recurrent import PiecewiseLinearCell
from jaxwm.nn.sparse_attention import (
    SparseTransformer,
    path_matrix,
    path_penalty,
    sample_edges,
)
from jaxwm.nn.transformer import Cache, Transformer, TransformerDenoiser, empty_cache
from jaxwm.nn.unet import ResidualUNet

__all__ = [
    "MLP",
    "Actor",
    "Cache",
    "ConvDecoder",
    "ConvEncoder",
    "Critic",
    "FourierTime",
    "GaussianHead",
    "GrokMLP",
    "GrokTransformer",
    "Latent",
    "LatentPosterior",
    "LatentTransition",
    "MessagePassing",
    "PiecewiseLinearCell",
    "RandomTime",
    "ResidualDenoiser",
    "ResidualUNet",
    "SparseTransformer",
    "SquashedActor",
    "TimeEmbedding",
    "Transformer",
    "TransformerDenoiser",
    "balanced_kl",
    "code_kl",
    "colour",
    "draw_code",
    "empty_cache",
    "mixed_log_probs",
    "path_matrix",
    "path_penalty",
    "sample_edges",
    "whiten",
]
