"""Toy data sets in the plane: moons to tell apart, spirals with gaps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxwm.core import loop


def two_moons(
    key: Key[Array, ""], num: int, *, noise: float = 0.1
) -> tuple[Float[Array, "B 2"], Bool[Array, " B"]]:
    """Points of two interleaved half circles of radius 1, and whether of the lower.

    Args:
        key: of the points.
        num: B.
        noise: standard deviation per axis.
    """
    keys = loop.fold_in_each(key, 3)
    lower = jax.random.bernoulli(keys[0], 0.5, (num,))
    angle = jax.random.uniform(keys[1], (num,), maxval=jnp.pi)
    x = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    x = jnp.where(lower[:, None], jnp.array([1.0, 0.5]) - x, x)
    return x + noise * jax.random.normal(keys[2], x.shape), lower


def spirals(
    key: Key[Array, ""], num: int, *, length: int = 24, noise: float = 0.1
) -> tuple[Float[Array, "B T"], Float[Array, "B T 2"], Bool[Array, " B"]]:
    """Series that wind 1 to 3 times around 0, from radius 1 to 1/2, with gaps.

    Between 30 and 70 % of a series' points are dropped, never the first.

    Args:
        key: of the series.
        num: B.
        length: T, at least 2.
        noise: standard deviation per axis.

    Returns:
        Irregular times from 0 to 1, points (NaN where dropped), whether clockwise.

    Raises:
        ValueError: for fewer than 2 points.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2 points, got {length}.")
    keys = loop.fold_in_each(key, 7)
    clockwise = jax.random.bernoulli(keys[0], 0.5, (num, 1))
    ts = jnp.cumsum(
        jax.random.uniform(keys[1], (num, length), minval=0.2, maxval=1.8), 1
    )
    ts = (ts - ts[:, :1]) / (ts[:, -1:] - ts[:, :1])
    turns = jax.random.uniform(keys[2], (num, 1), minval=1.0, maxval=3.0)
    phase = jax.random.uniform(keys[3], (num, 1))
    angle = 2 * jnp.pi * (phase + jnp.where(clockwise, -1, 1) * turns * ts)
    xs = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) * (1 - 0.5 * ts)[..., None]
    xs = xs + noise * jax.random.normal(keys[4], xs.shape)
    share = jax.random.uniform(keys[5], (num, 1), minval=0.3, maxval=0.7)
    dropped = jax.random.uniform(keys[6], ts.shape) < share
    dropped = dropped.at[:, 0].set(False)
    return ts, jnp.where(dropped[..., None], jnp.nan, xs), clockwise[:, 0]
