"""Convolutional encoder of images."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.nn.mlp import activation_function


class ConvEncoder(nn.Module):
    """3 x 3 convolutions and a mean over the image: `[H, W, C]` to `[F]`.

    Weights start normal with variance `2 / fan_out` (He et al., 2015), biases at zero;
    no normalisation.
    """

    channels: tuple[int, ...]  # of the layers, the last one is F
    strides: tuple[int, ...]  # 2 halves the image
    activation: str | Callable = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "... H W C"]) -> Float[Array, "... F"]:
        """Features of one image; axes in front are carried along."""
        if len(self.channels) != len(self.strides):
            raise ValueError(
                f"strides must be one per layer, got {self.strides} for channels "
                f"{self.channels}; use 1 where the size stays."
            )
        activation = activation_function(self.activation)
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        for size, stride in zip(self.channels, self.strides, strict=True):
            x = nn.Conv(size, (3, 3), (stride, stride), kernel_init=init)(x)
            x = activation(x)
        return jnp.mean(x, (-3, -2))
