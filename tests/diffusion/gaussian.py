"""Gaussian data, for which everything about diffusion is known in closed form.

x0 ~ N(MEAN, STD^2) in one dimension; at a level, x ~ N(signal MEAN, total^2).
"""

import jax.numpy as jnp
import numpy as np

MEAN, STD = 0.7, 0.5


def denoise(x, level, cond=None):
    """The posterior mean E[x0 | x]: the exact denoiser."""
    gain = level.signal * STD**2 / ((level.signal * STD) ** 2 + level.noise**2)
    return MEAN + gain * (x - level.signal * MEAN)


def flow_to_clean(x, level):
    """Where the probability flow carries `x` from a level to no noise."""
    spread = np.hypot(level.signal * STD, level.noise)
    return MEAN + (x - level.signal * MEAN) / spread * STD


def error_variance(level):
    """E (denoise(x) - x0)^2."""
    return STD**2 * level.noise**2 / ((level.signal * STD) ** 2 + level.noise**2)


def log_prob(x, level):
    """Log density of a noisy sample, up to a constant."""
    total = (level.signal * STD) ** 2 + level.noise**2
    return -0.5 * jnp.sum((x - level.signal * MEAN) ** 2) / total
