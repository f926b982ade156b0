"""Descent on a differentiable cost: with an optimiser, or by projected gradients.

Shapes: S steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxwm.types import PyTree

_SUFFICIENT = 1e-4  # share of the predicted fall that a step must reach


class Descended(NamedTuple):
    """Where descent came to."""

    x: PyTree  # the best decision seen
    cost: Float[Array, ""]
    costs: Float[Array, " S"]  # before every step
    calls: int  # evaluations of cost and gradient


def descent(
    cost: Callable[[PyTree], Array],
    start: PyTree,
    optimiser: optax.GradientTransformation,
    *,
    steps: int,
    project: Callable[[PyTree], PyTree] = lambda x: x,
) -> Descended:
    """Follows the gradient and returns the best decision on the way.

    Args:
        cost: differentiable; a gradient that is not finite stops the search where it
            is, as nothing more can be learnt there.
        start: any pytree.
        optimiser: from optax.
        steps: S.
        project: puts a decision back where it is allowed, after every step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")

    def step(carry, _):
        x, state, best, best_cost = carry
        value, grads = jax.value_and_grad(cost)(x)
        better = value < best_cost
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), x, best)
        best_cost = jnp.where(better, value, best_cost)
        usable = jnp.isfinite(optax.tree.norm(grads))
        updates, new_state = optimiser.update(grads, state, x)
        moved = project(optax.apply_updates(x, updates))
        keep = lambda new, old: jnp.where(usable, new, old)
        x, state = jax.tree.map(keep, (moved, new_state), (x, state))
        return (x, state, best, best_cost), value

    infinite = jnp.full_like(jax.eval_shape(cost, start), jnp.inf)
    carry = (start, optimiser.init(start), start, infinite)
    (x, _, best, best_cost), costs = jax.lax.scan(step, carry, None, length=steps)
    last = cost(x)
    better = last < best_cost
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), x, best)
    return Descended(best, jnp.where(better, last, best_cost), costs, steps + 1)


def projected_gradient(
    cost: Callable[[PyTree], Array],
    start: PyTree,
    project: Callable[[PyTree], PyTree],
    *,
    steps: int,
    length: float,
    tries: int = 8,
) -> Descended:
    """Descent within a convex set, by steps whose length is searched for.

        x <- P(x - a g),   f(x_new) <= f(x) - 1e-4 |x_new - x|^2 / a

    with the longest a of `length`, `length` / 2, ... that satisfies the second. All are
    tried at once, and the next step begins at twice what was taken; where none helps it
    begins behind the shortest. So the cost never rises, and there is no rate to tune.

    Args:
        cost: differentiable. Where it is not finite no step goes.
        start: any pytree; projected first.
        project: onto the set; the identity gives gradient descent with a line search.
        steps: S.
        length: the first a.
        tries: lengths that are tried at every step.

    Source: Bertsekas, "On the Goldstein-Levitin-Polyak gradient projection method",
    IEEE Transactions on Automatic Control 21, 1976.
    """
    for name, value in (("steps", steps), ("tries", tries)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if not length > 0:
        raise ValueError(f"length must be positive, got {length}.")
    shares = 0.5 ** jnp.arange(tries)

    def step(carry, _):
        x, value, length = carry
        grads = jax.grad(cost)(x)
        lengths = length * shares

        def attempt(a):
            moved = project(jax.tree.map(lambda x, g: x - a * g, x, grads))
            far = optax.tree.norm(jax.tree.map(jnp.subtract, moved, x), squared=True)
            new = cost(moved)
            return moved, new, new <= value - _SUFFICIENT * far / a

        tried, costs, falls = jax.vmap(attempt)(lengths)
        first, any_falls = jnp.argmax(falls), jnp.any(falls)
        x = jax.tree.map(lambda new, x: jnp.where(any_falls, new[first], x), tried, x)
        length = jnp.where(any_falls, 2 * lengths[first], lengths[-1] / 2)
        return (x, jnp.where(any_falls, costs[first], value), length), value

    start = project(start)
    value = cost(start)
    carry = (start, value, jnp.asarray(length, value.dtype))
    (x, value, _), costs = jax.lax.scan(step, carry, None, length=steps)
    return Descended(x, value, costs, steps * (tries + 1) + 1)
