"""What a material is: one law for stress, one for what it keeps of a deformation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxwm.types import Params


class Law(NamedTuple):
    """A law of one particle with deformation gradient F `[d, d]`.

    apply: `(params, F) -> [d, d]`. Elasticity: Kirchhoff stress τ = P F', Pa.
        Plasticity: the F that is kept, the elastic part of the trial.
    energy: `(params, F) -> []`, J per m^3 at rest; None where there is none.
    modulus: `params -> []`, Pa: of the fastest wave, for the bound on dt; None where
        it is not known.
    """

    name: str
    params: Params  # defaults, shared by all particles
    apply: Callable
    energy: Callable | None = None
    modulus: Callable | None = None


def lame(params: Params) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Lamé's constants of Young's modulus E (Pa) and Poisson's ratio nu.

    μ = E / (2 (1 + ν)),   λ = E ν / ((1 + ν) (1 - 2ν))
    """
    E, nu = params["E"], params["nu"]
    return E / (2 * (1 + nu)), E * nu / ((1 + nu) * (1 - 2 * nu))


def check(params: Params, name: str) -> None:
    """Refuses constants that no material has; traced ones cannot be looked at.

    Raises:
        ValueError: for E, sigma_y that are not positive, nu outside [0, 0.5), phi
            outside [0, 90) degrees, negative cohesion.
    """
    ranges = {
        "E": (lambda x: x > 0, "positive, in Pa"),
        "nu": (lambda x: (x >= 0) & (x < 0.5), "in [0, 0.5)"),
        "sigma_y": (lambda x: x > 0, "positive, in Pa"),
        "phi": (lambda x: (x >= 0) & (x < np.pi / 2), "in [0, pi/2) rad"),
        "cohesion": (lambda x: x >= 0, "at least 0"),
    }
    if not isinstance(params, dict):
        return
    for key, (holds, what) in ranges.items():
        value = params.get(key)
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        if not np.all(holds(np.asarray(value))):
            raise ValueError(f"{key} of {name} must be {what}, got {value}.")
