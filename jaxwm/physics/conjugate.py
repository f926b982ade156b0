"""Solvers of `A x = b` that build their own directions, A symmetric positive definite.

    repeat until |r| <= tol |b|:
        d = M r,  made A-orthogonal to the `keep` directions before it
        x += d (d·r) / (d·A d),   r = b - A x

With `keep = 1` and a symmetric M this is the preconditioned conjugate gradient method;
M may be anything, also nonlinear or changing: the line search is exact, so that the
error never grows in the A-norm. A proposal all but orthogonal to r, along which nothing
can be gained, is replaced by r itself: a bad M slows the method and cannot stop it.
x and b are single arrays of any shape.

Source: Hestenes and Stiefel, 1952; Notay, "Flexible Conjugate Gradients", 2000.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# A⁻¹ r itself is at 2 sqrt(κ) / (1 + κ) or more, κ the condition number.
_LEAST_COSINE = 1e-3


class SolveInfo(NamedTuple):
    """How a solve went."""

    iterations: Array  # [] int32
    converged: Array  # [] bool: |r| <= tol |b|
    broken: Array  # [] bool: a direction with d·A d <= 0, or not finite: A is not SPD
    residual: Float[Array, " I"]  # |r| / |b| before step i; NaN beyond the last


def solve(
    apply: Callable,
    b: Float[Array, "*N"],
    precondition: Callable = lambda r: r,
    *,
    tol: float = 1e-4,
    max_iter: int = 1000,
    keep: int = 1,
    x0: Float[Array, "*N"] | None = None,
) -> tuple[Float[Array, "*N"], SolveInfo]:
    """Solves by flexible conjugate directions; b = 0 gives 0.

    Args:
        apply: A, matrix-free; linear.
        b: right-hand side.
        precondition: M, `r -> d`; the closer to a multiple of A⁻¹ r, the fewer steps.
        tol: of the relative residual. In float32 nothing below about 1e-6 is reached.
        max_iter: steps at most; `converged` says whether they were enough.
        keep: directions to orthogonalise against. 0 is steepest descent.
        x0: where to start; None is 0.

    Returns:
        x and what happened. The loop has no derivative: see `differentiable`.

    Raises:
        ValueError: for limits that are not positive.
    """
    if max_iter < 1 or keep < 0 or not tol > 0:
        raise ValueError(
            "tol and max_iter must be positive and keep not negative, got "
            f"{tol}, {max_iter} and {keep}."
        )
    x = jnp.zeros_like(b) if x0 is None else x0
    norm = jnp.linalg.norm(b.ravel())
    relative = lambda r: jnp.linalg.norm(r.ravel()) / jnp.where(norm > 0, norm, 1.0)
    history = jnp.full(max_iter + 1, jnp.nan, b.dtype)
    r = b - apply(x)
    none = jnp.zeros((keep, *b.shape), b.dtype)
    first = (jnp.int32(0), x, r, none, none, history.at[0].set(relative(r)), False)

    def orthogonal(d, directions, images):
        for p, image in zip(directions, images, strict=True):
            curvature = jnp.vdot(p, image)
            share = jnp.vdot(d, image) / jnp.where(curvature > 0, curvature, 1.0)
            d = d - jnp.where(curvature > 0, share, 0.0) * p
        return d

    def body(state):
        i, x, r, directions, images, history, _ = state
        d = orthogonal(precondition(r), directions, images)
        d = jnp.where(_stalls(d, r), orthogonal(r, directions, images), d)
        image = apply(d)
        curvature = jnp.vdot(d, image)
        fine = (curvature > 0) & jnp.isfinite(curvature)
        step = jnp.vdot(d, r) / jnp.where(fine, curvature, 1.0)
        x = jnp.where(fine, x + step * d, x)
        r = b - apply(x)  # again from x: its own recurrence drifts in float32
        if keep:
            directions = jnp.roll(directions, 1, 0).at[0].set(d)
            images = jnp.roll(images, 1, 0).at[0].set(image)
        history = history.at[i + 1].set(relative(r))
        return i + 1, x, r, directions, images, history, ~fine

    def unfinished(state):
        i, _, r, *_, broken = state
        return (i < max_iter) & (relative(r) > tol) & ~broken

    i, x, r, _, _, history, broken = jax.lax.while_loop(unfinished, body, first)
    return x, SolveInfo(i, relative(r) <= tol, jnp.asarray(broken), history)


def _stalls(d, r):
    """Whether a proposal is useless: all but orthogonal to r, or not finite."""
    norms = jnp.linalg.norm(d.ravel()) * jnp.linalg.norm(r.ravel())
    return ~(jnp.abs(jnp.vdot(d, r)) > _LEAST_COSINE * norms)


def differentiable(apply: Callable, b: Float[Array, "*N"], solver: Callable):
    """`solver(apply, b) -> x` with the derivative of the solution, by b and inside A.

    The adjoint is the same equation (A is symmetric), solved by the same method:
    nothing is unrolled, in forward or in reverse mode.
    """
    method = lambda apply, b: solver(apply, b)
    return jax.lax.custom_linear_solve(apply, b, method, symmetric=True)


def require_symmetric(key: Key[Array, ""], apply: Callable, shape: tuple[int, ...]):
    """Raises unless `u·A v = v·A u` and `u·A u > 0` for random u and v.

    Reads values, so it belongs outside `jit`.

    Raises:
        ValueError: naming which of the two fails.
    """
    u, v = jax.random.normal(key, (2, *shape))
    one, other = jnp.vdot(u, apply(v)), jnp.vdot(v, apply(u))
    size = jnp.linalg.norm(u.ravel()) * jnp.linalg.norm(apply(v).ravel())
    if abs(one - other) > 1e-4 * size:
        raise ValueError(
            f"apply must be symmetric, got u·A v = {one} and v·A u = {other}; solve "
            "the normal equations instead."
        )
    if not jnp.vdot(u, apply(u)) > 0:
        raise ValueError("apply must be positive definite, got u·A u <= 0.")
