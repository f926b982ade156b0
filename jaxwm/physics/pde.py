"""Periodic partial differential equations by exponax, as `Dynamics`.

    ∂u/∂t = L u + N(u)   on (0, extent)^n, periodic

Fourier modes in space, an exponential Runge-Kutta step in time: the linear part L is
exact, the nonlinear part N of the order chosen. Coefficients live in `params`, so they
can be differentiated and identified from motion. Actions scale actuators: given force
fields, added over a step (first-order splitting).

exponax is an extra (`pip install "jaxwm[physics]"`), imported when a system is built.
Shapes: C channels, N points per axis, A actuators; fields are `[C, N]`, `[C, N, N]` or
`[C, N, N, N]`.

Source: Koehler et al., "APEBench: A Benchmark for Autoregressive Neural Emulators of
PDEs", NeurIPS 2024 (exponax); Cox and Matthews, 2002.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxwm.physics import ode
from jaxwm.physics.dynamics import Dynamics

# name: (class of exponax.stepper, coefficients with defaults)
EQUATIONS: dict[str, tuple[str, dict[str, float]]] = {
    "advection": ("Advection", {"velocity": 1.0}),
    "diffusion": ("Diffusion", {"diffusivity": 0.01}),
    "advection_diffusion": (
        "AdvectionDiffusion",
        {"velocity": 1.0, "diffusivity": 0.01},
    ),
    "dispersion": ("Dispersion", {"dispersivity": 0.001}),
    "burgers": ("Burgers", {"diffusivity": 0.01, "convection_scale": 1.0}),
    "korteweg_de_vries": (
        "KortewegDeVries",
        {"dispersivity": 1.0, "hyper_diffusivity": 0.01, "convection_scale": -6.0},
    ),
    "kuramoto_sivashinsky": (
        "KuramotoSivashinsky",
        {
            "gradient_norm_scale": 1.0,
            "second_order_scale": 1.0,
            "fourth_order_scale": 1.0,
        },
    ),
    "vorticity": ("NavierStokesVorticity", {"diffusivity": 0.01}),
}
# These take one coefficient per axis instead of a number.
_PER_AXIS = ("Advection", "Diffusion", "AdvectionDiffusion", "Dispersion")


def pde(
    equation: str | Callable,
    *,
    extent: float,
    points: int,
    dt: float,
    num_dims: int = 1,
    params: dict[str, float] | None = None,
    order: int | None = None,
    init: Callable | None = None,
    actuators: Float[Array, "A C *N"] | np.ndarray | None = None,
) -> Dynamics:
    """A periodic equation as `Dynamics`; the state is the field `[C, N, ...]`.

    Args:
        equation: a name in `EQUATIONS`, or a stepper of exponax: called as
            `(num_dims, extent, points, dt, **params)`.
        extent: length of the domain along each axis.
        points: N.
        dt: time of one step. The linear part is exact for any; the nonlinear part
            limits it.
        num_dims: n, in 1 ... 3.
        params: coefficients that differ from the equation's defaults, or all of them
            for a stepper of exponax. These are `dynamics.params`.
        order: of the exponential Runge-Kutta method, 1 ... 4; None: the stepper's own.
        init: `(key, params) -> field`; None: random waves of a few modes, at most 1
            in size, per channel.
        actuators: force fields that an action scales, `[A, C, N, ...]`; None: nothing
            acts.

    The step's coefficients are computed from `params` in every step, so that gradients
    reach them; XLA moves that out of a loop in which they do not change.

    Raises:
        ValueError: for unknown equations and coefficients, and sizes, lengths or times
            that are not positive.
        ImportError: without exponax.
    """
    ex = ode.library("exponax")
    for name, value in (("extent", extent), ("dt", dt)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if points < 4:
        raise ValueError(f"points must be at least 4 per axis, got {points}.")
    if num_dims not in (1, 2, 3):
        raise ValueError(f"num_dims must be 1, 2 or 3, got {num_dims}.")
    make, coefficients = _stepper(ex, equation, params, order)
    per_axis = getattr(make, "__name__", "") in _PER_AXIS
    options = {} if order is None else {"order": order}

    def stepper(values):
        values = {
            name: jnp.broadcast_to(value, (num_dims,)) if per_axis else value
            for name, value in values.items()
        }
        return make(num_dims, extent, points, dt, **values, **options)

    channels = stepper(coefficients).num_channels
    shape = (channels, *[points] * num_dims)
    if actuators is not None and (
        np.ndim(actuators) != len(shape) + 1 or np.shape(actuators)[1:] != shape
    ):
        raise ValueError(
            f"actuators must have the shape [A, {', '.join(map(str, shape))}], got "
            f"{list(np.shape(actuators))}."
        )

    def random_waves(key, params):
        del params  # any smooth field will do
        field = ex.ic.RandomTruncatedFourierSeries(num_dims, cutoff=5, max_one=True)
        fields = [
            field(points, key=jax.random.fold_in(key, c)) for c in range(channels)
        ]
        return jnp.concatenate(fields)

    def step(params, state, action):
        if actuators is not None:
            state = state + dt * jnp.tensordot(action, jnp.asarray(actuators), 1)
        return stepper(params)(state)

    def observe(params, state):
        del params  # everything is seen
        return jnp.ravel(state)

    size = 0 if actuators is None else np.shape(actuators)[0]
    params = {name: jnp.asarray(value, float) for name, value in coefficients.items()}
    return Dynamics(init or random_waves, step, observe, dt, size, params)


def _stepper(ex, equation, params, order):
    """The class and all coefficients that count as parameters."""
    params = dict(params or {})
    if callable(equation):
        make, coefficients = equation, params
    elif equation in EQUATIONS:
        name, defaults = EQUATIONS[equation]
        make = getattr(ex.stepper, name)
        unknown = sorted(set(params) - set(defaults))
        if unknown:
            raise ValueError(
                f"params of {equation} are {', '.join(defaults)}, got "
                f"{', '.join(unknown)}."
            )
        coefficients = defaults | params
    else:
        raise ValueError(
            f"equation must be one of {', '.join(EQUATIONS)}, or a stepper of exponax, "
            f"got {equation!r}."
        )
    known = inspect.signature(make).parameters
    if order is not None and ("order" not in known or order not in (1, 2, 3, 4)):
        raise ValueError(
            f"order must be 1, 2, 3 or 4, for a nonlinear equation, got {order}; "
            "linear ones are solved exactly."
        )
    return make, coefficients
