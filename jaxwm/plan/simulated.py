"""Planning through a simulator: a `Dynamics` and costs, as planners want them.

    total(u) = sum_{t < T} cost(x_t, u_t) + final(x_T),   x_{t+1} = step(x_t, u_t)

Shapes: T steps, X numbers of a state, A action.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxwm.physics import Dynamics, rollout
from jaxwm.types import Params, PyTree


class Problem(NamedTuple):
    """A task in a simulator. Samplers and descent want `total`, `ilqr` the rest."""

    total: Callable  # (actions [T, A]) -> scalar
    step: Callable  # (x [X], u [A]) -> x [X]
    cost: Callable  # (x [X], u [A]) -> scalar
    final: Callable  # (x [X]) -> scalar
    start: Float[Array, " X"]
    unravel: Callable  # x [X] -> state


def simulated(
    dynamics: Dynamics,
    params: Params,
    state: PyTree,
    cost: Callable[[PyTree, Array], Array],
    final: Callable[[PyTree], Array],
    *,
    checkpoint: str | int = "none",
) -> Problem:
    """Makes a problem of a simulator.

        task = simulated(dyn, dyn.params, state, cost, final)
        plan.cem(key, task.total, mean, std, num=64, elites=8, iterations=10)
        plan.descent(task.total, actions, optimiser, steps=100)
        plan.ilqr(task.step, task.cost, task.final, task.start, actions, iterations=20)

    Args:
        dynamics: the simulator; for `descent` and `ilqr` it must be differentiable.
        params: of the simulator.
        state: where to start, any pytree of floating-point arrays.
        cost: `(state, action) -> scalar` of a step, before it is made.
        final: `(state) -> scalar` of the last state.
        checkpoint: what backward passes keep, as in `physics.rollout`.

    Raises:
        ValueError: for states that hold anything but floating-point numbers.
    """
    kinds = {str(jnp.asarray(leaf).dtype) for leaf in jax.tree.leaves(state)}
    if not all(kind.startswith(("float", "bfloat")) for kind in kinds):
        raise ValueError(
            f"state must hold floating-point numbers alone, got {sorted(kinds)}; keep "
            "counters out of what is planned through."
        )
    start, unravel = ravel_pytree(state)

    def total(actions: Float[Array, "T A"]) -> Float[Array, ""]:
        last, path = rollout(dynamics, params, state, actions, checkpoint=checkpoint)
        before = jax.tree.map(
            lambda first, later: jnp.concatenate(
                [jnp.asarray(first)[None], later[:-1]]
            ),
            state,
            path.state,
        )
        return jnp.sum(jax.vmap(cost)(before, actions)) + final(last)

    def step(x, u):
        return ravel_pytree(dynamics.step(params, unravel(x), u))[0]

    return Problem(
        total,
        step,
        lambda x, u: cost(unravel(x), u),
        lambda x: final(unravel(x)),
        start,
        unravel,
    )
