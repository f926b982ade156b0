"""Physics: the contract of what is simulated, rigid bodies with contact, and MuJoCo.

`Dynamics` and `rollout` (any simulator, differentiable); `rigid` makes one of `bodies`
(planar systems from their energies) and `contact` (interchangeable models). Below:
`integrate`, and `implicit` (derivatives of solutions). `gradients` estimates gradients
in five ways and says when one can be trusted; `identify` fits parameters to motions.
`mjx` is MuJoCo compiled by XLA, `mjx_dynamics` makes a `Dynamics` of it, with
derivatives through its contacts.
"""

from jaxwm.physics import (
    bodies,
    contact,
    gradients,
    identify,
    implicit,
    integrate,
    mjx,
)
from jaxwm.physics.dynamics import Dynamics, Path, clip_cotangent, repeated, rollout
from jaxwm.physics.mjx_dynamics import mjx_dynamics
from jaxwm.physics.rigid import rigid

__all__ = [
    "Dynamics",
    "Path",
    "bodies",
    "clip_cotangent",
    "contact",
    "gradients",
    "identify",
    "implicit",
    "integrate",
    "mjx",
    "mjx_dynamics",
    "repeated",
    "rigid",
    "rollout",
]
