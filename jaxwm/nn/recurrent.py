"""Recurrent cells whose Jacobian is known."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class PiecewiseLinearCell(nn.Module):
    """Shallow piecewise-linear recurrent network: one step of an autonomous map.

        F(z) = A z + W1 [relu(W2 z + h2) - relu(W2 z)] + h1,   A diagonal

    The bracket is bounded by |h2|, so orbits stay bounded wherever |A| < 1; without
    `clipped` the second term of it is left out, and they may not. On each of its linear
    pieces the Jacobian is `A + W1 D W2`, D the difference of the two patterns of
    active units.

    Shapes: M latent dimensions, H hidden units. A starts as the diagonal of a random
    positive definite matrix of spectral radius 1, W1, W2 and h2 uniform within
    1 / sqrt(fan in), h1 at zero.

    Source: Hess et al., "Generalized Teacher Forcing for Learning Chaotic Dynamics",
    ICML 2023, equations 3 and 4.
    """

    hidden: int  # H
    clipped: bool = True

    @nn.compact
    def __call__(self, z: Float[Array, " M"]) -> Float[Array, " M"]:
        """One step."""
        size = z.shape[0]
        a = self.param("A", _contracting, (size,))
        w1 = self.param("W1", _uniform(self.hidden), (size, self.hidden))
        w2 = self.param("W2", _uniform(size), (self.hidden, size))
        h1 = self.param("h1", nn.initializers.zeros, (size,))
        h2 = self.param("h2", _uniform(size), (self.hidden,))
        drive = w2 @ z
        active = jax.nn.relu(drive + h2)
        if self.clipped:
            active = active - jax.nn.relu(drive)
        return a * z + w1 @ active + h1


def _contracting(key, shape):
    """Diagonal of `(RᵀR / M + 1)` over its largest eigenvalue; entries in (0, 1]."""
    r = jax.random.normal(key, shape * 2)
    matrix = r.T @ r / shape[0] + jnp.eye(shape[0])
    return jnp.diag(matrix) / jnp.linalg.norm(matrix, 2)


def _uniform(fan_in: int):
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape: jax.random.uniform(
        key, shape, minval=-bound, maxval=bound
    )
