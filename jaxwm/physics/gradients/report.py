"""Reports on a gradient: is it right, is it useful, and where does it break?

Shapes: P parameters in all, K directions, S step sizes, T simulated steps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key

from jaxwm.physics.dynamics import Dynamics
from jaxwm.physics.gradients import estimators
from jaxwm.types import Params, PyTree


class RolloutReport(NamedTuple):
    """What `check_rollout` found, step by step."""

    value: Float[Array, ""]
    adjoint: Float[Array, " T"]  # norm of d loss / d state after each step
    in_contact: Float[Array, ""]  # share of steps that touch; NaN if not asked
    first_bad: Int[Array, ""]  # last step whose cotangent is not finite; -1 if none
    bad_leaf: Int[Array, ""]  # the state's leaf there, in tree order; -1 if none


class GradReport(NamedTuple):
    """What `check_gradient` found."""

    relative_error: Float[Array, " K"]  # of reverse mode, at the best of the steps
    by_step: Float[Array, "K S"]  # the same for every step of the differences
    roughness: Float[Array, ""]  # 1 - R² of slopes along a line; 0 is smooth
    bias: Float[Array, ""]  # ||g1 - g0|| in standard errors; above 3: do not trust g1
    variance_ratio: Float[Array, ""]  # s1 / s0; above 1: values alone tell more
    finite: Bool[Array, ""]  # whether the derivative is finite at theta
    steps: RolloutReport | None  # adjoints, contact and NaN by step; None: not asked


def check_gradient(
    objective: estimators.Objective,
    theta: PyTree,
    key: Key[Array, ""],
    *,
    sigma: float,
    num: int = 64,
    directions: int = 4,
    steps: Sequence[float] | None = None,
    points: int = 64,
    rollout: Callable[[PyTree], RolloutReport] | None = None,
) -> GradReport:
    """Compares the derivative of an objective with its values.

    Args:
        objective: `(theta, key) -> scalar`.
        theta: any pytree of floating-point arrays.
        key: for directions and perturbations; the objective gets one key throughout
            wherever values are compared.
        sigma: perturbation of the stochastic estimators, and half the length of the
            line along which slopes are compared.
        num: samples of each estimator.
        directions: K random unit vectors.
        steps: of the central differences; None is (1e-2, 1e-3, 1e-4) of `1 + |theta|`
            in double precision, ten times as much in single.
        points: on the line.
        rollout: `theta -> RolloutReport`, by `check_rollout` of the simulation that the
            objective consists of; None leaves the report's `steps` empty.

    Returns:
        A `GradReport`; every entry is an array, so this can be jitted and vmapped.

    Raises:
        ValueError: for fewer than two samples, no perturbation, no direction, and lines
            of fewer than three points, which have no roughness.
    """
    if points < 3:
        raise ValueError(f"points must be at least 3 on the line, got {points}.")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}.")
    flat, unravel = ravel_pytree(theta)
    own_key, line_key, first_key, zeroth_key = jax.random.split(key, 4)
    if steps is None:
        double = flat.dtype == jnp.float64
        steps = (1e-2, 1e-3, 1e-4) if double else (1e-1, 1e-2, 1e-3)
    sizes = jnp.asarray(steps, flat.dtype) * (1 + jnp.linalg.norm(flat))
    # One key for all points: the same problem is asked everywhere.
    own = jax.random.key_data(own_key)
    value = lambda x: objective(unravel(x), jax.random.wrap_key_data(own))
    grad = jax.grad(value)(flat)

    ways = jax.random.normal(line_key, (directions, flat.size), flat.dtype)
    ways /= jnp.linalg.norm(ways, axis=-1, keepdims=True)

    def error(way, size):
        difference = (value(flat + size * way) - value(flat - size * way)) / (2 * size)
        scale = jnp.maximum(jnp.abs(difference), 1e-12)
        return jnp.abs(grad @ way - difference) / scale

    by_step = jax.vmap(lambda way: jax.vmap(lambda s: error(way, s))(sizes))(ways)

    line = jnp.linspace(-sigma, sigma, points, dtype=flat.dtype)
    along = lambda t: value(flat + t * ways[0])
    values, slopes = jax.vmap(jax.value_and_grad(along))(line)
    seen = jnp.diff(values) / jnp.diff(line)
    told = 0.5 * (slopes[1:] + slopes[:-1])
    spread = jnp.sum((seen - jnp.mean(seen)) ** 2)
    rough = jnp.sum((seen - told) ** 2) / jnp.maximum(spread, 1e-12)

    first = estimators.first_order(objective, num=num, sigma=sigma)(theta, first_key)
    zeroth = estimators.zeroth_order(objective, num=num, sigma=sigma)(theta, zeroth_key)
    apart = ravel_pytree(first.grad)[0] - ravel_pytree(zeroth.grad)[0]
    error_size = jnp.sqrt(first.variance + zeroth.variance)
    return GradReport(
        relative_error=jnp.min(by_step, -1),
        by_step=by_step,
        roughness=rough,
        bias=jnp.linalg.norm(apart) / jnp.maximum(error_size, 1e-12),
        variance_ratio=first.variance / jnp.maximum(zeroth.variance, 1e-12),
        finite=jnp.all(jnp.isfinite(grad)),
        steps=None if rollout is None else rollout(theta),
    )


def check_rollout(
    dynamics: Dynamics,
    params: Params,
    state: PyTree,
    actions: Float[Array, "T A"],
    loss: Callable,
    *,
    touching: Callable | None = None,
) -> RolloutReport:
    """Looks at every step of a simulation's backward pass.

    Args:
        dynamics: the simulator.
        params: of the simulator.
        state: where to start.
        actions: `[T, A]`.
        loss: `(last state) -> scalar`.
        touching: `(params, state) -> bool`, whether something is in contact.

    Returns:
        A `RolloutReport`. Adjoints that grow by orders of magnitude towards the first
        step explode; all zeros mean that nothing reaches the loss, as before a contact.
        Going backwards, NaN arises first at step `first_bad`.
    """
    length = actions.shape[0]
    shapes = jax.eval_shape(lambda: dynamics.step(params, state, actions[0]))
    nudges = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)

    def run(nudges):
        def body(state, inputs):
            action, nudge = inputs
            after = dynamics.step(params, state, action)
            after = jax.tree.map(jnp.add, after, nudge)
            touched = False if touching is None else touching(params, after)
            return after, jnp.asarray(touched, bool)

        final, touched = jax.lax.scan(body, state, (actions, nudges))
        return loss(final), touched

    (value, touched), adjoints = jax.value_and_grad(run, has_aux=True)(nudges)
    leaves = [leaf.reshape(length, -1) for leaf in jax.tree.leaves(adjoints)]
    norms = jnp.sqrt(sum(jnp.sum(leaf**2, -1) for leaf in leaves))
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf), -1) for leaf in leaves], -1)
    some = jnp.any(bad)
    # Cotangents flow backwards: the last bad step is where they went wrong.
    last = length - 1 - jnp.argmax(jnp.any(bad, -1)[::-1])
    return RolloutReport(
        value,
        norms,
        jnp.mean(touched) if touching is not None else jnp.array(jnp.nan),
        jnp.where(some, last, -1),
        jnp.where(some, jnp.argmax(bad[last]), -1),
    )
