"""Tokenisers: numbers to bins and back.

    encode(x) = floor(bins (F(x) + 1) / 2),  decode(i) = F^-1((2 i + 1) / bins - 1)

with F increasing onto [-1, 1]. What lies outside goes to the outermost bin. The round
trip moves F(x) by at most 1 / bins, half a bin.

Source: the scalar tokeniser with its mu-law is that of Reed et al., "A Generalist
Agent", TMLR 2022. Shapes: `...` any axes, A dimensions with bounds of their own.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def mu_law(
    x: Float[Array, "..."], mu: float = 100.0, limit: float = 256.0
) -> Float[Array, "..."]:
    """`sign(x) log(1 + mu |x|) / log(1 + mu limit)`: fine near 0, coarse far away."""
    return jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / math.log1p(mu * limit)


def inverse_mu_law(
    y: Float[Array, "..."], mu: float = 100.0, limit: float = 256.0
) -> Float[Array, "..."]:
    """Inverse of `mu_law`."""
    return jnp.sign(y) * jnp.expm1(jnp.abs(y) * math.log1p(mu * limit)) / mu


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarTokenizer:
    """One table of bins for numbers of any size up to `limit`, by the mu-law."""

    bins: int = 1024
    mu: float = 100.0
    limit: float = 256.0  # numbers beyond are clipped

    def __post_init__(self):
        _at_least_two(self.bins)
        for name in ("mu", "limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    def encode(self, x: Float[Array, "..."]) -> Int[Array, "..."]:
        """Bins 0 ... bins - 1."""
        return _bin(mu_law(x, self.mu, self.limit), self.bins)

    def decode(self, ids: Int[Array, "..."]) -> Float[Array, "..."]:
        """Centres of the bins (in the units of F)."""
        return inverse_mu_law(_centre(ids, self.bins), self.mu, self.limit)

    def clipped(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """1 where a number is beyond the limit and will not come back, else 0."""
        return (jnp.abs(x) > self.limit).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxTokenizer:
    """A table of equal bins per dimension, between bounds of its own."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int = 256

    def __post_init__(self):
        _at_least_two(self.bins)
        if len(self.low) != len(self.high):
            raise ValueError(
                f"low and high must have as many entries, got {len(self.low)} and "
                f"{len(self.high)}."
            )
        for low, high in zip(self.low, self.high, strict=True):
            if not -math.inf < low < high < math.inf:
                raise ValueError(
                    f"low must be below high and both finite, got {low} and {high}; "
                    "numbers without bounds go to a ScalarTokenizer."
                )

    def encode(self, x: Float[Array, "... A"]) -> Int[Array, "... A"]:
        """Bins 0 ... bins - 1."""
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        return _bin(2 * (x - low) / (high - low) - 1, self.bins)

    def decode(self, ids: Int[Array, "... A"]) -> Float[Array, "... A"]:
        """Centres of the bins."""
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        return low + (high - low) * (_centre(ids, self.bins) + 1) / 2


def _bin(y: Array, bins: int) -> Array:
    """The bin of y in [-1, 1]; what is outside, NaN too, is put inside."""
    at = jnp.floor(bins * (y + 1) / 2)
    return jnp.clip(jnp.nan_to_num(at), 0, bins - 1).astype(jnp.int32)


def _centre(ids: Array, bins: int) -> Array:
    return (2 * ids + 1) / bins - 1


def _at_least_two(bins: int) -> None:
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}.")
