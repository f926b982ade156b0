"""Distributions over actions: records of parameters with the few methods learners use.

Shapes: A action dimensions. Each record describes one distribution, or a batch `*B` of
them. `sample` is reparameterised, so the same key and other parameters give the
same underlying noise. Entropies and log-probabilities are in nats, summed over A.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

_LOG_2PI = math.log(2 * math.pi)


class Normal(NamedTuple):
    """Diagonal Gaussian, not squashed; environments clip its samples."""

    mean: Float[Array, "*B A"]
    stddev: Float[Array, "*B A"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*B A"]:
        """`mean + stddev * eps`, eps standard normal."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + self.stddev * noise

    def log_prob(self, action: Float[Array, "*B A"]) -> Float[Array, "*B"]:
        """Log density of one action."""
        z = (action - self.mean) / self.stddev
        return jnp.sum(-0.5 * (z**2 + _LOG_2PI) - jnp.log(self.stddev), -1)

    def entropy(self) -> Float[Array, "*B"]:
        """Differential entropy."""
        return jnp.sum(0.5 * (1 + _LOG_2PI) + jnp.log(self.stddev), -1)


class TanhNormal(NamedTuple):
    """Gaussian squashed by tanh into (-1, 1); `mean` is tanh of the Gaussian's mean."""

    loc: Float[Array, "*B A"]
    scale: Float[Array, "*B A"]

    @property
    def mean(self) -> Float[Array, "*B A"]:
        """Squashed location (the median; the field calls it the mean action)."""
        return jnp.tanh(self.loc)

    @property
    def stddev(self) -> Float[Array, "*B A"]:
        """First-order spread: scale times the slope of tanh at the location."""
        return self.scale * (1 - jnp.tanh(self.loc) ** 2)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*B A"]:
        """`tanh(loc + scale * eps)`."""
        noise = jax.random.normal(key, self.loc.shape, self.loc.dtype)
        return jnp.tanh(self.loc + self.scale * noise)

    def log_prob(self, action: Float[Array, "*B A"]) -> Float[Array, "*B"]:
        """Log density; actions are kept 1e-6 off the bounds, where it diverges."""
        squashed = jnp.clip(action, -1 + 1e-6, 1 - 1e-6)
        gaussian = Normal(self.loc, self.scale).log_prob(jnp.arctanh(squashed))
        return gaussian - jnp.sum(jnp.log1p(-(squashed**2)), -1)

    def entropy(self) -> Float[Array, "*B"]:
        """Entropy to first order at the location (no closed form exists)."""
        slope = jnp.log1p(-(self.mean**2) + 1e-6)
        return Normal(self.loc, self.scale).entropy() + jnp.sum(slope, -1)


class Categorical(NamedTuple):
    """One of K actions; `logits` need not be normalised."""

    logits: Float[Array, "*B K"]

    @property
    def mean(self) -> Array:
        """The most probable action."""
        return jnp.argmax(self.logits, -1)

    def sample(self, key: Key[Array, ""]) -> Array:
        """Index of the drawn action (Gumbel maximum)."""
        return jax.random.categorical(key, self.logits)

    def log_prob(self, action: Array) -> Float[Array, "*B"]:
        """Log probability of the action with this index."""
        return jnp.take_along_axis(
            jax.nn.log_softmax(self.logits), action[..., None], -1
        )[..., 0]

    def entropy(self) -> Float[Array, "*B"]:
        """Shannon entropy."""
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, -1)
