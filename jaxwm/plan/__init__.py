"""Planning: search by sampling, descent, and iterative linear-quadratic regulation.

`random_shooting`, `predictive_sampling`, `cem` (iCEM with coloured noise and kept
elites) and `mppi` need costs only; `descent` and `projected_gradient` need their
gradient; `ilqr` needs the dynamics. `augmented_lagrangian` puts inequality constraints
around any of those that take a cost. A decision is an array, usually actions `[T, A]`;
what it costs is a function that the caller hands in; `simulated` makes one of a
`physics.Dynamics`.
"""

from jaxwm.plan.descent import Descended, descent, projected_gradient
from jaxwm.plan.ilqr import Solution, ilqr
from jaxwm.plan.lagrangian import Constrained, augmented_lagrangian
from jaxwm.plan.search import (
    Found,
    cem,
    coloured_noise,
    mppi,
    predictive_sampling,
    random_shooting,
)
from jaxwm.plan.simulated import Problem, simulated

__all__ = [
    "Constrained",
    "Descended",
    "Found",
    "Problem",
    "Solution",
    "augmented_lagrangian",
    "cem",
    "coloured_noise",
    "descent",
    "ilqr",
    "mppi",
    "predictive_sampling",
    "projected_gradient",
    "random_shooting",
    "simulated",
]
