"""What knowledge from one task is worth in another, read off learning curves.

    area      A = mean score over the interactions, by the trapezoidal rule
    gain      G = (A - A_scratch) / (1 - A_scratch)

A score is 0 for random actions and 1 for the best known behaviour, so G is the share
that was gained of what learning from scratch leaves to gain; it is negative where
knowledge does harm.

Source: Wulfmeier et al., "Foundations for Transfer in Reinforcement Learning: A
Taxonomy of Knowledge Modalities", 2023, for what is compared; jump-start, asymptote and
time to a threshold are those of Taylor and Stone, "Transfer Learning for Reinforcement
Learning Domains: A Survey", 2009.
Shapes: P points of a curve, S seeds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Curve(NamedTuple):
    """What a learning curve says."""

    jump_start: Float[Array, ""]  # score before the first interaction
    area: Float[Array, ""]  # mean score over the interactions
    time_to: Float[Array, ""]  # interactions until the share is reached; inf if never
    asymptote: Float[Array, ""]  # last score


def curve(
    score: Float[Array, " P"], interactions: Float[Array, " P"], *, share: float = 0.8
) -> Curve:
    """Reads a learning curve.

    Args:
        score: at each point.
        interactions: with the target task until then, rising from 0. Steps that only
            evaluate do not count.
        share: score that `time_to` waits for.

    Raises:
        ValueError: for fewer than two points, which have no area.
    """
    if score.shape[0] < 2:
        raise ValueError(
            f"score must hold at least 2 points, got {score.shape[0]}; a budget of no "
            "interactions has no curve."
        )
    area = jnp.trapezoid(score, interactions) / (interactions[-1] - interactions[0])
    time_to = jnp.min(jnp.where(score >= share, interactions, jnp.inf))
    return Curve(score[0], area, time_to, score[-1])


def gain(area: Array, scratch: Array) -> Array:
    """G, of areas of equal shapes."""
    return (area - scratch) / (1 - scratch)


def bootstrap_mean(
    key: Key[Array, ""],
    values: Float[Array, " S"],
    *,
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Ends of the percentile bootstrap interval of a mean over seeds.

    Raises:
        ValueError: for fewer than 3 seeds, from which an interval would claim too much,
            or a level outside (0, 1).
    """
    num = values.shape[0]
    if num < 3:
        raise ValueError(f"values must come from at least 3 seeds, got {num}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")
    drawn = jax.random.randint(key, (resamples, num), 0, num)
    means = jnp.mean(values[drawn], 1)
    tail = (1 - level) / 2
    low, high = jnp.quantile(means, jnp.array([tail, 1 - tail]))
    return low, high
