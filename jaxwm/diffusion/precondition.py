"""Denoisers: a network wrapped so that it returns an estimate of the clean sample.

    x0_hat = skip * x + output * network(input * x, level, cond)

Shapes: those of one sample `x`, any pytree; scalings are scalars.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.diffusion.levels import Level
from jaxwm.types import PyTree

# (x, level, cond) -> estimate of the clean sample, shaped like x
Denoiser = Callable[[PyTree, Level, PyTree], PyTree]


class Scalings(NamedTuple):
    """What a level multiplies: the noisy sample, the network's output, its input."""

    skip: Float[Array, ""] | float
    output: Float[Array, ""] | float
    input: Float[Array, ""] | float


def predict_x0(level: Level) -> Scalings:
    """The network's output is the clean sample."""
    del level  # the same at every level
    return Scalings(0.0, 1.0, 1.0)


def predict_noise(level: Level) -> Scalings:
    """The network's output is the noise: `x0 = (x - noise * eps) / signal`."""
    return Scalings(1 / level.signal, -level.noise / level.signal, 1.0)


def predict_velocity(level: Level) -> Scalings:
    """The output is `v = signal * eps - noise * x0`, so `x0 = signal * x - noise * v`.

    For variance-preserving schedules. Source: Salimans and Ho, 2022, section 4.
    """
    return Scalings(level.signal, -level.noise, 1.0)


def edm(sigma_data: float = 1.0, offset: float = 0.0) -> Callable[[Level], Scalings]:
    """Unit-variance input and target at every level.

    Args:
        sigma_data: standard deviation of the clean data.
        offset: standard deviation of noise common to a whole sample, added in training
            (offset noise); sigma^2 becomes sigma^2 + offset^2.

    Source: Karras et al., 2022, table 1; the offset as in Alonso et al., "Diffusion for
    World Modeling", 2024.
    """
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}.")
    if not 0 <= offset < math.inf:
        raise ValueError(f"offset must be finite and at least 0, got {offset}.")

    def scalings(level: Level) -> Scalings:
        variance = (level.noise / level.signal) ** 2 + offset**2
        total = variance + sigma_data**2
        return Scalings(
            sigma_data**2 / total / level.signal,
            jnp.sqrt(variance / total) * sigma_data,
            1 / (jnp.sqrt(total) * level.signal),
        )

    return scalings


def denoiser(
    network: Callable[[PyTree, Level, PyTree], PyTree],
    scalings: Callable[[Level], Scalings] = predict_x0,
    *,
    known: Callable[[PyTree], PyTree] = lambda x: x,
) -> Denoiser:
    """Makes `(x, level, cond) -> x0_hat` of a network.

    Args:
        network: `(z, level, cond) -> output` for one sample; `level` tells it how noisy
            `z` is (`level.time`, or `log_sigma(level)`).
        scalings: a preconditioning.
        known: overwrites what is known of a clean sample. Applied to the network's
            input behind the input scaling, so known values are never rescaled, and to
            the estimate.
    """

    def denoise(x, level, cond=None):
        skip, output, scale = scalings(level)
        z = known(x if _is(scale, 1.0) else jax.tree.map(lambda x: scale * x, x))
        out = network(z, level, cond)
        if _is(skip, 0.0) and _is(output, 1.0):
            return known(out)
        return known(jax.tree.map(lambda x, y: skip * x + output * y, x, out))

    return denoise


def _is(scale, value: float) -> bool:
    """Whether a scale is that Python number (traced scales never are)."""
    return isinstance(scale, float) and scale == value
