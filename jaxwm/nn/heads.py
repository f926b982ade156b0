"""Actor, critic and Gaussian heads on a feature vector.

Source: the state-independent spread `exp(b) + min_std` and the tanh mean are those of
Rigter et al., TMLR 2024.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxwm.core import dists
from jaxwm.nn.mlp import MLP


class Actor(nn.Module):
    """Gaussian policy, not squashed: `N(tanh(MLP(feature)), (exp(b) + min_std)^2)`.

    Actions are in units where the environment's bounds are -1 and 1; the environment
    clips what exceeds them. `b` does not depend on the feature; at the start the
    standard deviation is `init_std`.

    Raises:
        ValueError: unless `0 <= min_std < init_std`.
    """

    action_size: int
    hidden: tuple[int, ...] = (64, 64)
    activation: str | Callable = "tanh"
    layer_norm: bool = False
    min_std: float = 0.1
    init_std: float = 0.6

    @nn.compact
    def __call__(self, feature: Float[Array, "... F"]) -> dists.Normal:
        """The distribution of actions at each feature."""
        if not 0 <= self.min_std < self.init_std:
            raise ValueError(
                f"init_std must exceed min_std >= 0, got init_std {self.init_std} and "
                f"min_std {self.min_std}."
            )
        out = MLP(
            (*self.hidden, self.action_size),
            self.activation,
            self.layer_norm,
            # A small first output starts every policy near the middle of its range.
            nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal"),
        )(feature)
        start = math.log(self.init_std - self.min_std)
        log_std = self.param(
            "log_std", nn.initializers.constant(start), (self.action_size,)
        )
        stddev = jnp.broadcast_to(jnp.exp(log_std) + self.min_std, out.shape)
        return dists.Normal(jnp.tanh(out), stddev)


class SquashedActor(nn.Module):
    """Gaussian policy squashed into (-1, 1): `tanh(MLP(feature) + exp(b) eps)`.

    Its actions never leave their bounds, so a derivative reaches the network from
    every one of them, however small.
    """

    action_size: int
    hidden: tuple[int, ...] = (64, 64)
    activation: str | Callable = "elu"
    layer_norm: bool = False
    init_std: float = 0.4

    @nn.compact
    def __call__(self, feature: Float[Array, "... F"]) -> dists.TanhNormal:
        """The distribution of actions at each feature."""
        if not self.init_std > 0:
            raise ValueError(f"init_std must be positive, got {self.init_std}.")
        out = MLP(
            (*self.hidden, self.action_size),
            self.activation,
            self.layer_norm,
            nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal"),
        )(feature)
        start = nn.initializers.constant(math.log(self.init_std))
        log_std = self.param("log_std", start, (self.action_size,))
        return dists.TanhNormal(out, jnp.broadcast_to(jnp.exp(log_std), out.shape))


class GaussianHead(nn.Module):
    """Gaussian with a full covariance, as a chain of conditional Gaussians.

        r_i = sum_{j < i} C_ij r_j + s_i xi_i,   xi ~ N(0, I),   r = y - mean

    C is strictly lower triangular and s >= `floor`, so noise that drives several
    dimensions at once costs no ill-conditioned factor. `whiten` and `colour` turn
    residuals into xi and back.
    """

    size: int
    hidden: tuple[int, ...] = (128, 128)
    floor: float = 0.01

    @nn.compact
    def __call__(
        self, x: Float[Array, " I"]
    ) -> tuple[Float[Array, " D"], Float[Array, "D D"], Float[Array, " D"]]:
        """Mean, C and s. C and s read the mean's features but do not move them."""
        features = nn.silu(MLP(self.hidden, "silu", name="features")(x))
        mean = nn.Dense(self.size, name="mean")(features)
        num_below = self.size * (self.size - 1) // 2
        frozen = jax.lax.stop_gradient(features)
        out = MLP((self.hidden[-1], num_below + self.size), "silu", name="spread")(
            frozen
        )
        # Row i of C is the part of `out` that belongs to its i entries below.
        place = np.zeros((self.size, self.size, num_below), np.float32)
        rows, columns = np.tril_indices(self.size, -1)
        place[rows, columns, np.arange(num_below)] = 1.0
        lower = place @ out[:num_below]
        # softplus(-2) = 0.13: a usual spread of one-step residuals in unit data
        return mean, lower, nn.softplus(out[num_below:] - 2.0) + self.floor


def whiten(
    residual: Float[Array, " D"], lower: Float[Array, "D D"], scale: Float[Array, " D"]
) -> Float[Array, " D"]:
    """Innovations xi of a residual: `(r - C r) / s`."""
    return (residual - lower @ residual) / scale


def colour(
    innovation: Float[Array, " D"],
    lower: Float[Array, "D D"],
    scale: Float[Array, " D"],
) -> Float[Array, " D"]:
    """Residual with these innovations: solves `(I - C) r = s xi`."""
    return jax.scipy.linalg.solve_triangular(
        jnp.eye(lower.shape[0]) - lower, scale * innovation, lower=True
    )


class Critic(nn.Module):
    """Scalar value of a feature."""

    hidden: tuple[int, ...] = (64, 64)
    activation: str | Callable = "tanh"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, feature: Float[Array, "... F"]) -> Float[Array, "..."]:
        """Values, one per feature."""
        mlp = MLP((*self.hidden, 1), self.activation, self.layer_norm)
        return mlp(feature)[..., 0]
