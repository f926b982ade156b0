"""Search for a decision by sampling: shooting, predictive sampling, CEM, iCEM, MPPI.

A decision is an array of any shape, usually actions `[T, A]`; its cost is one number,
and need not be differentiable. A cost that is NaN counts as infinite. Every sampler
returns the best decision it has seen. Shapes: N samples of a round, E elites.

Source: Rubinstein and Kroese, "The Cross-Entropy Method", 2004; Pinneri et al.,
"Sample-efficient Cross-Entropy Method for Real-time Planning" (iCEM), CoRL 2020;
Williams et al., "Information Theoretic MPC for Model-Based Reinforcement Learning"
(MPPI), ICRA 2017; Howell et al., "Predictive Sampling: Real-time Behaviour Synthesis
with MuJoCo", 2022.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Cost = Callable[[Array], Array]
Bound = float | int | Array


class Found(NamedTuple):
    """What a search came to."""

    x: Array  # the best decision seen
    cost: Float[Array, ""]
    mean: Array  # of the last proposal: where a warm start goes on
    std: Array
    costs: Float[Array, " R"]  # best cost of every round
    calls: int  # evaluations of the cost


def random_shooting(
    key: Key[Array, ""],
    cost: Cost,
    mean: Array,
    std: Bound,
    *,
    num: int,
    low: Bound = -jnp.inf,
    high: Bound = jnp.inf,
) -> Found:
    """The best of N normal samples."""
    _check(num, 1, 1)
    samples = _draw(key, mean, jnp.broadcast_to(std, mean.shape), num, low, high)
    costs = _costs(cost, samples)
    best = jnp.argmin(costs)
    std = jnp.broadcast_to(jnp.asarray(std, mean.dtype), mean.shape)
    return Found(samples[best], costs[best], mean, std, costs[best][None], num)


def predictive_sampling(
    key: Key[Array, ""],
    cost: Cost,
    mean: Array,
    std: Bound,
    *,
    num: int,
    knots: int,
    iterations: int = 1,
    low: Bound = -jnp.inf,
    high: Bound = jnp.inf,
) -> Found:
    """The best of the plan itself and N - 1 smooth changes of it.

    A change is normal at K equally spaced knots of the first axis and linear between
    them. The deviation never shrinks, so that little hangs on any one call: the search
    goes on from call to call, each from where the last one came to.

    Args:
        key: for the samples.
        cost: `x -> scalar`; vmapped over samples.
        mean: the plan that is changed, the shape of a decision.
        std: of a change, at its knots.
        num: N, samples of a round.
        knots: K; 1 moves all rows alike, as many as rows moves each for itself.
        iterations: rounds; each changes the best decision of the one before.
        low: smallest value of an entry; samples are clipped.
        high: largest value.
    """
    _check(num, 1, iterations)
    if not 1 <= knots <= len(mean):
        raise ValueError(
            f"knots must be in 1 ... {len(mean)}, the rows of a decision, got {knots}."
        )
    std = jnp.broadcast_to(jnp.asarray(std, mean.dtype), mean.shape)
    # Weight of every knot in every row: 1 at the knot, 0 at its neighbours.
    place = jnp.arange(len(mean)) * (knots - 1) / max(len(mean) - 1, 1)
    between = jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(knots)), 0.0)
    between = between.astype(mean.dtype)

    def one_round(carry, i):
        best, best_cost = carry
        shape = (num, knots, *mean.shape[1:])
        noise = jax.random.normal(jax.random.fold_in(key, i), shape, mean.dtype)
        change = std * jnp.moveaxis(jnp.tensordot(between, noise, (1, 1)), 1, 0)
        samples = jnp.clip((best + change).at[0].set(best), low, high)
        costs = _costs(cost, samples)
        first = jnp.argmin(costs)
        better = (i == 0) | (costs[first] < best_cost)
        best = jnp.where(better, samples[first], best)
        best_cost = jnp.where(better, costs[first], best_cost)
        return (best, best_cost), best_cost

    carry = (mean, jnp.array(jnp.inf, mean.dtype))
    carry, costs = jax.lax.scan(one_round, carry, jnp.arange(iterations))
    best, best_cost = carry
    return Found(best, best_cost, best, std, costs, num * iterations)


def cem(
    key: Key[Array, ""],
    cost: Cost,
    mean: Array,
    std: Bound,
    *,
    num: int,
    elites: int,
    iterations: int,
    low: Bound = -jnp.inf,
    high: Bound = jnp.inf,
    momentum: float = 0.1,
    smallest_std: Bound = 0.0,
    colour: float = 0.0,
    keep: int = 0,
) -> Found:
    """Cross-entropy method: fits a diagonal Gaussian to the E best of N samples.

    With `colour` above 0 and `keep` above 0 this is iCEM.

    Args:
        key: for the samples.
        cost: `x -> scalar`; vmapped over samples.
        mean: of the first proposal, the shape of a decision.
        std: of the first proposal.
        num: N, samples of a round.
        elites: E.
        iterations: rounds.
        low: smallest value of an entry; samples are clipped.
        high: largest value.
        momentum: share of the old mean and deviation that stays.
        smallest_std: floor of the deviation.
        colour: exponent of the noise's power spectrum along the first axis: 0 is white,
            2 Brownian.
        keep: elites that enter the next round unchanged.
    """
    _check(num, elites, iterations)
    if not 0 <= keep <= elites:
        raise ValueError(f"keep must be in 0 ... {elites}, the elites, got {keep}.")
    shape, dtype = mean.shape, mean.dtype

    def one_round(carry, i):
        mean, std, best, best_cost, kept = carry
        samples = _draw(
            jax.random.fold_in(key, i), mean, std, num, low, high, colour=colour
        )
        if keep:
            # In the first round nothing has been kept yet.
            old = jnp.where(i == 0, samples[:keep], kept)
            samples = jnp.concatenate([old, samples[keep:]])
        costs = _costs(cost, samples)
        order = jnp.argsort(costs)[:elites]
        chosen = samples[order]
        mean = momentum * mean + (1 - momentum) * jnp.mean(chosen, 0)
        std = momentum * std + (1 - momentum) * jnp.std(chosen, 0)
        std = jnp.maximum(std, smallest_std)
        better = costs[order[0]] < best_cost
        best = jnp.where(better, chosen[0], best)
        best_cost = jnp.where(better, costs[order[0]], best_cost)
        return (mean, std, best, best_cost, chosen[:keep]), best_cost

    std = jnp.broadcast_to(jnp.asarray(std, dtype), shape)
    nothing = jnp.zeros((keep, *shape), dtype)
    carry = (mean, std, mean, jnp.array(jnp.inf, dtype), nothing)
    carry, costs = jax.lax.scan(one_round, carry, jnp.arange(iterations))
    mean, std, best, best_cost, _ = carry
    return Found(best, best_cost, mean, std, costs, num * iterations)


def mppi(
    key: Key[Array, ""],
    cost: Cost,
    mean: Array,
    std: Bound,
    *,
    num: int,
    iterations: int,
    temperature: float,
    low: Bound = -jnp.inf,
    high: Bound = jnp.inf,
    colour: float = 0.0,
) -> Found:
    """Model-predictive path integral control: weighs samples by their cost.

        mean <- sum_i w_i x_i,   w_i = softmax(-(c_i - min c) / (temperature spread))

    where spread is the standard deviation of the costs, so that the temperature has no
    unit. The deviation of the samples stays.
    """
    _check(num, 1, iterations)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    std = jnp.broadcast_to(jnp.asarray(std, mean.dtype), mean.shape)

    def one_round(carry, i):
        mean, best, best_cost = carry
        samples = _draw(
            jax.random.fold_in(key, i), mean, std, num, low, high, colour=colour
        )
        # The mean itself is among the samples: a round cannot lose it.
        samples = samples.at[0].set(mean)
        costs = _costs(cost, samples)
        usable = jnp.isfinite(costs)
        spread = jnp.std(costs, where=usable) + 1e-12
        lowest = jnp.min(costs)
        weights = jax.nn.softmax(
            jnp.where(usable, -(costs - lowest) / (temperature * spread), -jnp.inf)
        )
        weights = jnp.where(jnp.any(usable), weights, 0.0)
        moved = jnp.tensordot(weights, samples, 1)
        mean = jnp.where(jnp.any(usable), moved, mean)
        better = lowest < best_cost
        best = jnp.where(better, samples[jnp.argmin(costs)], best)
        best_cost = jnp.minimum(lowest, best_cost)
        return (mean, best, best_cost), best_cost

    carry = (mean, mean, jnp.array(jnp.inf, mean.dtype))
    carry, costs = jax.lax.scan(one_round, carry, jnp.arange(iterations))
    mean, best, best_cost = carry
    return Found(best, best_cost, mean, std, costs, num * iterations)


def coloured_noise(
    key: Key[Array, ""], shape: tuple[int, ...], exponent: float
) -> Array:
    """Normal noise of unit variance whose power falls as `frequency ** -exponent`.

    The first axis is time. Source: Timmer and Koenig, 1995.
    """
    length = shape[0]
    if exponent == 0 or length < 3:
        return jax.random.normal(key, shape)
    real_key, imaginary_key = jax.random.split(key)
    frequencies = jnp.fft.rfftfreq(length)
    # The mean gets the weight of the slowest wave.
    scale = jnp.maximum(frequencies, 1 / length) ** (-exponent / 2)
    spectrum = (len(scale), *shape[1:])
    real = jax.random.normal(real_key, spectrum)
    imaginary = jax.random.normal(imaginary_key, spectrum)
    # Waves without a phase: the mean, and at even lengths the fastest.
    alone = (frequencies == 0) | (frequencies == 0.5)
    tall = (-1,) + (1,) * (len(shape) - 1)
    alone, scale = alone.reshape(tall), scale.reshape(tall)
    imaginary = jnp.where(alone, 0.0, imaginary)
    real = jnp.where(alone, jnp.sqrt(2.0) * real, real)
    noise = jnp.fft.irfft(scale * jax.lax.complex(real, imaginary), length, axis=0)
    weight = jnp.where(alone, 1.0, 2.0) * scale**2
    return noise * length / jnp.sqrt(2 * jnp.sum(weight))


def _draw(key, mean, std, num, low, high, *, colour: float = 0.0):
    noise = jax.vmap(lambda key: coloured_noise(key, mean.shape, colour))(
        jax.random.split(key, num)
    )
    return jnp.clip(mean + std * noise.astype(mean.dtype), low, high)


def _costs(cost: Cost, samples) -> Array:
    costs = jax.vmap(cost)(samples)
    if costs.ndim != 1:
        raise ValueError(
            f"cost must return one number per decision, got shape {costs.shape[1:]}."
        )
    return jnp.where(jnp.isnan(costs), jnp.inf, costs)


def _check(num: int, elites: int, iterations: int) -> None:
    if num < 1:
        raise ValueError(f"num must be at least 1 sample, got {num}.")
    if not 1 <= elites <= num:
        raise ValueError(f"elites must be in 1 ... {num}, the samples, got {elites}.")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}.")
