"""Contact as a jump of the velocity.

Source: Hu et al., "DiffTaichi", ICLR 2020 (time of impact); saltation: Aizerman and
Gantmacher, 1958. Shapes: Q coordinates, C contacts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxwm.physics.bodies import (
    State,
    System,
    acceleration,
    contact_jacobians,
    solve_mass,
)
from jaxwm.physics.contact.model import Contact
from jaxwm.types import Params


def impulse(*, restitution: float = 1.0, friction: float = 0.0) -> Contact:
    """Reverses the velocity of whatever has penetrated at the start of a step.

        v_n < 0 and phi < 0:   v_n <- -e v_n

    Its values are fine for small steps. Its gradient is wrong, and kept as a warning:
    it misses how the time of the impact depends on the state. An elastic bounce that
    starts higher ends as much lower; this model says higher.
    """

    def advance(system, params, state, action, dt):
        q, v = state
        hit = system.gaps(params, q) < 0
        v = v + dt * acceleration(system, params, q, v, action)
        v = collide(system, params, q, v, hit, params["restitution"])
        return State(q + dt * v, v)

    return Contact("impulse", dict(restitution=restitution, friction=friction), advance)


def time_of_impact(
    *, restitution: float = 1.0, friction: float = 0.0, bounces: int = 2
) -> Contact:
    """Stops a step at the moment of touch, bounces there, and goes on.

    Between impacts a step follows `q + t v + t² a / 2`. The time tau of the first
    gap to close is found by bisection, and has the derivative of the equation
    `phi(q(tau)) = 0`, which carries the saltation term that `impulse` misses. After
    `bounces` impacts in one step the rest of it is spent at rest on the surface.
    """
    if bounces < 1:
        raise ValueError(f"bounces must be at least 1 per step, got {bounces}.")

    def advance(system, params, state, action, dt):
        q, v = state
        left = jnp.asarray(dt, q.dtype)
        for _ in range(bounces):
            q, v, left = _to_impact(system, params, q, v, action, left)
        a = acceleration(system, params, q, v, action)
        after = q + left * v + 0.5 * left**2 * a
        below = system.gaps(params, after) < 0
        # Zeno: too many bounces for one step. Velocities into the surface are dropped.
        resting = collide(system, params, q, v + left * a, below, 0.0)
        stuck = jnp.any(below)
        return State(
            jnp.where(stuck, q + left * resting, after),
            jnp.where(stuck, resting, v + left * a),
        )

    params = dict(restitution=restitution, friction=friction)
    return Contact("time of impact", params, advance)


def collide(
    system: System,
    params: Params,
    q: Float[Array, " Q"],
    v: Float[Array, " Q"],
    hit: Bool[Array, " C"],
    restitution: Float[Array, ""] | float,
) -> Float[Array, " Q"]:
    """Velocity after an impact at the contacts that are `hit`, one after another.

    `v_n <- -e v_n` where v_n < 0, and a tangential impulse of at most mu times the
    normal one against the sliding.
    """
    normal, tangent = contact_jacobians(system, params, q)
    answers = solve_mass(system, params, q, jnp.concatenate([normal, tangent]).T)
    push, pull = jnp.split(answers.T, 2)  # change of v by unit impulses, [C, Q] each
    for c in range(system.num_contacts):
        speed = normal[c] @ v
        size = -(1 + restitution) * speed / (normal[c] @ push[c])
        size = jnp.where(hit[c] & (speed < 0), size, 0.0)
        v = v + push[c] * size
        weight = tangent[c] @ pull[c]
        limit = params["friction"] * size
        drag = -(tangent[c] @ v) / jnp.where(weight > 0, weight, 1.0)
        drag = jnp.where(weight > 0, jnp.clip(drag, -limit, limit), 0.0)
        v = v + pull[c] * drag
    return v


def _to_impact(system, params, q, v, action, left):
    """Moves to the first impact within `left` seconds and through it; else nowhere."""
    a = acceleration(system, params, q, v, action)
    at = lambda t: q + t * v + 0.5 * t**2 * a
    gap = lambda t: system.gaps(params, at(t))

    def closing(t):
        return jax.jvp(gap, (t,), (jnp.ones_like(t),))[1]

    zero = jnp.zeros_like(left)
    # A gap that is closed already counts only while it is closing further.
    begins = (gap(zero) > 0) | (closing(zero) < 0)
    hits = begins & (gap(left) < 0)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        inside = jax.vmap(gap)(middle).diagonal() < 0
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    low = jnp.zeros(system.num_contacts, q.dtype)
    # One step of Newton's method follows, which squares what is left of the error.
    ends = jax.lax.fori_loop(0, 25, halve, jax.lax.stop_gradient((low, low + left)))
    times = jnp.where(hits, ends[1], jnp.inf)
    first = jnp.argmin(times)
    some = jnp.any(hits)
    tau = jax.lax.stop_gradient(jnp.where(some, times[first], 0.0))
    slope = jax.lax.stop_gradient(closing(tau)[first])
    # The derivative of the root; where nothing is hit this is not used.
    tau = tau - (gap(tau)[first]) / jnp.where(slope < 0, slope, -1.0)
    chosen = jnp.arange(system.num_contacts) == first
    there, speed = at(tau), v + tau * a
    new = collide(system, params, there, speed, chosen, params["restitution"])
    return (
        jnp.where(some, there, q),
        jnp.where(some, new, v),
        jnp.where(some, left - tau, left),
    )
