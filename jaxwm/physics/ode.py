"""Ordinary differential equations by diffrax, the parameters as an argument.

    dy/dt = f(t, y, params)

`odeint` returns the states at the times asked for and what they cost; gradients flow
to the parameters and the start, through the steps that were taken or through an adjoint
equation. `flow` makes `Dynamics` of a vector field. A network enters by its `apply`:
`lambda t, y, params: network.apply(params, y)`; it must be pure. What is to be
differentiated belongs in `params` or `y0`, never into a closure.

diffrax is an extra (`pip install "jaxwm[physics]"`), imported at the first solve.
Shapes: T times. States are any pytree of floating-point arrays.

Source: Kidger, "On Neural Differential Equations", 2022; the solver is diffrax.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jaxwm.physics.dynamics import Dynamics
from jaxwm.types import Params, PyTree

VectorField = Callable[[Array, PyTree, Params], PyTree]  # (t, y, params) -> dy/dt

SOLVERS = {
    "euler": "Euler",
    "heun": "Heun",
    "bosh3": "Bosh3",
    "tsit5": "Tsit5",
    "dopri5": "Dopri5",
    "dopri8": "Dopri8",
    "kvaerno5": "Kvaerno5",  # implicit, for stiff fields
}
ADJOINTS = {
    "checkpoint": "RecursiveCheckpointAdjoint",  # exact for the steps taken
    "direct": "DirectAdjoint",  # also forward mode, for the memory of every step
    "backsolve": "BacksolveAdjoint",  # O(1) memory; wrong by the error of its own solve
    "forward": "ForwardMode",
}


class Stats(NamedTuple):
    """What a solve cost."""

    success: Bool[Array, ""]  # whether the last time was reached
    num_accepted: Int[Array, ""]  # steps
    num_rejected: Int[Array, ""]
    num_evaluations: Int[Array, ""]  # of the field; implicit solvers: one per stage


class Steps(NamedTuple):
    """Accepted steps of a solve, M = max_steps rows; others repeat the start."""

    t: Float[Array, " M"]  # where each begins
    h: Float[Array, " M"]  # its length; 0 where there was none
    y: PyTree  # [M, ...] state where it begins
    real: Bool[Array, " M"]  # whether it was taken


def odeint(
    vf: VectorField,
    params: Params,
    y0: PyTree,
    ts: Float[Array, " T"] | np.ndarray,
    *,
    solver: str | Any = "tsit5",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    step_size: float | None = None,
    adjoint: str | Any = "checkpoint",
    max_steps: int = 4096,
) -> tuple[PyTree, Stats]:
    """Solves `dy/dt = vf(t, y, params)` from `y0` at `ts[0]`.

    Args:
        vf: the field.
        params: passed on to it; gradients flow.
        y0: state at `ts[0]`; gradients flow.
        ts: increasing times, `[T]`, at which the state is wanted.
        solver: a name in `SOLVERS`, or a solver of diffrax.
        rtol: relative tolerance of the error of one step.
        atol: absolute tolerance.
        step_size: fixed steps of this length instead of the tolerances.
        adjoint: a name in `ADJOINTS`, or an adjoint of diffrax.
        max_steps: give up after so many.

    Returns:
        States `[T, ...]`, the first of them `y0`, and the cost. Where the solve gave up
        while traced, `success` is False and the states are NaN, so that no loss is
        silently cut short; outside of jit it is an error.

    Raises:
        ValueError: for times that do not increase or are not floating point of at least
            32 bits, tolerances and step sizes that are not positive or are traced, and
            unknown names.
        RuntimeError: if `max_steps` were taken before the last time.
        ImportError: without diffrax.
    """
    ys, _, stats = _solve(
        vf, params, y0, ts, False, solver, rtol, atol, step_size, adjoint, max_steps
    )
    return ys, stats


def odeint_steps(
    vf: VectorField,
    params: Params,
    y0: PyTree,
    ts: Float[Array, " T"] | np.ndarray,
    *,
    solver: str | Any = "tsit5",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_steps: int = 64,
) -> tuple[PyTree, Steps, Stats]:
    """As `odeint`, and every accepted step, for what looks at the solver's own times.

    Memory is that of `max_steps` states. Gradients flow to the states of the steps, not
    to their times.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}.")
    ys, steps, stats = _solve(
        vf, params, y0, ts, True, solver, rtol, atol, None, "checkpoint", max_steps
    )
    times_taken, states = steps
    ends = jax.lax.stop_gradient(times_taken)
    real = jnp.arange(max_steps) < stats.num_accepted
    # What lies behind the last step is infinite: made harmless here, before anything is
    # computed from it, else its gradient is NaN.
    first = lambda x: jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), x[:-1], x[:1])
    length = jnp.where(real, ends[1:] - ends[:-1], 0.0)
    return ys, Steps(first(ends), length, jax.tree.map(first, states), real), stats


def _solve(vf, params, y0, ts, keep, solver, rtol, atol, step_size, adjoint, max_steps):
    dfx = library()
    ts = times(ts)
    method = named(solver, SOLVERS, "solver")
    adjoint = named(adjoint, ADJOINTS, "adjoint")
    known(rtol=rtol, atol=atol, step_size=step_size)
    if step_size is None:
        if not (rtol > 0 and atol > 0):
            raise ValueError(
                f"rtol and atol must be positive, got {rtol} and {atol}; step_size "
                "takes fixed steps."
            )
        if isinstance(method, dfx.Euler):
            raise ValueError(
                f"solver must estimate its error, {solver!r} does not; give a "
                'step_size, or choose "tsit5".'
            )
        controller = dfx.PIDController(rtol=rtol, atol=atol)
        order = method.order(dfx.ODETerm(vf))
        first = starting_step(vf, params, ts[0], y0, order, rtol=rtol, atol=atol)
    else:
        if not step_size > 0:
            raise ValueError(f"step_size must be positive, got {step_size}.")
        controller, first = dfx.ConstantStepSize(), step_size
    save = dfx.SaveAt(ts=ts)
    if keep:
        every = dfx.SubSaveAt(t0=True, steps=True)
        save = dfx.SaveAt(subs=[dfx.SubSaveAt(ts=ts), every])
    solution = dfx.diffeqsolve(
        dfx.ODETerm(vf),
        method,
        t0=ts[0],
        t1=ts[-1],
        dt0=first,
        y0=y0,
        args=params,
        saveat=save,
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )
    success = solution.result == dfx.RESULTS.successful
    stats = Stats(
        success,
        solution.stats["num_accepted_steps"],
        solution.stats["num_rejected_steps"],
        evaluations(method, solution.stats["num_steps"], first=step_size is None),
    )
    ys, steps = solution.ys, ()
    if keep:
        ys, steps = solution.ys[0], (solution.ts[1], solution.ys[1])
    return reached(ys, success, max_steps), steps, stats


def known(**numbers) -> None:
    """Raises where one of the settings is traced: it decides how a solve is built.

    Raises:
        ValueError: naming it.
    """
    for name, value in numbers.items():
        if isinstance(value, jax.core.Tracer):
            raise ValueError(
                f"{name} must be a number known while tracing, got {value}; close over "
                "a Python float, or name it in static_argnames of jit."
            )


def evaluations(method, num_steps: Int[Array, ""], *, first: bool) -> Int[Array, ""]:
    """Calls of the field in so many steps; `first`: also the two for the first size.

    A solver whose last stage is the next step's first evaluates it once.
    """
    tableau = getattr(method, "tableau", None)
    if tableau is None:
        return num_steps
    shared = bool(tableau.fsal)
    return num_steps * (tableau.num_stages - shared) + shared + 2 * first


def starting_step(
    vf: VectorField,
    params: Params,
    t: float | Float[Array, ""],
    y: PyTree,
    order: int,
    *,
    rtol: float,
    atol: float,
) -> Float[Array, ""]:
    """First step size of an adaptive solve, from two calls of the field; no gradient.

    Source: Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I",
    section II.4, with rms norms.
    """
    params, t, y = jax.lax.stop_gradient((params, t, y))
    flat, unflatten = ravel_pytree(y)
    field = lambda t, y: ravel_pytree(vf(t, unflatten(y), params))[0]
    size = lambda x: jnp.sqrt(jnp.mean((x / (atol + rtol * jnp.abs(flat))) ** 2))
    slope = field(t, flat)
    d0, d1 = size(flat), size(slope)
    small = (d0 < 1e-5) | (d1 < 1e-5)
    probe = jnp.where(small, 1e-6, 0.01 * d0 / jnp.where(small, 1.0, d1))
    d2 = size(field(t + probe, flat + probe * slope) - slope) / probe
    largest = jnp.maximum(d1, d2)
    flatly = largest <= 1e-15
    step = (0.01 / jnp.where(flatly, 1.0, largest)) ** (1 / (order + 1))
    step = jnp.where(flatly, jnp.maximum(1e-6, 1e-3 * probe), step)
    return jax.lax.stop_gradient(jnp.minimum(100 * probe, step))


def reached(ys: PyTree, success: Bool[Array, ""], max_steps: int) -> PyTree:
    """The states, or NaN where the solve gave up; an error where that is known."""
    if not isinstance(success, jax.core.Tracer) and not bool(jnp.all(success)):
        raise RuntimeError(
            f"the solve took max_steps = {max_steps} steps, or failed, before the last "
            'time; allow more, loosen rtol and atol, or use "kvaerno5" if it is stiff.'
        )
    return jax.tree.map(lambda y: jnp.where(success, y, jnp.nan), ys)


def flow(
    vf: Callable,
    init: Callable,
    params: Params,
    *,
    dt: float,
    action_size: int = 0,
    **options,
) -> Dynamics:
    """A vector field as `Dynamics`: `step` solves over `dt` with the action held.

    Args:
        vf: `(t, y, params, action [A]) -> dy/dt`; t runs from 0 to `dt` in each step.
        init: `(key, params) -> y`.
        params: defaults.
        dt: s, of one step.
        action_size: A.
        **options: of `odeint`.
    """

    def step(params, state, action):
        field = lambda t, y, args: vf(t, y, *args)
        dtype = jax.tree.leaves(state)[0].dtype
        ts = jnp.array([0.0, dt], dtype)
        ys, _ = odeint(field, (params, action), state, ts, **options)
        return jax.tree.map(lambda y: y[-1], ys)

    def observe(params, state):
        del params  # everything is seen
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(state)])

    return Dynamics(init, step, observe, dt, action_size, params)


def library(name: str = "diffrax") -> ModuleType:
    """Imports diffrax or exponax when a solve needs it; nothing else does.

    Raises:
        ImportError: naming what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{name} is missing; install it with: pip install "jaxwm[physics]".'
        ) from error


def named(choice: str | Any, names: dict[str, str], what: str) -> Any:
    """The class of diffrax called `choice`, made; or `choice` itself, if no string."""
    if not isinstance(choice, str):
        return choice
    if choice not in names:
        raise ValueError(
            f"{what} must be one of {', '.join(names)} or an object of diffrax, got "
            f"{choice!r}."
        )
    return getattr(library(), names[choice])()


def times(ts) -> Array:
    """Checks what is known of the times while tracing."""
    if not isinstance(ts, jax.core.Tracer):
        known = np.asarray(ts)
        if known.ndim != 1 or known.size < 2 or not np.all(np.diff(known) > 0):
            raise ValueError(
                f"ts must be at least two increasing times, got {known.tolist()}; sort "
                "them and drop what occurs twice."
            )
    dtype = jnp.result_type(ts)
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
        raise ValueError(
            f"ts must be floating point of at least 32 bits, got {dtype}; coarser "
            "times merge steps."
        )
    return jnp.asarray(ts)
