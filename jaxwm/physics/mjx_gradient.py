"""Reverse-mode derivatives of MuJoCo's contact solve, through MJX's full solver.

The solver of a step minimises a convex function; at its minimum

    g(a, θ) = M a - f_smooth - J' f(J a - a_ref) = 0,   da/dθ = -(∂g/∂a)⁻¹ ∂g/∂θ

so one Newton correction at the frozen minimum has exactly the right derivative, for any
number of iterations, either cone, joint limits, equalities and dry friction. MJX itself
cannot be differentiated backwards: its solver is a `while_loop`, and with one iteration
it runs but is wrong. Here its solver is exchanged while a step is traced, and three of
its functions that have no, or the wrong, derivative in places where values are fine:

- orientation of bodies that do not turn: the derivative of the quaternion with respect
  to the angular velocity was 0 instead of dt/2;
- rotation vector of a ball joint at its reference: likewise;
- the impedance of constraints that are separated or deep: powers of negative numbers
  made every derivative NaN where `solimp`'s power is not whole.

What this gives is the derivative of the map that MJX computes. That map jumps where a
contact begins, so it carries no word of contacts to come.

Source: implicit function theorem; MuJoCo's solver: Todorov, "Convex and analytically
invertible dynamics with contacts and constraints", 2014. Tested with mujoco-mjx 3.17,
whose private functions it exchanges. Shapes: V velocities.
"""

import contextlib
import threading
from collections.abc import Callable
from importlib import metadata

import jax
import jax.numpy as jnp

from jaxwm.types import PyTree

TESTED = "3.17"  # versions of mujoco-mjx that begin so
_lock = threading.RLock()


def check_version() -> None:
    """Raises ImportError unless the installed MJX is one that was tested."""
    found = metadata.version("mujoco-mjx")
    if not found.startswith(TESTED):
        raise ImportError(
            f"implicit gradients of MJX need mujoco-mjx {TESTED}, whose private "
            f"functions they exchange, found {found}; install that one, or use "
            'grad="forward".'
        )


@contextlib.contextmanager
def exchanged(*, implicit: bool, safe_math: bool, polish: int = 0):
    """Exchanges functions of MJX for the time in which a step is traced.

    Args:
        implicit: the solver.
        safe_math: the three functions above; values change by rounding only.
        polish: Newton steps behind the solver, for elliptic cones, whose line search
            ends about 1e-10 short of the minimum.
    """
    from mujoco.mjx._src import constraint, math, solver

    changes: list[tuple[object, str, Callable]] = []
    if implicit:
        changes.append((solver, "solve", _implicit(solver, polish)))
    if safe_math:
        changes += [
            (math, "quat_integrate", _quat_integrate(math)),
            (math, "quat_to_axis_angle", _quat_to_axis_angle),
            (constraint, "_kbi", _impedance(constraint._kbi)),
        ]
    with _lock:
        before = [(module, name, getattr(module, name)) for module, name, _ in changes]
        try:
            for module, name, function in changes:
                setattr(module, name, function)
            yield
        finally:
            for module, name, function in before:
                setattr(module, name, function)


def _implicit(solver, polish: int) -> Callable:
    original = solver.solve

    def residual(model, data, acceleration):
        context = solver.Context.create(
            model, data.replace(qacc=acceleration), grad=False
        )
        return context.Ma - data.qfrc_smooth - context.qfrc_constraint, context

    def solve(model, data):
        # Both are frozen: the model, too, feeds the solver's loop.
        still_model, still_data = _freeze((model, data))
        still = lambda a: residual(still_model, still_data, a)[0]

        def hessian(a):
            matrix = jax.jacfwd(still)(a)
            return jax.lax.stop_gradient((matrix + matrix.T) / 2)

        found = jax.lax.stop_gradient(original(still_model, still_data).qacc)
        for _ in range(polish):
            found -= jax.lax.stop_gradient(
                jnp.linalg.solve(hessian(found), still(found))
            )
        away, _ = residual(model, data, found)
        factor = jax.scipy.linalg.cho_factor(hessian(found))
        correction = jax.scipy.linalg.cho_solve(factor, away)
        acceleration = found - correction
        # Forces once more, so that they see how the acceleration moves.
        _, context = residual(model, data, acceleration)
        return data.tree_replace(
            {
                "qacc": acceleration,
                "qfrc_constraint": context.qfrc_constraint,
                "_impl.efc_force": context.efc_force,
            }
        )

    return solve


def _quat_integrate(math) -> Callable:
    def quat_integrate(q, v, dt):
        squared = (0.5 * dt) ** 2 * (v @ v)
        small = squared < 1e-12
        half = jnp.sqrt(jnp.where(small, 1.0, squared))
        sine = jnp.where(small, 1 - squared / 6, jnp.sin(half) / half)
        cosine = jnp.where(small, 1 - squared / 2, jnp.cos(half))
        turn = jnp.concatenate([cosine[None], 0.5 * dt * sine * v])
        return math.normalize(math.quat_mul(q, turn))

    return quat_integrate


def _quat_to_axis_angle(q):
    """Only the product of the two is used by MJX; at the identity it is 2 q_xyz."""
    squared = q[1:] @ q[1:]
    small = squared < 1e-16
    norm = jnp.sqrt(jnp.where(small, 1.0, squared))
    angle = 2 * jnp.arctan2(norm, q[0])
    angle = jnp.where(angle > jnp.pi, angle - 2 * jnp.pi, angle)
    axis = jnp.where(small, 2 * jnp.sign(q[0]) * q[1:], q[1:] / norm)
    return axis, jnp.where(small, 1.0, angle)


def _impedance(original: Callable) -> Callable:
    def kbi(model, solref, solimp, pos):
        # Beyond its width the impedance is constant; inside nothing changes.
        width = jnp.maximum(solimp[2], 1e-15)
        return original(model, solref, solimp, jnp.minimum(jnp.abs(pos), width))

    return kbi


def _freeze(values: PyTree) -> PyTree:
    def stop(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.lax.stop_gradient(leaf)
        return leaf

    return jax.tree.map(stop, values)
