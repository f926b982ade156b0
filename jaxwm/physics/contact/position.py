"""Contact as a correction of positions.

Source: Macklin et al., "XPBD: Position-Based Simulation of Compliant Constrained
Dynamics", 2016. Shapes: Q coordinates, C contacts.
"""

import jax
import jax.numpy as jnp

from jaxwm.physics.bodies import (
    State,
    acceleration,
    contact_jacobians,
    mass_matrix,
)
from jaxwm.physics.contact.model import Contact


def position_based(
    *,
    compliance: float = 0.0,
    restitution: float = 0.0,
    friction: float = 0.0,
    iterations: int = 10,
) -> Contact:
    """Moves positions out of penetration and reads the velocity off the motion (XPBD).

        Δλ = (-phi - α λ) / (J_n M⁻¹ J_n' + α),   q <- q + M⁻¹ J_n' Δλ

    with α = compliance / dt².
    λ is kept from pulling; friction moves the contact back along the surface with a
    multiplier of at most mu λ. Differentiated through its sweeps.

    Source: Macklin et al., "XPBD", 2016.
    """

    def advance(system, params, state, action, dt):
        q0, v0 = state
        v = v0 + dt * acceleration(system, params, q0, v0, action)
        inverse = jnp.linalg.inv(mass_matrix(system, params, q0))
        alpha = params["compliance"] / dt**2
        slid = system.slides(params, q0)
        touched = jnp.zeros(system.num_contacts, bool)

        def sweep(_, carry):
            q, pressure, drag, touched = carry
            for c in range(system.num_contacts):
                normal, tangent = contact_jacobians(system, params, q)
                gap = system.gaps(params, q)[c]
                weight = normal[c] @ inverse @ normal[c]
                change = (-gap - alpha * pressure[c]) / (weight + alpha)
                new = jnp.maximum(pressure[c] + change, 0.0)
                q = q + inverse @ normal[c] * (new - pressure[c])
                pressure = pressure.at[c].set(new)
                touched = touched.at[c].set(touched[c] | (new > 0))
                along = system.slides(params, q)[c] - slid[c]
                weight = tangent[c] @ inverse @ tangent[c]
                limit = params["friction"] * new
                held = drag[c] - along / jnp.where(weight > 0, weight, 1.0)
                held = jnp.where(weight > 0, jnp.clip(held, -limit, limit), 0.0)
                q = q + inverse @ tangent[c] * (held - drag[c])
                drag = drag.at[c].set(held)
            return q, pressure, drag, touched

        zeros = jnp.zeros(system.num_contacts, q0.dtype)
        carry = (q0 + dt * v, zeros, zeros, touched)
        # Sweeps are cheaper to run again than to keep.
        sweep = jax.checkpoint(sweep)
        q, _, _, touched = jax.lax.fori_loop(0, iterations, sweep, carry)
        v = (q - q0) / dt
        # Positions know no bounce: the rebound is added to the velocity that is left.
        normal, _ = contact_jacobians(system, params, q)
        wanted = -params["restitution"] * jnp.minimum(normal @ v0, 0.0)
        for c in range(system.num_contacts):
            lack = jnp.maximum(wanted[c] - normal[c] @ v, 0.0)
            weight = normal[c] @ inverse @ normal[c]
            v = v + inverse @ normal[c] * jnp.where(touched[c], lack / weight, 0.0)
        return State(q, v)

    params = dict(compliance=compliance, restitution=restitution, friction=friction)
    return Contact("position based", params, advance)
