"""Contact as a force that grows with penetration.

Source: Hunt and Crossley, "Coefficient of Restitution Interpreted as Damping in
Vibroimpact", 1975. Shapes: Q coordinates, C contacts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxwm.physics import integrate
from jaxwm.physics.bodies import State, contact_jacobians, forces, solve_mass
from jaxwm.physics.contact.model import Contact


def compliant(
    *,
    stiffness: float = 1e4,
    damping: float = 0.0,
    friction: float = 0.0,
    slip: float = 1e-2,
    integrator: Callable = integrate.semi_implicit_euler,
) -> Contact:
    """Penalty forces of penetration p = max(0, -phi), after Hunt and Crossley.

        f_n = max(0, k p - c p phi'),   f_t = -mu f_n v_t / sqrt(v_t² + slip²)

    Args:
        stiffness: k, N/m. Semi-implicit steps are stable for dt sqrt(k/m) < 2.
        damping: c, N s/m².
        friction: mu.
        slip: velocity around which friction turns, m/s; no parameter.
        integrator: of the forces, from `physics.integrate`.
    """
    depth = lambda gap: jnp.maximum(-gap, 0.0)
    return _penalty("compliant", depth, stiffness, damping, friction, slip, integrator)


def smoothed(
    *,
    width: float = 1e-2,
    stiffness: float = 1e4,
    damping: float = 0.0,
    friction: float = 0.0,
    slip: float = 1e-2,
    integrator: Callable = integrate.semi_implicit_euler,
) -> Contact:
    """`compliant` with the penetration `p = width softplus(-phi / width)`.

    There is a gradient before anything touches; the bias is O(width), in m.
    """
    depth = lambda gap: width * jax.nn.softplus(-gap / width)
    return _penalty("smoothed", depth, stiffness, damping, friction, slip, integrator)


def _penalty(name, depth, stiffness, damping, friction, slip, integrator) -> Contact:
    def advance(system, params, state, action, dt):
        def acceleration(q, v):
            normal, tangent = contact_jacobians(system, params, q)
            p = depth(system.gaps(params, q))
            approach = params["damping"] * p * (normal @ v)
            push = jnp.maximum(params["stiffness"] * p - approach, 0.0)
            speed = tangent @ v
            drag = -params["friction"] * push * speed / jnp.sqrt(speed**2 + slip**2)
            total = forces(system, params, q, v, action)
            total = total + normal.T @ push + tangent.T @ drag
            return solve_mass(system, params, q, total)

        return State(*integrator(acceleration, *state, dt))

    params = dict(stiffness=stiffness, damping=damping, friction=friction)
    return Contact(name, params, advance)
