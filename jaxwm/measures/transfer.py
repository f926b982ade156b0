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


def bootstrap_gain(
    key: Key[Array, ""],
    area: Float[Array, " S"],
    scratch: Float[Array, " S"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """G of the mean areas of S paired seeds, and the ends of its interval.

        G = (A - A_scratch) / (1 - A_scratch),   A and A_scratch means over seeds

    A mean of the seeds' own G would be ruled by the seed whose scratch leaves least to
    gain. The interval is the percentile-t bootstrap: seeds are drawn with replacement,
    and each resample's error is measured in its own standard error, which covers as
    often as it says where percentiles of G do not, with as few as ten seeds.

    Args:
        key: the resamples.
        area: of each seed.
        scratch: of the same seeds, learning from scratch.
        level: coverage, in (0, 1).
        resamples: bootstrap draws.

    Raises:
        ValueError: for fewer than 5 seeds, of which too many resamples hold one seed
            alone, or a level outside (0, 1).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5;
    the standard error of a ratio is its linearisation.
    """
    num = area.shape[0]
    if num < 5:
        raise ValueError(f"area must come from at least 5 seeds, got {num}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")

    def estimate(area, scratch):
        mean = gain(jnp.mean(area), jnp.mean(scratch))
        miss = area - scratch - mean * (1 - scratch)
        spread = jnp.sqrt(jnp.sum(miss**2) / (num * (num - 1)))
        return mean, spread / jnp.abs(jnp.mean(1 - scratch))

    mean, error = estimate(area, scratch)
    drawn = jax.random.randint(key, (resamples, num), 0, num)
    means, errors = jax.vmap(estimate)(area[drawn], scratch[drawn])
    # One seed alone has no spread to measure by; it is rare and left in the middle.
    spread = errors > 1e-3 * error
    t = jnp.where(spread, (means - mean) / jnp.where(spread, errors, 1.0), 0.0)
    tail = (1 - level) / 2
    low, high = jnp.quantile(t, jnp.array([tail, 1 - tail]))
    return mean, mean - high * error, mean - low * error
