"""Physics: the contract of what is simulated, rigid bodies with contact, and MuJoCo.

`Dynamics` and `rollout` (any simulator, differentiable); `rigid` makes one of `bodies`
(planar systems from their energies) and `contact` (interchangeable models). Below:
`integrate`, and `implicit` (derivatives of solutions). `gradients` estimates gradients
in five ways and says when one can be trusted; `identify` fits parameters to motions.
`mjx` is MuJoCo compiled by XLA, `mjx_dynamics` makes a `Dynamics` of it, with
derivatives through its contacts. `mpm` simulates soft bodies, `chaos` holds the flows
of Lorenz, `hamiltonian` systems given by their energy; `conjugate` solves
symmetric systems such as that of `poisson`. By diffrax and exponax, which are extras:
`ode` (solves, `step_error` of their steps), `sde`, `pde`. `fixed_point` makes layers of
equations, `symbolic` finds expressions.
"""

from jaxwm.physics import (
    bodies,
    chaos,
    conjugate,
    contact,
    fixed_point,
    gradients,
    hamiltonian,
    identify,
    implicit,
    integrate,
    mjx,
    mpm,
    ode,
    pde,
    poisson,
    sde,
    step_error,
    symbolic,
)
from jaxwm.physics.dynamics import Dynamics, Path, clip_cotangent, repeated, rollout
from jaxwm.physics.mjx_dynamics import mjx_dynamics
from jaxwm.physics.rigid import rigid

__all__ = [
    "Dynamics",
    "Path",
    "bodies",
    "chaos",
    "clip_cotangent",
    "conjugate",
    "contact",
    "fixed_point",
    "gradients",
    "hamiltonian",
    "identify",
    "implicit",
    "integrate",
    "mjx",
    "mjx_dynamics",
    "mpm",
    "ode",
    "pde",
    "poisson",
    "repeated",
    "rigid",
    "rollout",
    "sde",
    "step_error",
    "symbolic",
]
