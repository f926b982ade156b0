"""What a model of contact is, and the one for systems that touch nothing."""

from collections.abc import Callable
from typing import NamedTuple

from jaxwm.physics import integrate
from jaxwm.physics.bodies import State, acceleration
from jaxwm.types import Params


class Contact(NamedTuple):
    """A model of contact; `none` for systems that touch nothing."""

    name: str
    params: Params  # defaults, added to those of the system
    advance: Callable  # (system, params, State, action, dt) -> State


def none(integrator: Callable = integrate.semi_implicit_euler) -> Contact:
    """No contact at all."""

    def advance(system, params, state, action, dt):
        free = lambda q, v: acceleration(system, params, q, v, action)
        return State(*integrator(free, *state, dt))

    return Contact("none", {}, advance)
