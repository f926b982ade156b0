"""Contact as impulses that may push but not pull, and only where something touches.

Source: Stewart and Trinkle, 1996 (time stepping); de Avila Belbute-Peres et al., 2018
(implicit derivative); Howell et al., "Dojo", 2022 (central path).
Shapes: Q coordinates, C contacts.
"""

import jax
import jax.numpy as jnp

from jaxwm.physics import implicit
from jaxwm.physics.bodies import (
    State,
    acceleration,
    contact_jacobians,
    mass_matrix,
)
from jaxwm.physics.contact.model import Contact


def complementarity(
    *,
    restitution: float = 0.0,
    friction: float = 0.0,
    softness: float = 1e-8,
    correction: float = 0.1,
    sweeps: int = 50,
) -> Contact:
    """Velocity-level linear complementarity with Coulomb friction.

        0 <= λ_n  ⊥  J_n v' + e J_n v >= 0,   |λ_t| <= mu λ_n,
        v' = v + dt a + M⁻¹ (J_n' λ_n + J_t' λ_t)

    solved by projected Gauss-Seidel for contacts that would close within the step. The
    derivative is implicit, with each contact's status (separating, sticking, sliding)
    frozen: the solver itself is not differentiated.

    Args:
        restitution: e.
        friction: mu.
        softness: added to the diagonal of J M⁻¹ J'.
        correction: share of a penetration that is pushed out per step.
        sweeps: of the solver, a fixed number.
    """

    def advance(system, params, state, action, dt):
        free, normal, tangent, inverse, active = _prepare(
            system, params, state, action, dt
        )
        q, v = state
        jacobian = jnp.concatenate([normal, tangent])
        a = jacobian @ inverse @ jacobian.T
        a = a + softness * jnp.eye(len(a), dtype=a.dtype)
        push = correction * jnp.minimum(system.gaps(params, q), 0.0) / dt
        rebound = params["restitution"] * jnp.minimum(normal @ v, 0.0)
        b = jnp.concatenate([normal @ free + push + rebound, tangent @ free])
        mu = params["friction"]
        found = jax.lax.stop_gradient(
            _gauss_seidel(*jax.lax.stop_gradient((a, b, mu)), active, sweeps)
        )
        num = system.num_contacts
        size, drag = jnp.split(found, [num])
        bound = jax.lax.stop_gradient(mu) * size
        pressed = active & (size > 0)
        sliding = jnp.abs(drag) >= bound * (1 - 1e-9)
        held = pressed & ~sliding

        def residual(impulses):
            away = a @ impulses + b
            normal_part, tangent_part = jnp.split(impulses, [num])
            slips = tangent_part - jnp.sign(drag) * mu * normal_part
            return jnp.concatenate(
                [
                    jnp.where(pressed, away[:num], normal_part),
                    jnp.where(
                        held, away[num:], jnp.where(pressed, slips, tangent_part)
                    ),
                ]
            )

        impulses = implicit.differentiable(residual, found)
        v = free + inverse @ jacobian.T @ impulses
        return State(q + dt * v, v)

    params = dict(restitution=restitution, friction=friction)
    return Contact("complementarity", params, advance)


def interior_point(
    *,
    kappa: float = 1e-4,
    friction: float = 0.0,
    slip: float = 1e-2,
    iterations: int = 30,
) -> Contact:
    """Complementarity relaxed to the central path, which is smooth.

        λ_n s = kappa,   s = J_n v' + phi / dt > 0,
        λ_t sqrt(v_t'² + slip²) = -mu λ_n v_t'

    solved by Newton's method on `λ + s - sqrt((λ - s)² + 4 kappa) = 0`, with the
    implicit derivative. Contacts push a little at any distance: kappa (J) trades bias
    for a gradient that knows of contacts to come.

    Source: Howell et al., "Dojo", 2022 (central path); Chen and Harker, 1993 (the
    smoothing of the complementarity condition).
    """
    if not kappa > 0:
        raise ValueError(
            f"kappa must be positive, got {kappa}; physics.contact.complementarity is "
            "the model without smoothing."
        )

    def advance(system, params, state, action, dt):
        free, normal, tangent, inverse, _ = _prepare(system, params, state, action, dt)
        q = state.q
        num = system.num_contacts
        gap = system.gaps(params, q)
        jacobian = jnp.concatenate([normal, tangent])
        a = jacobian @ inverse @ jacobian.T
        b = jacobian @ free

        def residual(impulses):
            push, drag = jnp.split(impulses, [num])
            speed = a @ impulses + b
            away = speed[:num] + jnp.maximum(gap, 0.0) / dt
            along = speed[num:]
            return jnp.concatenate(
                [
                    push + away - jnp.sqrt((push - away) ** 2 + 4 * kappa),
                    drag * jnp.sqrt(along**2 + slip**2)
                    + params["friction"] * push * along,
                ]
            )

        near = 2 * jnp.maximum(-b[:num], 0) / jnp.diag(a)[:num] + jnp.sqrt(kappa)
        first = jnp.concatenate([near, jnp.zeros(num, near.dtype)])
        impulses = implicit.newton(residual, first, iterations=iterations)
        v = free + inverse @ jacobian.T @ impulses
        return State(q + dt * v, v)

    params = dict(friction=friction)
    return Contact("interior point", params, advance)


def _prepare(system, params, state, action, dt):
    """Velocity without contact, Jacobians, inverse mass, and which gaps would close."""
    q, v = state
    free = v + dt * acceleration(system, params, q, v, action)
    normal, tangent = contact_jacobians(system, params, q)
    inverse = jnp.linalg.inv(mass_matrix(system, params, q))
    active = system.gaps(params, q) + dt * (normal @ free) < 0
    return free, normal, tangent, inverse, active


def _gauss_seidel(a, b, mu, active, sweeps: int):
    """Impulses `[2 C]`, normal ones first, within their bounds."""
    num = len(b) // 2

    def sweep(_, x):
        for i in range(len(b)):
            new = x[i] - (a[i] @ x + b[i]) / a[i, i]
            if i < num:
                new = jnp.maximum(new, 0.0)
            else:
                new = jnp.clip(new, -mu * x[i - num], mu * x[i - num])
            x = x.at[i].set(jnp.where(active[i % num], new, 0.0))
        return x

    return jax.lax.fori_loop(0, sweeps, sweep, jnp.zeros_like(b))
