"""Iterative linear-quadratic regulator with bounded loops and parallel line search.

    minimise  sum_{t < T} cost(x_t, u_t) + final(x_T),   x_{t+1} = step(x_t, u_t)

Each iteration expands dynamics to first and costs to second order along the current
path, solves the linear-quadratic problem backwards in time,

    Q_x = l_x + f_x' V_x,  Q_u = l_u + f_u' V_x,
    Q_xx = l_xx + f_x' V_xx f_x,  Q_uu = l_uu + f_u' (V_xx + ρ I) f_u,  Q_ux likewise,
    u <- u + α k + K (x_new - x),   k = -Q_uu⁻¹ Q_u,   K = -Q_uu⁻¹ Q_ux

and takes the best of several step lengths α at once. ρ rises while no length helps and
falls while one does. Shapes: T steps, X state, A action.

Source: Tassa, Erez, Todorov, "Synthesis and Stabilization of Complex Behaviors through
Online Trajectory Optimization", IROS 2012.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Solution(NamedTuple):
    """A path and the feedback around it: `u = actions + gains (x - states)`."""

    actions: Float[Array, "T A"]
    states: Float[Array, "T+1 X"]
    gains: Float[Array, "T A X"]
    cost: Float[Array, ""]
    costs: Float[Array, " R"]  # after every iteration


def ilqr(
    step: Callable,
    cost: Callable,
    final: Callable,
    start: Float[Array, " X"],
    actions: Float[Array, "T A"],
    *,
    iterations: int,
    low: float | Array = -jnp.inf,
    high: float | Array = jnp.inf,
    regularisation: float = 1e-3,
) -> Solution:
    """Improves a sequence of actions; the cost never rises.

    Args:
        step: `(x [X], u [A]) -> x [X]`, differentiable.
        cost: `(x, u) -> scalar` of a step, twice differentiable.
        final: `(x) -> scalar` of the last state.
        start: x_0.
        actions: first guess.
        iterations: a Python int.
        low: bound of actions, kept by clipping.
        high: likewise.
        regularisation: first ρ, above 0.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}.")
    if not regularisation > 0:
        raise ValueError(f"regularisation must be positive, got {regularisation}.")
    lengths = jnp.asarray(0.5 ** jnp.arange(10), actions.dtype)
    eye = jnp.eye(start.shape[0], dtype=start.dtype)

    def roll(states, actions, openers, gains, length):
        """The path under `length` times the change; and its cost."""

        def body(x, row):
            x_old, u_old, opener, gain = row
            u = jnp.clip(u_old + length * opener + gain @ (x - x_old), low, high)
            return step(x, u), (x, u, cost(x, u))

        rows = (states[:-1], actions, openers, gains)
        last, (path, used, costs) = jax.lax.scan(body, start, rows)
        total = jnp.sum(costs) + final(last)
        total = jnp.where(jnp.isfinite(total), total, jnp.inf)
        return jnp.concatenate([path, last[None]]), used, total

    def backwards(states, actions, rho):
        def body(carry, row):
            v_x, v_xx = carry
            x, u = row
            f_x, f_u = jax.jacfwd(step, (0, 1))(x, u)
            l_x, l_u = jax.grad(cost, (0, 1))(x, u)
            (l_xx, _), (l_ux, l_uu) = jax.hessian(cost, (0, 1))(x, u)
            q_x, q_u = l_x + f_x.T @ v_x, l_u + f_u.T @ v_x
            q_xx = l_xx + f_x.T @ v_xx @ f_x
            heavy = v_xx + rho * eye
            q_uu = l_uu + f_u.T @ heavy @ f_u
            q_ux = l_ux + f_u.T @ heavy @ f_x
            # Costs need not be convex: negative curvature is turned around.
            values, vectors = jnp.linalg.eigh((q_uu + q_uu.T) / 2)
            values = jnp.maximum(jnp.abs(values), 1e-6)
            solve = lambda b: vectors @ ((vectors.T @ b).T / values).T
            opener, gain = -solve(q_u), -solve(q_ux)
            v_x = q_x + gain.T @ q_uu @ opener + gain.T @ q_u + q_ux.T @ opener
            v_xx = q_xx + gain.T @ q_uu @ gain + gain.T @ q_ux + q_ux.T @ gain
            return (v_x, (v_xx + v_xx.T) / 2), (opener, gain)

        last = states[-1]
        carry = (jax.grad(final)(last), jax.hessian(final)(last))
        _, changes = jax.lax.scan(body, carry, (states[:-1], actions), reverse=True)
        return changes

    def improve(carry, _):
        states, actions, gains, total, rho = carry
        openers, new_gains = backwards(states, actions, rho)
        tried = jax.vmap(lambda a: roll(states, actions, openers, new_gains, a))(
            lengths
        )
        best = jnp.argmin(tried[2])
        better = tried[2][best] < total
        pick = lambda new, old: jnp.where(better, new, old)
        carry = (
            pick(tried[0][best], states),
            pick(tried[1][best], actions),
            pick(new_gains, gains),
            pick(tried[2][best], total),
            jnp.clip(jnp.where(better, rho / 3, rho * 10), 1e-8, 1e8),
        )
        return carry, carry[3]

    blank = jnp.zeros((*actions.shape, start.shape[0]), start.dtype)
    still = jnp.zeros((len(actions) + 1, *start.shape), start.dtype)
    clipped = jnp.clip(actions, low, high)
    states, actions, total = roll(still, clipped, jnp.zeros_like(actions), blank, 0.0)
    rho = jnp.asarray(regularisation, start.dtype)
    carry = (states, actions, blank, total, rho)
    carry, costs = jax.lax.scan(improve, carry, None, length=iterations)
    states, actions, gains, total, _ = carry
    return Solution(actions, states, gains, total, costs)
