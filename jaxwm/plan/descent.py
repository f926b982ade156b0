"""Descent on a differentiable cost, from one start or from several at once.

Shapes: S steps, K starts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxwm.types import PyTree


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
