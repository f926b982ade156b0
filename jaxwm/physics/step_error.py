"""What an adaptive solver knows of each step: its error and its stiffness.

One step of an explicit Runge-Kutta pair with stages k_i = f(t + c_i h, g_i):

    y' = y + h Σ b_i k_i,   e = h Σ (b_i - b̂_i) k_i
    E  = rms(e / (atol + rtol max(|y|, |y'|)))     accepted if at most 1
    S  = |k_s - k_{s-1}| / |g_s - g_{s-1}| / 3.5068

E is the error in units of the tolerance; S estimates the largest |∂f/∂y|, scaled to the
edge of the stability region of Tsit5 (S h > 1 would be unstable). Both are differen-
tiable, and penalties on them make learnt fields cheap to solve.

Source: Pal et al., "Opening the Blackbox: Accelerating Neural Differential Equations by
Regularizing Internal Solver Heuristics", ICML 2021; the pair is Tsitouras, 2011.
Shapes: T steps at most.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxwm.physics import ode
from jaxwm.physics.ode import VectorField
from jaxwm.types import Params, PyTree

# Half the length of the real stability interval of Tsit5, as the paper scales it.
_EDGE = 3.5068
_TINY = 1e-20  # inside roots, whose slope at 0 is infinite


class StepError(NamedTuple):
    """One step and what it says about itself."""

    y: PyTree  # after the step
    error: Float[Array, ""]  # E, in units of the tolerance
    stiffness: Float[Array, ""]  # S, 1/time; 0 where the last stages coincide


class Heuristics(NamedTuple):
    """Sums over the accepted steps of a solve; step sizes count as constants."""

    error_sum: Float[Array, ""]  # Σ h_j E_j
    error_sq_sum: Float[Array, ""]  # Σ E_j²
    stiffness_sum: Float[Array, ""]  # Σ S_j
    num_accepted: Int[Array, ""]
    num_rejected: Int[Array, ""]
    num_evaluations: Int[Array, ""]  # of the field, by the solve itself


def step_error(
    vf: VectorField,
    params: Params,
    y: PyTree,
    t: float | Float[Array, ""],
    h: float | Float[Array, ""],
    *,
    solver: str = "tsit5",
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> StepError:
    """Takes one step of length `h` and estimates its error and stiffness.

    Args:
        vf: `(t, y, params) -> dy/dt`.
        params: gradients flow.
        y: state before the step; gradients flow.
        t: its time; no gradient.
        h: length of the step; no gradient.
        solver: explicit, with an embedded error: "tsit5", "dopri5", "bosh3".
        rtol: relative tolerance that the error is scaled by.
        atol: absolute tolerance.

    Raises:
        ValueError: for solvers without stages and an embedded error, and tolerances
            that are not positive.
    """
    tableau = _pair(solver)
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be positive, got {rtol} and {atol}.")
    t, h = jax.lax.stop_gradient((t, h))
    flat, unflatten = ravel_pytree(y)
    states, rates = [], []
    rows = [(), *tableau.a_lower]
    times = [0.0, *tableau.c]
    for row, c in zip(rows, times, strict=True):
        state = flat + h * _combined(row, rates, flat)
        states.append(state)
        rates.append(ravel_pytree(vf(t + c * h, unflatten(state), params))[0])
    after = flat + h * _combined(tableau.b_sol, rates, flat)
    error = h * _combined(tableau.b_error, rates, flat)
    scale = atol + rtol * jnp.maximum(jnp.abs(flat), jnp.abs(after))
    apart = states[-1] - states[-2]
    same = jnp.all(apart == 0)
    spread = _rms(jnp.where(same, 1.0, apart))  # no root of 0 on the way back
    stiffness = _rms(rates[-1] - rates[-2]) / spread / _EDGE
    return StepError(
        unflatten(after), _rms(error / scale), jnp.where(same, 0.0, stiffness)
    )


def ode_with_heuristics(
    vf: VectorField,
    params: Params,
    y0: PyTree,
    t0: float | Float[Array, ""],
    t1: float | Float[Array, ""],
    *,
    solver: str = "tsit5",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_steps: int = 64,
) -> tuple[PyTree, Heuristics]:
    """Solves from `t0` to `t1` and sums what the steps say about themselves.

    The solver gives its accepted times and states; all steps are then taken once more,
    side by side, for their errors. Gradients are those of the steps taken: through the
    states and stages, not through the step sizes. The second sweep costs as much as
    `max_steps` steps, so keep that near what is needed.

    Returns:
        The state at `t1`, and the sums. NaN where `max_steps` did not suffice, while
        traced; outside of jit that is an error.

    Raises:
        ValueError: as `step_error`, and for `max_steps` below 1.
        RuntimeError: if `max_steps` were taken before `t1`.
    """
    _pair(solver)
    dtype = jnp.result_type(*jax.tree.leaves(y0))
    ends = jnp.stack([jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)])
    ys, steps, stats = ode.odeint_steps(
        vf, params, y0, ends, solver=solver, rtol=rtol, atol=atol, max_steps=max_steps
    )

    def one(y, t, h):
        found = step_error(vf, params, y, t, h, solver=solver, rtol=rtol, atol=atol)
        return found.error, found.stiffness

    error, stiffness = jax.vmap(one)(steps.y, steps.t, steps.h)
    total = lambda x: jnp.where(
        stats.success, jnp.sum(jnp.where(steps.real, x, 0.0)), jnp.nan
    )
    heuristics = Heuristics(
        total(steps.h * error),
        total(error**2),
        total(stiffness),
        stats.num_accepted,
        stats.num_rejected,
        stats.num_evaluations,
    )
    return jax.tree.map(lambda y: y[-1], ys), heuristics


def _pair(solver: str):
    """Coefficients of an explicit pair."""
    method = ode.named(solver, ode.SOLVERS, "solver")
    tableau = getattr(method, "tableau", None)
    if tableau is None or tableau.implicit or tableau.num_stages < 3:
        raise ValueError(
            "solver must be an explicit Runge-Kutta pair with an error estimate, got "
            f'{solver!r}; for example "tsit5".'
        )
    return tableau


def _combined(weights, rates: list[Array], like: Array) -> Array:
    total = jnp.zeros_like(like)
    for weight, rate in zip(weights, rates, strict=True):
        if weight:
            total = total + jnp.asarray(weight, rate.dtype) * rate
    return total


def _rms(x: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(x**2) + _TINY)
