"""The discrete Poisson equation on a grid: operator, spectrum, multigrid.

    (A u)_i = 2 n u_i - Σ_{j beside i} u_j,   u = 0 beyond the border

in n dimensions, for unit spacing: `-h² Δ`. Symmetric and positive definite. Shapes: u
is `[N_1, ..., N_n]`.

Source: Trottenberg, Oosterlee, Schüller, "Multigrid", 2001; LeVeque, "Finite Difference
Methods for Ordinary and Partial Differential Equations", 2007, chapter 3.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_DAMPING = 0.8  # of Jacobi smoothing


def poisson(
    u: Float[Array, "*N"], mask: Float[Array, "*N"] | None = None
) -> Float[Array, "*N"]:
    """`A u`; cells where `mask` is 0 are walls: u is 0 for their neighbours.

    Rows of walls are those of the identity, so that A stays positive definite on the
    whole grid.
    """
    inside = u if mask is None else mask * u
    out = 2 * u.ndim * inside
    for axis in range(u.ndim):
        out = out - _shift(inside, axis, 1) - _shift(inside, axis, -1)
    return out if mask is None else mask * out + (1 - mask) * u


def _shift(u, axis, by):
    """Neighbours along an axis, zero beyond the border."""
    pad = [(0, 0)] * u.ndim
    pad[axis] = (1, 0) if by > 0 else (0, 1)
    cut = [slice(None)] * u.ndim
    cut[axis] = slice(0, -1) if by > 0 else slice(1, None)
    return jnp.pad(u, pad)[tuple(cut)]


def sine_transform(u: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Coefficients of u in the eigenvectors of A on a box; its own inverse.

    Products of orthonormal sines, `sqrt(2 / (N + 1)) sin(π i k / (N + 1))` per axis.
    """
    for axis, num in enumerate(u.shape):
        k = np.arange(1, num + 1)
        sines = math.sqrt(2 / (num + 1)) * np.sin(np.pi * np.outer(k, k) / (num + 1))
        u = jnp.moveaxis(jnp.tensordot(sines.astype(u.dtype), u, (1, axis)), 0, axis)
    return u


def eigenvalues(shape: Sequence[int]) -> np.ndarray:
    """Of A on a box, in the order of `sine_transform`: `Σ 4 sin²(π k / 2 (N + 1))`."""
    out = np.zeros(())
    for num in shape:
        k = np.arange(1, num + 1)
        out = out[..., None] + 4 * np.sin(np.pi * k / (2 * (num + 1))) ** 2
    return out


def multigrid(r: Float[Array, "*N"], *, smoothings: int = 2) -> Float[Array, "*N"]:
    """One symmetric V-cycle for `A e = r` from zero: a preconditioner.

    Damped Jacobi before and after, bilinear interpolation and its transpose, the same
    stencil on every grid. Grids are halved while all sides are even and above 2.
    """
    diagonal = 2 * r.ndim
    smooth = lambda e: e + _DAMPING / diagonal * (r - poisson(e))
    e = jnp.zeros_like(r)
    for _ in range(smoothings):
        e = smooth(e)
    if all(num % 2 == 0 and num > 2 for num in r.shape):
        coarse = restrict(r - poisson(e))
        # Sums of 2^n cells stand for h² of a grid twice as wide: 4 of 2^n.
        scale = 4 / 2**r.ndim
        e = e + interpolate(multigrid(scale * coarse, smoothings=smoothings))
    for _ in range(smoothings):
        e = smooth(e)
    return e


def interpolate(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """To a grid twice as fine: 3/4 of the own cell, 1/4 of the next, per axis."""
    for axis in range(u.ndim):
        near = 0.75 * u
        pair = (near + 0.25 * _shift(u, axis, 1), near + 0.25 * _shift(u, axis, -1))
        shape = (*u.shape[:axis], 2 * u.shape[axis], *u.shape[axis + 1 :])
        u = jnp.stack(pair, axis + 1).reshape(shape)
    return u


def restrict(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """The transpose of `interpolate`; every side must be even."""
    for axis in range(u.ndim):
        if u.shape[axis] % 2:
            raise ValueError(f"u must have even sides to be halved, got {u.shape}.")
        shape = (*u.shape[:axis], u.shape[axis] // 2, 2, *u.shape[axis + 1 :])
        left, right = jnp.moveaxis(u.reshape(shape), axis + 1, 0)
        beside = _shift(left, axis, -1) + _shift(right, axis, 1)
        u = 0.75 * (left + right) + 0.25 * beside
    return u
