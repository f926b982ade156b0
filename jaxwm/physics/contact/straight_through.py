"""Contact that is felt before it happens."""

import jax

from jaxwm.physics.contact.model import Contact


def straight_through(hard: Contact, soft: Contact) -> Contact:
    """The values of `hard` with the gradient of `soft`: contact from a distance.

        after = soft + stop_gradient(hard - soft)

    A model that is never touched teaches nothing about how to touch; this one does.
    """

    def advance(system, params, state, action, dt):
        real = hard.advance(system, params, state, action, dt)
        felt = soft.advance(system, params, state, action, dt)
        return jax.tree.map(lambda r, f: f + jax.lax.stop_gradient(r - f), real, felt)

    params = {**soft.params, **hard.params}
    return Contact(f"{hard.name}, felt as {soft.name}", params, advance)
