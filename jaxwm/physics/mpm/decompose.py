"""Rotations and stretches of small matrices, with derivatives that stay exact.

    F = R S = P R,   R a rotation (det R = +1),   P = U diag(s) U'

Derivatives of singular vectors blow up where singular values meet, as they do at rest,
F = I. What a material needs does not: the derivative of the rotation wants s_i + s_j
only, and an isotropic function of P wants difference quotients of its values, which
have limits. Both are written out here, so that laws made of them have exact gradients
at rest. An inverted F keeps its rotation; its smallest stretch is negative.

Source: Higham, "Functions of Matrices", 2008, section 3.2 (Daleckii and Krein); the
rotation of greatest trace by Davenport's matrix, Horn, 1987.
Shapes: d = 2 or 3 dimensions. One matrix each; `jax.vmap` adds particles.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.types import Params

# Rounds of Jacobi's rotations: convergence is quadratic, five reach double precision.
_SWEEPS = {2: 1, 3: 5, 4: 5}


def eigh(
    matrix: Float[Array, "d d"],
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues (unsorted) and eigenvectors (columns) of a symmetric matrix.

    Jacobi's rotations, up to 4 dimensions: elementwise work that vectorises over
    particles, where LAPACK would be called once for each. Not to be differentiated:
    see `spectral`.
    """
    size, dtype = matrix.shape[0], matrix.dtype
    one = jnp.eye(size, dtype=dtype)
    pairs = jnp.array([(p, q) for p in range(size) for q in range(p + 1, size)])

    def turn(i, carry):
        A, U = carry
        p, q = one[pairs[i % len(pairs)]]
        # The angle that clears A_pq, at most 45 degrees.
        far, gap = 2 * p @ A @ q, q @ A @ q - p @ A @ p
        root = jnp.sqrt(gap**2 + far**2)
        done = root == 0  # also where the squares underflow
        t = far / jnp.where(done, 1.0, jnp.where(gap < 0, gap - root, gap + root))
        c = jax.lax.rsqrt(1 + t**2)
        s = t * c
        both = jnp.outer(p, p) + jnp.outer(q, q)
        G = one + (c - 1) * both + s * (jnp.outer(p, q) - jnp.outer(q, p))
        return G.T @ A @ G, U @ G

    # A loop, not unrolled: compilers copy long chains of scalars into each other.
    start = matrix, one + 0 * matrix
    A, U = jax.lax.fori_loop(0, _SWEEPS[size] * len(pairs), turn, start)
    return jnp.diag(A), U


@jax.custom_jvp
def rotation(F: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The rotation R nearest to F: it maximises tr(R'F), also where det F <= 0.

        dR = R [ω],   (tr(S) 1 - S) ω = axis of (R'dF - dF'R),   S = R'F

    Gradients are exact unless two stretches cancel (s_i + s_j = 0), where R jumps;
    there they are finite.
    """
    if F.shape[0] == 2:
        c, s = F[0, 0] + F[1, 1], F[1, 0] - F[0, 1]
        length = jnp.sqrt(c**2 + s**2)
        lost = length == 0
        c = jnp.where(lost, 1.0, c / jnp.where(lost, 1.0, length))
        s = jnp.where(lost, 0.0, s / jnp.where(lost, 1.0, length))
        return jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])])
    trace = jnp.trace(F)
    axis = _axis(F - F.T)
    lower = F + F.T - trace * jnp.eye(3, dtype=F.dtype)
    davenport = jnp.block([[trace[None, None], axis[None]], [axis[:, None], lower]])
    values, vectors = eigh(davenport)
    w, x, y, z = vectors[:, jnp.argmax(values)]
    return jnp.stack(
        [
            jnp.stack(
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
            ),
            jnp.stack(
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
            ),
            jnp.stack(
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
            ),
        ]
    )


@rotation.defjvp
def _rotation_jvp(primals, tangents):
    (F,), (dF,) = primals, tangents
    R = rotation(F)
    S = R.T @ F
    skew = R.T @ dF - dF.T @ R
    smallest = jnp.finfo(F.dtype).eps
    if F.shape[0] == 2:
        return R, R @ (skew / _away_from_zero(jnp.trace(S), smallest))
    matrix = jnp.trace(S) * jnp.eye(3, dtype=F.dtype) - 0.5 * (S + S.T)
    turn = _cofactors(matrix) @ _axis(skew)
    turn = turn / _away_from_zero(jnp.linalg.det(matrix), smallest)
    x, y, z = turn
    o = jnp.zeros_like(x)
    cross = [jnp.stack(row) for row in ((o, -z, y), (z, o, -x), (-y, x, o))]
    return R, R @ jnp.stack(cross)


def polar(
    F: Float[Array, "d d"],
) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """Left stretch and rotation: F = P R, P symmetric."""
    R = rotation(F)
    P = F @ R.T
    return 0.5 * (P + P.T), R


def spectral(function: Callable, params: Params, P: Array) -> Float[Array, "d d"]:
    """Isotropic function of a symmetric matrix: `U diag(f(s)) U'` of `U diag(s) U'`.

        dY = U (D o A) U' + U diag(df) U',   A = U'dP U,
        D_ij = (f_i - f_j) / (s_i - s_j),    i != j

    Args:
        function: `(params, s [d]) -> f [d]`; permuting s must permute f.
        params: what else f depends on; gradients flow.
        P: symmetric, `[d, d]`. Gradients are exact also where eigenvalues meet.
    """

    @jax.custom_jvp
    def value(params, P):
        s, U = eigh(P)
        return (U * function(params, s)) @ U.T

    @value.defjvp
    def tangent(primals, tangents):
        (params, P), (dparams, dP) = primals, tangents
        s, U = eigh(P)
        A = U.T @ dP @ U
        f, df = jax.jvp(function, (params, s), (dparams, jnp.diag(A)))
        slopes = jax.jacfwd(function, 1)(params, s)
        own = jnp.diag(slopes)[:, None] - slopes
        # Below this gap the slope at both ends is better than the quotient.
        gap = s[:, None] - s[None, :]
        close = jnp.abs(gap) <= jnp.finfo(P.dtype).eps ** (1 / 3) * jnp.max(jnp.abs(s))
        quotient = (f[:, None] - f[None, :]) / jnp.where(close, 1.0, gap)
        D = jnp.where(close, 0.5 * (own + own.T), quotient)
        D = jnp.where(jnp.eye(len(s), dtype=bool), 0.0, D)
        return (U * f) @ U.T, U @ (D * A + jnp.diag(df)) @ U.T

    return value(params, P)


@jax.custom_jvp
def svd(
    F: Float[Array, "d d"],
) -> tuple[Float[Array, "d d"], Float[Array, " d"], Float[Array, "d d"]]:
    """F = U diag(s) V', two rotations, s descending, the last one signed like det F.

    Returns:
        U, s and V'. Gradients of s are exact. Those of U and V leave out what is
        undefined where singular values meet; use `spectral` for laws.
    """
    P, R = polar(F)
    s, U = eigh(P)
    order = jnp.argsort(-s)
    s, U = s[order], U[:, order]
    U = U.at[:, -1].multiply(jnp.where(jnp.linalg.det(U) < 0, -1.0, 1.0))
    return U, s, U.T @ R


@svd.defjvp
def _svd_jvp(primals, tangents):
    (F,), (dF,) = primals, tangents
    U, s, Vt = svd(F)
    A = U.T @ dF @ Vt.T
    smallest = jnp.finfo(F.dtype).eps ** 0.5
    gap = s[None, :] - s[:, None]
    close = jnp.abs(gap) <= smallest * jnp.max(jnp.abs(s))
    both = jnp.where(close, 0.0, (A + A.T) / jnp.where(close, 1.0, gap))
    total = s[None, :] + s[:, None]
    apart = (A - A.T) / _away_from_zero(total, smallest)
    left, right = 0.5 * (both + apart), 0.5 * (both - apart)
    return (U, s, Vt), (U @ left, jnp.diag(A), right.T @ Vt)


def _axis(skew: Array) -> Array:
    """Vector ω of a skew matrix [ω]."""
    return jnp.stack([skew[2, 1], skew[0, 2], skew[1, 0]])


def _cofactors(m: Array) -> Array:
    return jnp.stack(
        [jnp.cross(m[1], m[2]), jnp.cross(m[2], m[0]), jnp.cross(m[0], m[1])]
    )


def _away_from_zero(x: Array, smallest) -> Array:
    return jnp.where(jnp.abs(x) < smallest, smallest, x)
