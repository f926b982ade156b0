"""Noise levels: how much signal and how much noise a noisy sample holds.

    x = signal * x0 + noise * eps,   sigma = noise / signal

Variance-preserving schedules have signal^2 + noise^2 = 1, sigma schedules signal = 1.
Schedules are float64 on the host: in float32 the cosine schedule is off by 3e-4.
Shapes: T levels, cleanest first.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxwm.core import dists
from jaxwm.types import PyTree


class Level(NamedTuple):
    """One noise level, or a schedule of T of them (fields `[T]`, cleanest first)."""

    time: Array | np.ndarray | float  # what a network may be told (see each schedule)
    signal: Array | np.ndarray | float
    noise: Array | np.ndarray | float


CLEAN = Level(-1.0, 1.0, 0.0)  # where every sampler ends


def cosine_schedule(num: int, tau: float = 1.0) -> Level:
    """Variance-preserving cosine schedule raised to a power; `time` is the index.

        f_i = cos(i pi / 2T)^(2 tau),  g_i = (f_T - f_i) / (f_T - f_0),
        beta_i = clip(1 - g_i / g_{i-1}, 0, 0.999),  signal_i^2 = prod (1 - beta)

    The term f_T is kept: in floating point cos(pi/2) = 6e-17, whose power with
    tau = 0.1 is 6e-4.

    Args:
        num: T, number of levels.
        tau: 1 is the usual cosine; small values keep the sample nearly clean until the
            last levels.

    Raises:
        ValueError: if `num` < 1 or `tau` <= 0.

    Source: Rigter et al., TMLR 2024, reference code; Nichol and Dhariwal, 2021.
    """
    _at_least_one("num", num)
    if not 0 < tau < math.inf:
        raise ValueError(
            f"tau must be positive and finite, got {tau}; 1 is the usual cosine."
        )
    f = np.cos(np.arange(num + 1) / num * np.pi / 2) ** (2 * tau)
    g = (f[-1] - f) / (f[-1] - f[0])
    beta = np.clip(1 - g[1:] / g[:-1], 0, 0.999)
    signal_squared = np.cumprod(1 - beta)
    return Level(
        np.arange(num, dtype=np.float64),
        np.sqrt(signal_squared),
        np.sqrt(1 - signal_squared),
    )


def karras(num: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Level:
    """Sigma levels equally spaced in sigma^(1/rho); `time` is ln(sigma) / 4.

    Raises:
        ValueError: unless `num` >= 1, `0 < low < high` and `rho` > 0.

    Source: Karras et al., "Elucidating the Design Space ...", 2022, equation 5.
    """
    _at_least_one("num", num)
    _ordered(low, high)
    if not 0 < rho < math.inf:
        raise ValueError(
            f"rho must be positive and finite, got {rho}; the paper uses 7."
        )
    ends = low ** (1 / rho), high ** (1 / rho)
    return sigma_level(_from_high(num, *ends) ** rho)


def exponential(num: int, low: float = 0.002, high: float = 80.0) -> Level:
    """Sigma levels equally spaced in ln(sigma); `time` is ln(sigma) / 4.

    Raises:
        ValueError: unless `num` >= 1 and `0 < low < high`.
    """
    _at_least_one("num", num)
    _ordered(low, high)
    return sigma_level(np.exp(_from_high(num, np.log(low), np.log(high))))


def sigma_level(sigma) -> Level:
    """The level(s) with signal 1 and noise `sigma`; `time` is ln(sigma) / 4."""
    xp = np if isinstance(sigma, float | np.ndarray) else jnp
    return Level(xp.log(sigma) / 4, xp.ones_like(sigma), sigma)


def log_sigma(level: Level) -> Float[Array, ""]:
    """`ln(noise / signal) / 4`: of order one for every usable level."""
    return jnp.log(level.noise / level.signal) / 4


def stride(schedule: Level, num: int) -> Level:
    """`num` levels of a schedule, equally spaced in its index, both ends included.

    One level alone is the noisiest.

    Raises:
        ValueError: if `num` is not in 1 ... T.
    """
    size = len(schedule.signal)
    if not 1 <= num <= size:
        raise ValueError(
            f"calls must be in 1 ... {size}, the number of levels, got {num}."
        )
    index = np.round(np.linspace(size - 1, 0, num)).astype(int)[::-1]
    return _take(schedule, index)


def snap(schedule: Level, wanted: Level) -> Level:
    """The levels of `schedule` nearest in ln(sigma) to those wanted, without repeats.

    For networks that only know the levels they were trained on. Fewer levels than
    wanted come back where the schedule is coarser.
    """
    have = np.log(schedule.noise / schedule.signal)
    want = np.log(wanted.noise / wanted.signal)
    index = np.unique(np.argmin(np.abs(have[:, None] - want), 0))
    return _take(schedule, index)


def add_noise(level: Level, x0: PyTree, noise: PyTree) -> PyTree:
    """`signal * x0 + noise * eps`, leaf by leaf."""
    return jax.tree.map(lambda x, eps: level.signal * x + level.noise * eps, x0, noise)


def standard_normal(key: Key[Array, ""], like: PyTree) -> PyTree:
    """Standard normal draws shaped like a pytree; several leaves split the key."""
    leaves, structure = jax.tree.flatten(like)
    keys = [key] if len(leaves) == 1 else list(jax.random.split(key, len(leaves)))
    draws = [
        dists.standard_normal(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def _take(schedule: Level, index) -> Level:
    return Level(*(np.asarray(field)[index] for field in schedule))


def _from_high(num: int, low: float, high: float) -> np.ndarray:
    """Cleanest first; a single level is the high one."""
    return np.linspace(high, low, num)[::-1]


def _at_least_one(name: str, value: int):
    if value < 1:
        raise ValueError(f"{name} must be at least 1 level, got {value}.")


def _ordered(low: float, high: float):
    if not 0 < low < high < math.inf:
        raise ValueError(f"levels need 0 < low < high, got low {low}, high {high}.")
