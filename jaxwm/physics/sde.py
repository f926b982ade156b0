"""Stochastic differential equations, controlled ones, and a reversible solver.

    dz = μ(t, z) dt + σ(t, z) ∘ dW      noise          (`sdeint`)
    dz = g(z) dX_t                      an input path  (`cdeint`)

`brownian` is a path W(s, t) made from a key and an interval alone: the same key gives
the same path in whatever order it is asked. `reversible_heun` solves with fixed steps
and recomputes its states on the way back, exactly up to rounding, so its gradient is
that of the steps taken for the memory of one.
Shapes: T times, D state, M noise, C channels of the input path.

Source: Kidger, "On Neural Differential Equations", 2022; Kidger et al., "Efficient and
Accurate Gradients for Neural SDEs", NeurIPS 2021; Kidger et al., "Neural Controlled
Differential Equations for Irregular Time Series", NeurIPS 2020.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxwm.physics import ode
from jaxwm.types import Params

Field = Callable[[Array, Array, Params], Array]  # (t, z [D], params) -> [D] or [D, M]

# The calculus whose solution each solver converges to.
SOLVERS = {"euler": "ito", "heun": "stratonovich", "midpoint": "stratonovich"}
_CLASSES = {"euler": "Euler", "heun": "Heun", "midpoint": "Midpoint"}


def brownian(
    key: Key[Array, ""], t0: float, t1: float, size: int, *, tol: float | None = None
):
    """A Brownian path of `size` dimensions on [t0, t1]: `path.evaluate(s, t) -> [M]`.

    Args:
        key: decides the whole path.
        t0: its start.
        t1: its end.
        size: M.
        tol: times closer than this are interpolated; None: 1e-4 of the interval.
    """
    if not t1 > t0:
        raise ValueError(f"t1 must lie behind t0 = {t0}, got {t1}.")
    tol = (t1 - t0) * 1e-4 if tol is None else tol
    tree = ode.library().VirtualBrownianTree
    # Raw key data: the tree reads its key at every query, which is its purpose, and the
    # check for keys that are used twice would take it for a mistake.
    raw = jax.random.key_data(key)
    return tree(float(t0), float(t1), tol=tol, shape=(size,), key=raw)


def sdeint(
    key: Key[Array, ""],
    drift: Field,
    diffusion: Field,
    params: Params,
    y0: Float[Array, " D"],
    ts: Float[Array, " T"] | np.ndarray,
    *,
    step_size: float,
    solver: str = "heun",
    calculus: str = "stratonovich",
    max_steps: int = 4096,
) -> Float[Array, "T D"]:
    """One sample path at the times `ts`, by fixed steps.

    Args:
        key: of the noise.
        drift: `(t, z, params) -> [D]`.
        diffusion: `(t, z, params) -> [D]` (a noise of its own for every dimension) or
            `[D, M]`.
        params: of both; gradients flow.
        y0: state at `ts[0]`.
        ts: increasing times, known while tracing.
        step_size: of the fixed steps.
        solver: a name in `SOLVERS`.
        calculus: "ito" or "stratonovich": in which the equation is meant.
        max_steps: give up after so many.

    Raises:
        ValueError: for a solver of the other calculus, solvers that choose their steps
            by an error estimate for ordinary equations, and bad times.
    """
    if calculus not in ("ito", "stratonovich"):
        raise ValueError(f'calculus must be "ito" or "stratonovich", got {calculus!r}.')
    if solver not in SOLVERS:
        raise ValueError(
            f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}; solvers that "
            "adapt their steps to a smooth field do not converge with noise."
        )
    if SOLVERS[solver] != calculus:
        right = [name for name, meant in SOLVERS.items() if meant == calculus]
        raise ValueError(
            f"solver {solver!r} converges to the {SOLVERS[solver]} solution, calculus "
            f"is {calculus!r}; use {' or '.join(right)}."
        )
    ode.known(step_size=step_size)
    if not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}.")
    dfx = ode.library()
    known = np.asarray(ts)
    ts = ode.times(known)
    shape = jax.eval_shape(diffusion, ts[0], y0, params).shape
    size = y0.shape[0] if len(shape) == 1 else shape[1]

    def matrix(t, z, args):
        sigma = diffusion(t, z, args)
        return jnp.diag(sigma) if sigma.ndim == 1 else sigma

    path = brownian(key, known[0], known[-1], size, tol=step_size / 2)
    solution = dfx.diffeqsolve(
        dfx.MultiTerm(dfx.ODETerm(drift), dfx.ControlTerm(matrix, path)),
        getattr(dfx, _CLASSES[solver])(),
        t0=ts[0],
        t1=ts[-1],
        dt0=step_size,
        y0=y0,
        args=params,
        saveat=dfx.SaveAt(ts=ts),
        max_steps=max_steps,
        throw=False,
    )
    success = solution.result == dfx.RESULTS.successful
    return ode.reached(solution.ys, success, max_steps)


class Control(NamedTuple):
    """A cubic path through observations: times and coefficients of its pieces."""

    ts: Float[Array, " T"]
    coeffs: tuple[Float[Array, "T-1 C"], ...]


def cde_control(
    ts: Float[Array, " T"] | np.ndarray,
    xs: Float[Array, "T I"] | np.ndarray,
    *,
    mask: bool = False,
) -> Control:
    """Hermite cubics with backward differences through (time, observations).

    The path depends on no later observation, except inside a gap. Missing entries are
    NaN and bridged; with `mask` the path also has channels that count the observations
    of each dimension so far, so that being missing is information.

    Args:
        ts: increasing times.
        xs: observations; the first row must be whole.
        mask: whether entries may be missing; adds I channels.

    Returns:
        The path, of C = 1 + I channels, or 1 + 2 I with `mask`.

    Raises:
        ValueError: for NaN without `mask`, or in the first row.
    """
    dfx = ode.library()
    ts = ode.times(ts)
    missing = jnp.isnan(xs)
    if not isinstance(missing, jax.core.Tracer):
        if bool(missing.any()) and not mask:
            raise ValueError(
                f"xs has {int(missing.sum())} missing entries (NaN); mask=True bridges "
                "them and tells the path where they were."
            )
        if bool(missing[0].any()):
            raise ValueError(
                "xs must be whole in its first row, got NaN; start where everything "
                "was observed."
            )
    channels = [ts[:, None], jnp.asarray(xs)]
    if mask:
        channels.append(jnp.cumsum(jnp.where(missing, 0.0, 1.0), 0) / ts.shape[0])
    path = jnp.concatenate(channels, -1)
    coeffs = dfx.backward_hermite_coefficients(ts, path, fill_forward_nans_at_end=True)
    return Control(ts, coeffs)


def cdeint(
    field: Callable[[Array, Params], Array],
    params: Params,
    z0: Float[Array, " D"],
    control: Control,
    **options,
) -> tuple[Float[Array, " D"], ode.Stats]:
    """The last state of `dz = g(z; params) dX_t`, driven by a path.

    Args:
        field: `(z, params) -> [D, C]`.
        params: gradients flow.
        z0: state at the path's start; gradients flow.
        control: from `cde_control`.
        **options: of `ode.odeint`.
    """
    dfx = ode.library()
    path = dfx.CubicInterpolation(control.ts, control.coeffs)
    vf = lambda t, z, params: field(z, params) @ path.derivative(t)
    ends = jnp.stack([control.ts[0], control.ts[-1]])
    zs, stats = ode.odeint(vf, params, z0, ends, **options)
    return zs[-1], stats


def reversible_heun(
    key: Key[Array, ""],
    drift: Field,
    diffusion: Field | None,
    params: Params,
    y0: Float[Array, " D"],
    ts: Float[Array, " T"],
    *,
    sub_steps: int = 1,
) -> Float[Array, "T D"]:
    """States at the times `ts` by the reversible Heun method, second order for ODEs.

        ẑ' = 2 z - ẑ + f dt + s dW,      f', s' at (t + dt, ẑ')
        z' = z + (f + f') dt / 2 + (s + s') dW / 2

    The same equations solve for the state before: the way back recomputes the states
    instead of storing them. Only the rows returned take memory.

    Not for fields that contract strongly: whatever the step, z and ẑ come apart as
    fast as true motions come together. For y' = -2 y, y(0) = 1, with steps of 0.1 the
    state at t = 5 is -2.0 and at t = 10 -4e4 (Heun's method: 5e-5 and 2e-9); with steps
    of 0.01 it is -5 at t = 10.

    Args:
        key: of the noise; each step folds in its index.
        drift: `(t, z, params) -> [D]`.
        diffusion: as for `sdeint`, in the sense of Stratonovich; None: no noise.
        params: of both; gradients flow.
        y0: state at `ts[0]`; gradients flow.
        ts: times; no gradient.
        sub_steps: equal steps between two times.

    Raises:
        ValueError: for fewer than 1 sub-step.
    """
    if sub_steps < 1:
        raise ValueError(f"sub_steps must be at least 1, got {sub_steps}.")
    ts = jax.lax.stop_gradient(ode.times(ts))
    num = (ts.shape[0] - 1) * sub_steps

    def fields(params, t, z):
        noise = () if diffusion is None else diffusion(t, z, params)
        return drift(t, z, params), noise

    def time(ts, i):
        # One formula for a step's end and the next one's start: the way back must
        # call the fields at the very same times.
        row = jnp.minimum(i // sub_steps, ts.shape[0] - 2)
        dt = (ts[row + 1] - ts[row]) / sub_steps
        return ts[row] + (i - row * sub_steps) * dt

    def increments(ts, key, i):
        row = i // sub_steps
        dt = (ts[row + 1] - ts[row]) / sub_steps
        t = time(ts, i), time(ts, i + 1)
        if diffusion is None:
            return t, dt, ()
        shape = jax.eval_shape(diffusion, ts[0], y0, params).shape
        draw = jax.random.normal(jax.random.fold_in(key, i), shape[-1:], ts.dtype)
        return t, dt, jnp.sqrt(dt) * draw

    def moved(f, s, dt, dw):
        if diffusion is None:
            return f * dt
        return f * dt + (s * dw if s.ndim == 1 else s @ dw)

    def step(params, state, t, dt, dw):
        z, z_hat, f, s = state
        z_hat = 2 * z - z_hat + moved(f, s, dt, dw)
        f_next, s_next = fields(params, t[1], z_hat)
        half = 0.5 * (moved(f, s, dt, dw) + moved(f_next, s_next, dt, dw))
        return z + half, z_hat, f_next, s_next

    def step_back(params, state, t, dt, dw):
        z, z_hat, f, s = state
        z_hat = 2 * z - z_hat - moved(f, s, dt, dw)
        f_before, s_before = fields(params, t[0], z_hat)
        half = 0.5 * (moved(f, s, dt, dw) + moved(f_before, s_before, dt, dw))
        return z - half, z_hat, f_before, s_before

    def first(params, y0, ts):
        return y0, y0, *fields(params, ts[0], y0)

    def forward(params, y0, ts, key):
        def interval(state, row):
            def body(j, state):
                now = increments(ts, key, row * sub_steps + j)
                return step(params, state, *now)

            state = jax.lax.fori_loop(0, sub_steps, body, state)
            return state, state[0]

        rows = jnp.arange(ts.shape[0] - 1)
        state, ys = jax.lax.scan(interval, first(params, y0, ts), rows)
        return jnp.concatenate([y0[None], ys]), state

    @jax.custom_vjp
    def solve(params, y0, ts, key):
        return forward(params, y0, ts, key)[0]

    def solve_forward(params, y0, ts, key):
        ys, state = forward(params, y0, ts, key)
        return ys, (params, y0, ts, key, state)

    def solve_backward(kept, g):
        params, y0, ts, key, state = kept

        def body(j, carry):
            state, ct, ct_params = carry
            i = num - 1 - j
            now = increments(ts, key, i)
            # The row that ends here was returned: its cotangent joins.
            last = (i + 1) % sub_steps == 0
            joined = ct[0] + jnp.where(last, g[(i + 1) // sub_steps], 0.0)
            before = step_back(params, state, *now)
            _, pull = jax.vjp(lambda p, x: step(p, x, *now), params, before)
            more, ct = pull((joined, *ct[1:]))
            return before, ct, jax.tree.map(jnp.add, ct_params, more)

        zeros = jax.tree.map(jnp.zeros_like, (state, params))
        _, ct, ct_params = jax.lax.fori_loop(0, num, body, (state, *zeros))
        _, pull = jax.vjp(lambda p, y: first(p, y, ts), params, y0)
        more, ct_y0 = pull(ct)
        none = np.zeros(key.shape, jax.dtypes.float0)
        ct_params = jax.tree.map(jnp.add, ct_params, more)
        return ct_params, ct_y0 + g[0], jnp.zeros_like(ts), none

    solve.defvjp(solve_forward, solve_backward)
    return solve(params, y0, ts, key)
