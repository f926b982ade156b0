"""U-shaped network on grids, without biases: scaling the input scales the output."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Filter(nn.Module):
    """Linear 3^n convolution without bias, zeros beyond the border, as a product.

    As a matrix product its gradient is much faster on processors inside `lax.scan`,
    where XLA does not call its fast convolutions. Weights start normal with variance
    `gain / fan in`.
    """

    size: int  # channels out
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "*N C"]) -> Float[Array, "*N F"]:
        """Filters one field of any dimension, channels last."""
        dims, channels = x.ndim - 1, x.shape[-1]
        fan_in = 3**dims * channels
        init = nn.initializers.normal(math.sqrt(self.gain / fan_in))
        kernel = self.param("kernel", init, (fan_in, self.size))
        padded = jnp.pad(x, [(1, 1)] * dims + [(0, 0)])
        patches = [
            padded[tuple(slice(i, i + n) for i, n in zip(start, x.shape, strict=False))]
            for start in itertools.product(range(3), repeat=dims)
        ]
        return jnp.concatenate(patches, -1) @ kernel


class ResidualUNet(nn.Module):
    """Residual pairs on grids halved `levels - 1` times, summed on the way up.

    Positively homogeneous: `f(s x) = s f(x)` for s > 0. Fully convolutional: weights
    of one grid serve any other whose sides `2^(levels - 1)` divides.
    """

    channels: int = 16
    levels: int = 4
    pairs: int = 1  # residual pairs per level, on the way down and on the way up

    @nn.compact
    def __call__(self, x: Float[Array, "*N"]) -> Float[Array, "*N"]:
        """Maps a scalar field to another.

        Raises:
            ValueError: for sides that cannot be halved so often.
        """
        factor = 2 ** (self.levels - 1)
        if any(side % factor for side in x.shape):
            raise ValueError(
                f"x must have sides divisible by {factor}, got {x.shape}; pad the "
                "grid or use fewer levels."
            )
        h = Filter(self.channels)(x[..., None])
        skips = []
        for level in range(self.levels):
            if level:
                skips.append(h)
                h = _pool(h)
            h = self._refine(h)
        for skip in reversed(skips):
            h = skip + _upsample(h)
            h = self._refine(h)
        return nn.Dense(1, use_bias=False)(h)[..., 0]

    def _refine(self, h):
        for _ in range(self.pairs):
            # A small second half: pairs start near the identity.
            inner = jax.nn.relu(Filter(self.channels, gain=2.0)(h))
            h = h + Filter(self.channels, gain=0.1)(inner)
        return h


def _pool(x):
    """Mean over blocks of two cells along every axis but the last."""
    for axis in range(x.ndim - 1):
        shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        x = x.reshape(shape).mean(axis + 1)
    return x


def _upsample(x):
    """Every cell twice along every axis but the last."""
    for axis in range(x.ndim - 1):
        x = jnp.repeat(x, 2, axis)
    return x
