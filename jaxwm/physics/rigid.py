"""`Dynamics` of a planar rigid-body system with a model of contact."""

import jax.numpy as jnp

from jaxwm.physics import bodies, contact
from jaxwm.physics.bodies import State, System
from jaxwm.physics.contact import Contact
from jaxwm.physics.dynamics import Dynamics


def rigid(
    system: System,
    touch: Contact | None = None,
    *,
    dt: float,
    start: State | None = None,
) -> Dynamics:
    """Puts a system and a contact model together.

    Args:
        system: from `physics.bodies`.
        touch: from `physics.contact`; None for systems that touch nothing, or
            `contact.none(integrator)` for another integrator than the usual one.
        dt: length of a step, s.
        start: initial state; None is zero everywhere.

    Returns:
        A `Dynamics` whose state is `bodies.State(q, v)`, observed as `[q, v]`, and
        whose parameters are those of the system and of the contact model in one dict.

    Raises:
        ValueError: for `dt` that is not positive, a contact model for a system without
            contacts, and, from `init`, parameters that no body has.
    """
    if not dt > 0:
        raise ValueError(f"dt must be positive, in seconds, got {dt}.")
    touch = contact.none() if touch is None else touch
    if touch.name != "none" and not system.num_contacts:
        raise ValueError(
            f"the {system.name} touches nothing; leave out the contact model "
            f'"{touch.name}".'
        )
    params = {**system.params, **touch.params}
    known = system._replace(params=params)

    def init(key, params):
        del key  # starts are not random
        bodies.check(known, params)
        zeros = jnp.zeros(system.size)
        return State(zeros, zeros) if start is None else State(*map(jnp.asarray, start))

    def step(params, state, action):
        return touch.advance(system, params, State(*state), action, dt)

    def observe(params, state):
        del params
        return jnp.concatenate([state.q, state.v])

    return Dynamics(init, step, observe, dt, system.action_size, params)
