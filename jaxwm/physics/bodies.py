"""Planar rigid bodies from their energies: q'' follows by Euler and Lagrange.

    M(q) = d²T/dv²,   M q'' = Q(q, v, u) + dT/dq - dV/dq - (d²T/dv dq) v

A `System` names kinetic energy T, potential energy V and applied forces Q; where it can
touch something it also names gaps and how far each contact point has slid. Everything
else (mass matrix, Coriolis forces, Jacobians of contacts) is derived from these by
automatic differentiation, so that a new system costs its energies.

Units are kg, m, s, rad, N. The vertical is y, upwards. Shapes: Q coordinates, A action,
C possible contacts. Parameters are dicts of scalars, every one differentiable.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxwm.types import Params

GRAVITY = 9.81  # m/s^2


class State(NamedTuple):
    """Configuration and its rate."""

    q: Float[Array, " Q"]
    v: Float[Array, " Q"]


class System(NamedTuple):
    """What a rigid-body system is, before anyone decides how it touches."""

    name: str
    size: int  # Q
    action_size: int  # A
    params: Params  # defaults
    kinetic: Callable  # (params, q, v) -> T [J]
    potential: Callable  # (params, q) -> V [J]
    applied: Callable  # (params, q, v, u) -> generalised forces [Q]
    gaps: Callable  # (params, q) -> [C] m, negative in penetration
    slides: Callable  # (params, q) -> [C] m along the surface, growing to the right
    num_contacts: int = 0  # C


def mass_matrix(system: System, params: Params, q) -> Float[Array, "Q Q"]:
    """`M(q) = d²T/dv²`, symmetric and positive definite."""
    zeros = jnp.zeros_like(q)
    return jax.hessian(lambda v: system.kinetic(params, q, v))(zeros)


def forces(system: System, params: Params, q, v, u) -> Float[Array, " Q"]:
    """Everything but contact on the right of `M q'' = ...`."""
    momentum = lambda q: jax.grad(system.kinetic, 2)(params, q, v)
    _, turning = jax.jvp(momentum, (q,), (v,))
    pull = jax.grad(
        lambda q: system.kinetic(params, q, v) - system.potential(params, q)
    )
    return system.applied(params, q, v, u) + pull(q) - turning


def acceleration(system: System, params: Params, q, v, u) -> Float[Array, " Q"]:
    """Second derivative of q, without contact."""
    return solve_mass(system, params, q, forces(system, params, q, v, u))


def solve_mass(
    system: System, params: Params, q: Float[Array, " Q"], force: Float[Array, "Q ..."]
) -> Float[Array, "Q ..."]:
    """`M(q)⁻¹ force`, of one force or of columns of them.

    Derivatives of any order are exact. They are taken of the product M a, which costs
    as much as a column, and not of the matrix:

        M da = dforce - d(M a) at a held
    """

    @jax.custom_jvp
    def solve(params, q, force):
        return jnp.linalg.solve(mass_matrix(system, params, q), force)

    def tangent(primals, tangents):
        params, q, force = primals
        factors = jax.scipy.linalg.lu_factor(mass_matrix(system, params, q))
        a = jax.scipy.linalg.lu_solve(factors, force)
        inputs, tree = jax.tree.flatten((params, q))
        rates = tree.flatten_up_to(tangents[:2])
        moving = [i for i, rate in enumerate(rates) if not _still(rate)]

        def product(*changed):
            own = list(inputs)
            for i, leaf in zip(moving, changed, strict=True):
                own[i] = leaf
            params, q = tree.unflatten(own)
            momentum = lambda v: jax.grad(system.kinetic, 2)(params, q, v)
            push = lambda a: jax.jvp(momentum, (jnp.zeros_like(q),), (a,))[1]
            return push(a) if a.ndim == 1 else jax.vmap(push, 1, 1)(a)

        change = jnp.zeros_like(force) if _still(tangents[2]) else tangents[2]
        if moving:
            at = [jnp.asarray(inputs[i]) for i in moving]
            _, held = jax.jvp(product, at, [rates[i] for i in moving])
            change = change - held
        return a, jax.scipy.linalg.lu_solve(factors, change)

    # Without symbolic zeros what is held still would be differentiated too.
    solve.defjvp(tangent, symbolic_zeros=True)
    return solve(params, q, force)


def energy(system: System, params: Params, state: State) -> Float[Array, ""]:
    """Kinetic and potential energy, J."""
    moving = system.kinetic(params, state.q, state.v)
    return moving + system.potential(params, state.q)


def contact_jacobians(
    system: System, params: Params, q
) -> tuple[Float[Array, "C Q"], Float[Array, "C Q"]]:
    """Rates of gaps and slides: normal and tangential velocity are `J v`."""
    # One pass per contact, or one per coordinate where there are fewer of these.
    jacobian = jax.jacrev if system.num_contacts < system.size else jax.jacfwd
    normal = jacobian(lambda q: system.gaps(params, q))(q)
    tangent = jacobian(lambda q: system.slides(params, q))(q)
    return normal, tangent


def point_mass(*, walls: bool = False, gravity: float = GRAVITY) -> System:
    """A ball in the plane over a floor at y = 0; q = (x, y) of its centre.

    Args:
        walls: also a wall at x = `wall`, on the right.
        gravity: default of the parameter, m/s^2.
    """
    params = dict(mass=1.0, radius=0.0, gravity=gravity)
    params |= dict(wall=1.0) if walls else {}

    def gaps(params, q):
        floor = q[1] - params["radius"]
        if not walls:
            return floor[None]
        return jnp.stack([floor, params["wall"] - params["radius"] - q[0]])

    def slides(params, q):
        del params
        return jnp.stack([q[0], -q[1]]) if walls else q[:1]

    return System(
        "point mass",
        2,
        2,
        params,
        lambda p, q, v: 0.5 * p["mass"] * v @ v,
        lambda p, q: p["mass"] * p["gravity"] * q[1],
        lambda p, q, v, u: u,
        gaps,
        slides,
        2 if walls else 1,
    )


def sliding_block() -> System:
    """A block that rests on the floor and is pushed along it; q = (x, y)."""
    return point_mass()._replace(
        name="sliding block",
        action_size=1,
        applied=lambda p, q, v, u: jnp.stack([u[0], 0.0 * u[0]]),
    )


def pendulum() -> System:
    """A uniform rod about its end; q = angle from upright, u = torque."""
    params = dict(mass=1.0, length=1.0, friction=0.0, gravity=GRAVITY)

    def kinetic(p, q, v):
        return p["mass"] * p["length"] ** 2 * v[0] ** 2 / 6

    def potential(p, q):
        return 0.5 * p["mass"] * p["gravity"] * p["length"] * jnp.cos(q[0])

    return _free("pendulum", 1, 1, params, kinetic, potential, lambda p, v, u: u)


def cartpole() -> System:
    """A cart on a rail and a rod on it; q = (x, angle from upright), u = force.

    The rod is uniform, of half length `length`. Gains 10 N per unit of action.
    """
    params = dict(
        cart_mass=1.0,
        pole_mass=0.1,
        length=0.5,
        gain=10.0,
        friction=0.0,
        gravity=GRAVITY,
    )

    def kinetic(p, q, v):
        x_dot, omega = v
        centre = jnp.stack(
            [
                x_dot + p["length"] * jnp.cos(q[1]) * omega,
                -p["length"] * jnp.sin(q[1]) * omega,
            ]
        )
        spin = p["pole_mass"] * p["length"] ** 2 * omega**2 / 3
        falling = p["pole_mass"] * centre @ centre
        return 0.5 * (p["cart_mass"] * x_dot**2 + falling + spin)

    def potential(p, q):
        return p["pole_mass"] * p["gravity"] * p["length"] * jnp.cos(q[1])

    def applied(p, v, u):
        return jnp.stack([p["gain"] * u[0], 0.0 * u[0]])

    return _free("cartpole", 2, 1, params, kinetic, potential, applied)


def two_link_arm() -> System:
    """Two uniform rods in a vertical plane, a motor at each joint.

    q = (shoulder from hanging, elbow relative to it); the tip may touch a floor at
    `floor` below the shoulder.
    """
    params = dict(
        upper_mass=1.0,
        fore_mass=0.8,
        upper_length=0.5,
        fore_length=0.4,
        friction=0.0,
        gravity=GRAVITY,
        floor=-2.0,
    )

    def points(p, q):
        """Elbow and tip."""
        turn = jnp.stack([q[0], q[0] + q[1]])
        way = jnp.stack([jnp.sin(turn), -jnp.cos(turn)], -1)
        elbow = p["upper_length"] * way[0]
        return elbow, elbow + p["fore_length"] * way[1]

    def centres(p, q):
        elbow, tip = points(p, q)
        return jnp.stack([0.5 * elbow, 0.5 * (elbow + tip)])

    def kinetic(p, q, v):
        _, rates = jax.jvp(lambda q: centres(p, q), (q,), (v,))
        masses = jnp.stack([p["upper_mass"], p["fore_mass"]])
        lengths = jnp.stack([p["upper_length"], p["fore_length"]])
        spins = jnp.stack([v[0], v[0] + v[1]])
        moving = masses * jnp.sum(rates**2, -1)
        return 0.5 * jnp.sum(moving + masses * lengths**2 / 12 * spins**2)

    def potential(p, q):
        heights = centres(p, q)[:, 1]
        masses = jnp.stack([p["upper_mass"], p["fore_mass"]])
        return p["gravity"] * masses @ heights

    arm = _free("two-link arm", 2, 2, params, kinetic, potential, lambda p, v, u: u)
    return arm._replace(
        gaps=lambda p, q: points(p, q)[1][1:] - p["floor"],
        slides=lambda p, q: points(p, q)[1][:1],
        num_contacts=1,
    )


def pusher() -> System:
    """A driven ball and a box on a rail; q = (ball, box), the ball on the left.

    Nothing but contact moves the box; it is braked by viscous friction `drag`.
    """
    params = dict(ball_mass=1.0, box_mass=1.0, reach=0.1, drag=1.0)
    return System(
        "pusher",
        2,
        1,
        params,
        lambda p, q, v: 0.5 * (p["ball_mass"] * v[0] ** 2 + p["box_mass"] * v[1] ** 2),
        lambda p, q: jnp.zeros((), q.dtype),
        lambda p, q, v, u: jnp.stack([u[0], -p["drag"] * v[1]]),
        lambda p, q: (q[1] - q[0] - p["reach"])[None],
        lambda p, q: jnp.zeros_like(q[:1]),
        1,
    )


def hopper() -> System:
    """A body, a hip and a leg that changes its length, in the plane.

    q = (x, y of the body, leg angle from straight down, leg length); u = (hip torque,
    force along the leg). A spring of stiffness `spring` holds the leg at `rest`.
    """
    params = dict(
        body_mass=1.0,
        foot_mass=0.1,
        leg_inertia=0.05,
        spring=200.0,
        damping=2.0,
        rest=0.5,
        gravity=GRAVITY,
    )

    def foot(q):
        return q[:2] + q[3] * jnp.stack([jnp.sin(q[2]), -jnp.cos(q[2])])

    def kinetic(p, q, v):
        _, rate = jax.jvp(foot, (q,), (v,))
        body = p["body_mass"] * v[:2] @ v[:2]
        return 0.5 * (
            body + p["foot_mass"] * rate @ rate + p["leg_inertia"] * v[2] ** 2
        )

    def potential(p, q):
        lifted = p["body_mass"] * q[1] + p["foot_mass"] * foot(q)[1]
        return p["gravity"] * lifted + 0.5 * p["spring"] * (q[3] - p["rest"]) ** 2

    def applied(p, q, v, u):
        zero = 0.0 * u[0]
        return jnp.stack([zero, zero, u[0], u[1] - p["damping"] * v[3]])

    return System(
        "hopper",
        4,
        2,
        params,
        kinetic,
        potential,
        applied,
        lambda p, q: foot(q)[1:],
        lambda p, q: foot(q)[:1],
        1,
    )


def check(system: System, params: Params) -> None:
    """Refuses parameters that no body has.

    Raises:
        ValueError: for unknown or missing names, and for masses, lengths, inertias and
            stiffnesses that are not positive (Python and NumPy numbers only: traced
            values cannot be looked at).
    """
    unknown = sorted(set(params) ^ set(system.params))
    if unknown:
        raise ValueError(
            f"params of the {system.name} must be {sorted(system.params)}, got "
            f"{sorted(params)}; {unknown} are unknown or missing."
        )
    for name, value in params.items():
        if isinstance(value, jax.core.Tracer):
            continue
        positive = name.endswith(("mass", "length", "inertia", "stiffness"))
        value = np.asarray(value)
        if not np.all(np.isfinite(value)) or (positive and not np.all(value > 0)):
            what = "positive and finite" if positive else "finite"
            raise ValueError(f"{name} must be {what}, got {value}.")


def _still(rate) -> bool:
    """Whether a tangent is known to be zero; those of whole numbers always are."""
    return isinstance(rate, SymbolicZero) or rate.dtype == jax.dtypes.float0


def _free(name, size, action_size, params, kinetic, potential, applied) -> System:
    """A system that touches nothing, with viscous friction at its joints."""

    def total(p, q, v, u):
        return applied(p, v, u) - p["friction"] * v

    none = lambda p, q: jnp.zeros(0, q.dtype)
    return System(
        name, size, action_size, params, kinetic, potential, total, none, none
    )
