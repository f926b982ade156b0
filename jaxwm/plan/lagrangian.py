"""Inequality constraints by the augmented Lagrangian, around any planner.

    minimise f(x)   where g(x) <= 0

Each round hands the planner a cost without constraints,

    L(x) = f(x) + sum_i (max(0, l_i + p g_i(x))^2 - l_i^2) / (2 p)

and moves the multipliers to l_i <- max(0, l_i + p g_i(x)) at what it found. The penalty
p grows while the violation does not shrink by half from one round to the next.

Source: Rockafellar, "The multiplier method of Hestenes and Powell applied to convex
programming", 1973; Nocedal and Wright, Numerical Optimization, 2nd ed., section 17.4.
Shapes: G constraints, R rounds.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxwm.core import tree
from jaxwm.types import PyTree

_SHRINK = 0.5  # a round that leaves a larger share of the violation raises the penalty


class Constrained(NamedTuple):
    """Where the rounds came to."""

    x: PyTree  # the best decision that is allowed, else the one that violates least
    cost: Float[Array, ""]  # f(x)
    violation: Float[Array, ""]  # sum of max(0, g_i(x))
    multipliers: Float[Array, " G"]
    penalty: Float[Array, ""]
    violations: Float[Array, " R"]  # of what every round found


def augmented_lagrangian(
    search: Callable[[Int[Array, ""], Callable, PyTree], PyTree],
    problem: Callable[[PyTree], tuple[Array, Array]],
    start: PyTree,
    *,
    rounds: int,
    penalty: float = 10.0,
    growth: float = 4.0,
    tolerance: float = 0.0,
) -> Constrained:
    """Lets a planner without constraints find a decision that keeps them.

    Args:
        search: `(round, cost, x) -> x`, an improved decision for `cost: x -> scalar`,
            begun at x. Any planner: `lambda i, cost, x: plan.cem(fold_in(key, i), cost,
            x, ...).x`. Round is traced.
        problem: `x -> (f, g [G])`; allowed is `g <= 0`. Entries of g that are NaN or
            infinite forbid a decision.
        start: the first decision. It is returned if nothing better is found.
        rounds: R, calls of `search`.
        penalty: first p, in units of the cost per squared unit of a constraint.
        growth: factor of the penalty where a round did not help enough.
        tolerance: violation that still counts as allowed.

    Raises:
        ValueError: for settings without sense, and if g is not a vector.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, got {penalty}.")
    if not growth >= 1:
        raise ValueError(f"growth must be at least 1, got {growth}; it raises penalty.")
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}.")
    cost, g = jax.eval_shape(problem, start)
    if cost.shape != () or len(g.shape) != 1:
        raise ValueError(
            "problem must return one cost and a vector of constraints, got shapes "
            f"{cost.shape} and {g.shape}; flatten the constraints."
        )

    def judged(x) -> tuple[PyTree, Array, Array, Array]:
        cost, g = problem(x)
        return x, cost, g, jnp.sum(jnp.maximum(jnp.where(jnp.isnan(g), jnp.inf, g), 0))

    def one_round(carry, i):
        x, best, multipliers, penalty, before = carry

        def lagrangian(x):
            cost, g = problem(x)
            pushed = jnp.maximum(multipliers + penalty * g, 0.0)
            return cost + jnp.sum(pushed**2 - multipliers**2) / (2 * penalty)

        x, cost, g, violation = judged(search(i, lagrangian, x))
        best = _better_of(best, (x, cost, violation), tolerance)
        moved = jnp.maximum(multipliers + penalty * g, 0.0)
        multipliers = jnp.where(jnp.isfinite(moved), moved, multipliers)
        helped = violation <= jnp.maximum(_SHRINK * before, tolerance)
        penalty = jnp.where(helped, penalty, growth * penalty)
        return (x, best, multipliers, penalty, violation), violation

    _, first_cost, first_g, first_violation = judged(start)
    carry = (
        start,
        (start, first_cost, first_violation),
        jnp.zeros_like(first_g),
        jnp.asarray(penalty, first_g.dtype),
        first_violation,
    )
    carry, violations = jax.lax.scan(one_round, carry, jnp.arange(rounds))
    _, (x, cost, violation), multipliers, last_penalty, _ = carry
    return Constrained(x, cost, violation, multipliers, last_penalty, violations)


def _better_of(old, new, tolerance):
    """Among allowed decisions the cheaper, otherwise the one that violates less."""
    (_, old_cost, old_violation), (_, new_cost, new_violation) = old, new
    allowed = jnp.maximum(old_violation, new_violation) <= tolerance
    cheaper = (new_cost < old_cost) | jnp.isnan(old_cost)
    better = jnp.where(allowed, cheaper, new_violation < old_violation)
    return tree.where(better & ~jnp.isnan(new_cost), new, old)
