"""Planning: search by sampling, descent, and iterative linear-quadratic regulation.

`random_shooting`, `cem` (iCEM with coloured noise and kept elites) and `mppi` need
costs only; `descent` needs their gradient; `ilqr` needs the dynamics. A decision is an
array, usually actions `[T, A]`; what it costs is a function that the caller hands in.
"""

from jaxwm.plan.descent import Descended, descent
from jaxwm.plan.ilqr import Solution, ilqr
from jaxwm.plan.search import Found, cem, coloured_noise, mppi, random_shooting

__all__ = [
    "Descended",
    "Found",
    "Solution",
    "cem",
    "coloured_noise",
    "descent",
    "ilqr",
    "mppi",
    "random_shooting",
]
