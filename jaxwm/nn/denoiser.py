"""Residual MLP over a whole flattened trajectory, and how a network is told the level.

Source: the layer plan is that of Rigter et al., "World Models via Policy-Guided
Trajectory Diffusion", TMLR 2024 (their residual MLP denoiser); float32 parity with it
is tested.
Shapes: H steps, D channels of a row, A action size, E embedding.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.nn.mlp import activation_function


class RandomTime(nn.Module):
    """`[t, sin(2 pi t w), cos(2 pi t w)]` with `w ~ N(0, 1)` drawn once, never trained.

    The reference's features of the integer level t. Neighbouring levels get unrelated
    features, so a network told these works on the levels it was trained on only.
    """

    num: int = 8

    @nn.compact
    def __call__(self, time: Float[Array, ""]) -> Float[Array, " K"]:
        """Features of one scalar, `K = 2 num + 1`."""
        w = self.param("weights", nn.initializers.normal(1.0), (self.num,))
        phase = 2 * math.pi * time * jax.lax.stop_gradient(w)
        return jnp.concatenate([time[None], jnp.sin(phase), jnp.cos(phase)])


class FourierTime(nn.Module):
    """`[u, sin(2 pi f u), cos(2 pi f u)]` with f = 1/8, 1/4, ..., smooth in u.

    Made for `u = ln(sigma) / 4`, which is of order one for every usable noise level, so
    levels between the trained ones are interpolated.
    """

    num: int = 6

    @nn.compact
    def __call__(self, time: Float[Array, ""]) -> Float[Array, " K"]:
        """Features of one scalar, `K = 2 num + 1`."""
        phase = 2 * math.pi * time * 2.0 ** (jnp.arange(self.num) - 3.0)
        return jnp.concatenate([time[None], jnp.sin(phase), jnp.cos(phase)])


class TimeEmbedding(nn.Module):
    """Features of the noise level through `Linear, SiLU, Linear`."""

    size: int
    features: nn.Module

    @nn.compact
    def __call__(self, time: Float[Array, ""]) -> Float[Array, " E"]:
        """Embeds one scalar."""
        x = self.features(jnp.asarray(time, jnp.float32))
        x = nn.silu(nn.Dense(self.size, name="inner")(x))
        return nn.Dense(self.size, name="outer")(x)


class ResidualDenoiser(nn.Module):
    """Residual MLP that reads a whole noisy trajectory and its actions at once.

        h_0 = W_in (W_p [x, a] + time(t));  h <- h + W act(LN(h));  W_out act(LN(h))

    The embedding has `max(H (D + A), min_embed)` units.
    """

    width: int
    depth: int
    min_embed: int = 128
    time_features: nn.Module = FourierTime()
    activation: str | Callable = "relu"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "H D"],
        action: Float[Array, "H A"],
        time: Float[Array, ""],
    ) -> Float[Array, "H D"]:
        """Predicts for one trajectory what the preconditioning asks for."""
        activation = activation_function(self.activation)
        flat = jnp.concatenate([x, action], -1).reshape(-1)
        embed = max(flat.shape[0], self.min_embed)
        h = nn.Dense(embed, name="embed")(flat)
        h = h + TimeEmbedding(embed, self.time_features, name="time")(time)
        h = nn.Dense(self.width, name="enter")(h)
        for i in range(self.depth):
            inner = activation(nn.LayerNorm(epsilon=1e-5, name=f"norm_{i}")(h))
            h = h + nn.Dense(self.width, name=f"block_{i}")(inner)
        h = activation(nn.LayerNorm(epsilon=1e-5, name="norm_last")(h))
        return nn.Dense(x.size, name="leave")(h).reshape(x.shape)
