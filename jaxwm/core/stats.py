"""Running moments, normalising, and statistics over seeds.

Shapes: D dimensions of a row. A normaliser is a `Moments` record; it is data, so it
lives in a model's buffers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Count, mean and summed squared deviations; stable to merge (Chan et al., 1979).

    `count` 0 means nothing was seen: normalising is then the identity.
    """

    count: Float[Array, ""]
    mean: Float[Array, " D"]
    m2: Float[Array, " D"]
    floor: Float[Array, " D"]  # smallest standard deviation divided by


def moments(size: int, floor: float = 1e-6) -> Moments:
    """Moments of nothing yet.

    Args:
        size: D.
        floor: smallest standard deviation that rows are divided by.
    """
    zeros = jnp.zeros(size)
    return Moments(jnp.zeros(()), zeros, zeros, jnp.full(size, floor))


def update_moments(
    state: Moments,
    rows: Float[Array, "B D"],
    weight: Float[Array, " B"] | None = None,
) -> Moments:
    """Merges a batch of rows; `weight` 0 leaves a row out."""
    if weight is None:
        weight = jnp.ones(rows.shape[0], rows.dtype)
    total = jnp.sum(weight)
    safe_total = jnp.maximum(total, 1e-12)
    mean = jnp.sum(weight[:, None] * rows, 0) / safe_total
    m2 = jnp.sum(weight[:, None] * (rows - mean) ** 2, 0)
    count = state.count + total
    safe_count = jnp.maximum(count, 1e-12)
    delta = jnp.where(total > 0, mean - state.mean, 0.0)
    return Moments(
        count,
        state.mean + delta * total / safe_count,
        state.m2 + m2 + delta**2 * state.count * total / safe_count,
        state.floor,
    )


def scale(state: Moments) -> Float[Array, " D"]:
    """Divisor of rows: the standard deviation, at least `floor`; 1 if unseen."""
    deviation = jnp.sqrt(state.m2 / jnp.maximum(state.count, 1.0))
    deviation = jnp.maximum(deviation, state.floor)
    return jnp.where(state.count > 0, deviation, 1.0)


def normalise(state: Moments, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """`(x - mean) / scale`."""
    return (x - state.mean) / scale(state)


def denormalise(state: Moments, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Inverse of `normalise`."""
    return x * scale(state) + state.mean


def interquartile_mean(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of the middle half along `axis`, fractional at the quartiles.

    Equals the mean for fewer than three values' worth of tails; between the mean and
    the median in its sensitivity to outliers. Host arithmetic (numpy, float64).

    Source: Agarwal et al., "Deep RL at the Edge of the Statistical Precipice", 2021.
    """
    x = np.sort(np.asarray(x, np.float64), axis)
    num = x.shape[axis]
    # Sorted value i covers [i, i + 1) of the sample; keep what lies in the middle half.
    edges = np.clip(np.arange(num + 1), num / 4, 3 * num / 4)
    weight = np.diff(edges) / (num / 2)
    return np.tensordot(weight, np.moveaxis(x, axis, 0), 1)


def bootstrap_interval(
    x: np.ndarray,
    statistic=interquartile_mean,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic over axis 0 (seeds or repeats).

    Args:
        x: values, `[S, ...]`.
        statistic: `(array, axis) -> array`.
        level: coverage, in (0, 1).
        resamples: bootstrap draws.
        seed: of the resampling; the interval is reproducible.

    Returns:
        Lower and upper ends, each shaped like the statistic.
    """
    x = np.asarray(x, np.float64)
    rng = np.random.default_rng(seed)
    index = rng.integers(0, x.shape[0], (resamples, x.shape[0]))
    values = statistic(x[index], 1)
    tail = (1 - level) / 2
    low, high = np.quantile(values, (tail, 1 - tail), axis=0)
    return np.asarray(low), np.asarray(high)


def mean_metrics(metrics: dict[str, Array]) -> dict[str, Array]:
    """Means over every leading axis, e.g. after a scan over updates."""
    return jax.tree.map(jnp.mean, metrics)
