"""The material point method in 2-D and 3-D: soft bodies, plasticine, sand, water.

`mpm` makes a `Dynamics` of a body (`block`, `ball`, `moving`), an elastic law (module
`elasticity`) and a plastic one (`plasticity`). `boundary` has walls, `transfer` sums
between particles and grid, `decompose` rotations and stretches, derivatives exact.
"""

from jaxwm.physics.mpm import boundary, decompose, elasticity, plasticity, transfer
from jaxwm.physics.mpm.body import Body, ball, block, moving
from jaxwm.physics.mpm.law import Law, lame
from jaxwm.physics.mpm.simulate import (
    Energy,
    State,
    energy,
    first_inversion,
    mpm,
    over_particles,
)

__all__ = [
    "Body",
    "Energy",
    "Law",
    "State",
    "ball",
    "block",
    "boundary",
    "decompose",
    "elasticity",
    "energy",
    "first_inversion",
    "lame",
    "moving",
    "mpm",
    "over_particles",
    "plasticity",
    "transfer",
]
