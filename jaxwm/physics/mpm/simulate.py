"""The moving least squares material point method as a `Dynamics`.

    1. stress     τ = elasticity(F)
    2. to grid    A = -dt V 4/dx² τ + m C;  m_i, (mv)_i by `transfer`
    3. grid       v_i = (mv)_i / m_i + dt g, then walls
    4. from grid  v, C;  F_trial = (1 + dt C) F;  x += dt v
    5. plasticity F = plasticity(F_trial)

Explicit, first order in time. Particles carry everything, the grid is made anew in
every step. Units kg, m, s, Pa; the box is the unit square or cube (2-D: plane strain,
per metre of depth). Mass and, away from walls, momentum are exact. Energy is not: each
step loses what of the motion within a cell is not affine, so waves of a few cells fade,
the faster the shorter the step.

Source: Hu et al., "A Moving Least Squares Material Point Method with Displacement
Discontinuity and Two-Way Rigid Body Coupling", 2018; settings after Ma et al., ICML
2023. Shapes: N particles, d dimensions, n cells, A action.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxwm.physics.dynamics import Dynamics
from jaxwm.physics.mpm import boundary, plasticity, transfer
from jaxwm.physics.mpm.body import Body
from jaxwm.physics.mpm.law import Law, check
from jaxwm.types import Params

_EDGE = 0.5  # cells between a wall and the nearest place of a particle
_EMPTY = 1e-7  # kg/m^d; a node with less has no velocity of its own


class State(NamedTuple):
    """All that is Markov."""

    x: Float[Array, "N d"]  # m
    v: Float[Array, "N d"]  # m/s
    C: Float[Array, "N d d"]  # 1/s, gradient of the velocity
    F: Float[Array, "N d d"]  # gradient of the elastic deformation


def mpm(
    body: Body,
    elasticity: Law,
    plastic: Law | None = None,
    *,
    cells: int,
    dt: float,
    density: float = 1e3,
    gravity: Sequence[float] | None = None,
    walls: Callable | None = None,
    push: Callable | None = None,
    action_size: int = 0,
) -> Dynamics:
    """Makes the simulation of one body.

    Args:
        body: the particles at the start, from `block` or `ball`.
        elasticity: from `mpm.elasticity`, or a learnt one.
        plastic: from `mpm.plasticity`; None for none.
        cells: n, per axis; a cell of 2^d particles is usual.
        dt: length of a step, s; sound must not cross a cell in it.
        density: at rest, kg/m^d.
        gravity: m/s^2 per axis; None is 9.8 down the second axis.
        walls: from `mpm.boundary`; None is `free_slip()`.
        push: `(params, state, action [A]) -> acceleration [N, d]`, m/s^2; None where
            nothing acts.
        action_size: A.

    Returns:
        A `Dynamics` with `State`, observed as positions `[N d]`. Parameters:
        `elastic` and `plastic` (those of the laws), `density`, `gravity` `[d]`,
        `volume` `[N]`; all may be differentiated.

    Raises:
        ValueError: for settings without sense, and, from `init`, for missing or unknown
            parameters, particles in a wall, constants that no material has, and a `dt`
            that is too long.
    """
    shape = jnp.shape(body.x)
    if len(shape) != 2 or shape[1] not in (2, 3):
        raise ValueError(f"body.x must have the shape [N, 2] or [N, 3], got {shape}.")
    d = shape[1]
    if cells < 8:
        raise ValueError(f"cells must be at least 8, walls are 3 thick, got {cells}.")
    for name, value in (("dt", dt), ("density", density)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if (push is None) != (action_size == 0):
        raise ValueError(
            f"action_size must say what push takes, got {action_size} "
            f"{'without' if push is None else 'with'} a push."
        )
    down = [0.0, -9.8, 0.0][:d] if gravity is None else list(gravity)
    if len(down) != d:
        raise ValueError(f"gravity must have {d} numbers, one per axis, got {gravity}.")
    plastic = plasticity.identity() if plastic is None else plastic
    walls = boundary.free_slip() if walls is None else walls
    dx = 1 / cells
    params = {
        "elastic": elasticity.params,
        "plastic": plastic.params,
        "density": density,
        "gravity": jnp.asarray(down, body.x.dtype),
        "volume": body.volume,
    }
    known, one = set(params), jnp.eye(d, dtype=body.x.dtype)

    # Weights and strains are cheaper to compute again than to keep for a gradient.
    again = functools.partial(jax.checkpoint, prevent_cse=False)
    to_grid = again(lambda x, *a: transfer.between(x, cells).to_grid(*a))
    from_grid = again(lambda x, v: transfer.between(x, cells).from_grid(v))
    stress_of = again(functools.partial(over_particles, elasticity))
    returned = again(functools.partial(over_particles, plastic))

    def init(key, params: Params) -> State:
        del key  # the body is given
        _check_names(params, known)
        check(params["elastic"], elasticity.name)
        check(params["plastic"], plastic.name)
        _check_places(body.x, dx)
        _check_step(elasticity, params, dt, dx)
        return State(body.x, body.v, body.C, jnp.broadcast_to(one, (shape[0], d, d)))

    def step(params: Params, state: State, action) -> State:
        x, v, C, F = state
        mass = params["density"] * params["volume"]
        stress = stress_of(params["elastic"], F)
        if push is not None:
            v = v + dt * push(params, state, action)
        affine = mass[:, None, None] * C
        affine -= (dt * 4 / dx**2) * params["volume"][:, None, None] * stress
        grid_mass, momentum = to_grid(x, mass, mass[:, None] * v, affine)
        held = (grid_mass > _EMPTY * dx**d)[..., None]
        share = jnp.where(held, grid_mass[..., None], 1.0)
        velocity = jnp.where(held, momentum / share, 0.0) + dt * params["gravity"]
        v, C = from_grid(x, walls(velocity, cells))
        x = jnp.clip(x + dt * v, _EDGE * dx, 1 - _EDGE * dx)
        trial = F + dt * C @ F
        return State(x, v, C, returned(params["plastic"], trial))

    def observe(params, state: State):
        del params
        return state.x.reshape(-1)

    return Dynamics(init, step, observe, dt, action_size, params)


def over_particles(law: Law, params: Params, F: Array) -> Array:
    """Applies a law to every particle, `[N, d, d]` to the same."""
    return jax.vmap(law.apply, (None, 0))(params, F)


class Energy(NamedTuple):
    """Where the energy of a body is, J (2-D: per metre of depth)."""

    kinetic: Float[Array, ""]  # of particles and of their affine motion
    elastic: Float[Array, ""]
    potential: Float[Array, ""]  # in gravity


def energy(law: Law, params: Params, state: State, cells: int) -> Energy:
    """Energies of a state under an elastic law that has one.

    kinetic = Σ m (|v|² + dx²/4 |C|²) / 2
    """
    if law.energy is None:
        raise ValueError(f"law must have an energy, {law.name} has none.")
    mass = params["density"] * params["volume"]
    affine = jnp.sum(state.C**2, (1, 2)) / (4 * cells**2)
    stored = jax.vmap(law.energy, (None, 0))(params["elastic"], state.F)
    return Energy(
        0.5 * jnp.sum(mass * (jnp.sum(state.v**2, 1) + affine)),
        jnp.sum(params["volume"] * stored),
        -jnp.sum(mass * (state.x @ params["gravity"])),
    )


def first_inversion(
    F: Float[Array, "T N d d"],
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Step and particle of the first det F <= 0 (or NaN) of a path; -1, -1 if none."""
    bad = ~(jnp.linalg.det(F) > 0)
    place = jnp.argmax(bad.reshape(-1))
    step, particle = jnp.divmod(place, F.shape[1])
    found = jnp.any(bad)
    return jnp.where(found, step, -1), jnp.where(found, particle, -1)


def _check_names(params: Params, known: set[str]) -> None:
    if set(params) != known:
        raise ValueError(
            f"params must have {sorted(known)}, got {sorted(params)}; start from the "
            "`params` of the Dynamics."
        )


def _check_places(x: Array, dx: float) -> None:
    if isinstance(x, jax.core.Tracer):
        return
    x, low, high = np.asarray(x), 3 * dx, 1 - 3 * dx
    if not np.all((x >= low) & (x <= high)):
        raise ValueError(
            f"body.x must lie in [{low:.4g}, {high:.4g}], three cells away from the "
            f"walls, got values from {x.min():.4g} to {x.max():.4g}; move the body or "
            "take more cells."
        )


def _check_step(elasticity: Law, params: Params, dt: float, dx: float) -> None:
    leaves = jax.tree.leaves((params["elastic"], params["density"]))
    if elasticity.modulus is None or any(
        isinstance(leaf, jax.core.Tracer) for leaf in leaves
    ):
        return
    fastest = np.max(elasticity.modulus(params["elastic"]) / params["density"]) ** 0.5
    if not dt < dx / fastest:
        raise ValueError(
            f"dt must be below {dx / fastest:.3g} s, in which sound of "
            f"{fastest:.3g} m/s crosses a cell, got {dt}; shorten dt, soften the body."
        )
