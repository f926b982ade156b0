"""System identification: physical parameters from a recorded motion.

    minimise  ||simulate(θ) - observed||² / R    over z = log θ

by Levenberg and Marquardt's method: with the Jacobian J in z and residual r,

    (J'J + ρ diag(J'J)) Δz = -J' r,

ρ falling after steps that help and rising after steps that do not. Logarithms keep
parameters positive and treat a factor of two alike everywhere. The eigenvalues of J'J
tell what the motion says nothing about: a block that slides freely has no mass.

Source: Marquardt, 1963; Ljung, "System Identification", 1999.
Shapes: P parameters in all, R recorded numbers, N iterations.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxwm.types import PyTree

_RANK = 1e-6  # smallest share of the largest eigenvalue that counts as seen


class Identified(NamedTuple):
    """Parameters, and how well the recording determines them."""

    params: PyTree
    error: Float[Array, ""]  # mean squared residual at `params`
    errors: Float[Array, " N"]  # after every iteration
    eigenvalues: Float[Array, " P"]  # of J'J / R, ascending
    weakest: PyTree  # direction in log parameters that is seen least, unit length
    identifiable: Bool[Array, ""]  # whether all directions are seen
    calls: int  # simulations, tangents counted like simulations


def identify(
    simulate: Callable[[PyTree], Array],
    observed: Array,
    start: PyTree,
    *,
    iterations: int = 20,
    damping: float = 1e-2,
    largest_step: float = 1.0,
) -> Identified:
    """Fits positive parameters to a recording.

    Derivatives are taken in forward mode, so simulators with a `while_loop` will do,
    and P should be small.

    Args:
        simulate: `params -> array` of what was recorded; pure, differentiable.
        observed: the recording, of the same shape.
        start: first guess, a pytree of positive numbers.
        iterations: N, a Python int.
        damping: first ρ.
        largest_step: of any logarithm in one iteration; 1 allows a factor of e.

    Returns:
        The best parameters seen. Outside of `jit` a warning is given where a direction
        is not identifiable, naming the parameters in it.

    Raises:
        ValueError: for guesses that are not positive, shapes that differ, recordings
            that are not finite, and settings without sense.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}.")
    for name, value in (("damping", damping), ("largest_step", largest_step)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    _check_start(start)
    observed = jnp.asarray(observed)
    shape = jax.eval_shape(simulate, start).shape
    if shape != observed.shape:
        raise ValueError(
            f"observed must have the shape of what is simulated, {shape}, got "
            f"{observed.shape}."
        )
    if not _traced(observed) and not np.all(np.isfinite(observed)):
        raise ValueError("observed must be finite, got NaN or infinity.")
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, float), start))
    z = jnp.log(flat)

    def residual(z):
        return (simulate(unravel(jnp.exp(z))) - observed).reshape(-1)

    def with_jacobian(z):
        """Residual and Jacobian; one simulation and P tangents."""
        jacobian = jax.jacfwd(residual)(z)
        return residual(z), jacobian

    def error(r):
        value = jnp.mean(r**2)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def improve(carry, _):
        z, r, jacobian, rho = carry
        matrix = jacobian.T @ jacobian
        scale = jnp.diag(jnp.maximum(jnp.diag(matrix), 1e-12 * jnp.trace(matrix)))
        scale = scale + 1e-30 * jnp.eye(len(z))
        step = -jnp.linalg.solve(matrix + rho * scale, jacobian.T @ r)
        step = jnp.clip(jnp.nan_to_num(step), -largest_step, largest_step)
        tried, tried_jacobian = with_jacobian(z + step)
        better = error(tried) < error(r)
        usable = better & jnp.all(jnp.isfinite(tried_jacobian))
        pick = lambda new, old: jnp.where(usable, new, old)
        carry = (
            pick(z + step, z),
            pick(tried, r),
            pick(tried_jacobian, jacobian),
            jnp.clip(jnp.where(usable, rho / 3, rho * 4), 1e-9, 1e9),
        )
        return carry, error(carry[1])

    carry = (z, *with_jacobian(z), jnp.asarray(damping, z.dtype))
    carry, errors = jax.lax.scan(improve, carry, None, length=iterations)
    z, r, jacobian, _ = carry
    values, vectors = jnp.linalg.eigh(jacobian.T @ jacobian / observed.size)
    found = Identified(
        unravel(jnp.exp(z)),
        error(r),
        errors,
        values,
        unravel(vectors[:, 0]),
        values[0] > _RANK * values[-1],
        (iterations + 1) * (flat.size + 1),
    )
    if not _traced(found.identifiable) and not found.identifiable:
        warnings.warn(_explain(found), stacklevel=2)
    return found


def _explain(found: Identified) -> str:
    paths, _ = jax.tree_util.tree_flatten_with_path(found.weakest)
    parts = [
        f"{float(np.max(np.abs(leaf))):.2f} {jax.tree_util.keystr(path, simple=True)}"
        for path, leaf in paths
        if np.max(np.abs(leaf)) > 0.1
    ]
    return (
        "the recording does not determine all parameters: the motion does not change "
        f"along (in logarithms) {' + '.join(parts)}. Record a motion that depends on "
        "them, or hold one of them fixed."
    )


def _check_start(start: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(start)[0]:
        if not _traced(leaf) and not np.all(np.asarray(leaf) > 0):
            name = jax.tree_util.keystr(path, simple=True)
            raise ValueError(
                f"start[{name}] must be positive, got {leaf}; parameters are fitted in "
                "logarithms. Shift or negate those that can be negative."
            )


def _traced(x) -> bool:
    return isinstance(x, jax.core.Tracer)
