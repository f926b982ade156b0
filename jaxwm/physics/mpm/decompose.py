"""Rotations and stretches of small matrices, with derivatives that stay exact.

    F = R S = P R,   R a rotation (det R = +1),   P = U diag(s) U'

Derivatives of singular vectors blow up where singular values meet, as they do at rest,
F = I. What a material needs does not: the derivative of the rotation wants s_i + s_j
only, and an isotropic function of P wants difference quotients of its values, which
have limits. Both are written out here, so that laws made of them have exact gradients
at rest. An inverted F keeps its rotation; its smallest stretch is negative.

Source: Higham, "Functions of Matrices", 2008, section 3.2 (Daleckii and Krein); the
rotation of greatest trace by Davenport's matrix, Horn, 1987, and the largest root of
its characteristic polynomial, Shuster and Oh, 1981.
Shapes: d = 2 or 3 dimensions. One matrix each; `jax.vmap` adds particles.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.types import Params

_SWEEPS = 5  # of Jacobi's rotations: convergence is quadratic, five reach float64
_ROOT_STEPS = 20  # of Newton's method; halves the error at least, squares it later


def eigh(
    matrix: Float[Array, "d d"],
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues (unsorted) and eigenvectors (columns) of a symmetric matrix.

    Jacobi's rotations in 2 or 3 dimensions: elementwise work that vectorises over
    particles, where LAPACK would be called once for each. Not to be differentiated:
    see `spectral`.
    """
    if matrix.shape[0] == 2:
        c, s, shift = _turn(matrix[0, 0], matrix[1, 1], matrix[0, 1])
        values = jnp.stack([matrix[0, 0] - shift, matrix[1, 1] + shift])
        return values, jnp.stack([jnp.stack([c, s]), jnp.stack([-s, c])])

    def turn(_, carry):
        a, b, c, ab, ac, bc, x, y, z = carry
        cosine, sine, shift = _turn(a, b, ab)
        x, y = cosine * x - sine * y, sine * x + cosine * y
        ac, bc = cosine * ac - sine * bc, sine * ac + cosine * bc
        # The axes move on by one, so that the next pair is again the first two.
        return b + shift, c, a - shift, bc, jnp.zeros_like(ab), ac, y, z, x

    # A loop, not unrolled: compilers copy long chains of scalars into each other.
    entries = [
        matrix[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    ]
    axes = jnp.eye(3, dtype=matrix.dtype) + 0 * matrix
    a, b, c, *_, x, y, z = jax.lax.fori_loop(0, 3 * _SWEEPS, turn, (*entries, *axes))
    return jnp.stack([a, b, c]), jnp.stack([x, y, z], 1)


def _turn(a: Array, b: Array, off: Array) -> tuple[Array, Array, Array]:
    """Cosine and sine, at most 45 degrees, that clear `off`; and what a loses to b."""
    far, gap = 2 * off, b - a
    root = jnp.sqrt(gap**2 + far**2)
    done = root == 0  # also where the squares underflow
    t = far / jnp.where(done, 1.0, jnp.where(gap < 0, gap - root, gap + root))
    cosine = jax.lax.rsqrt(1 + t**2)
    return cosine, t * cosine, t * off


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
    q = _quaternion(F)
    # One step of Newton's method on the axis of R'F - F'R squares the error.
    S = _from_quaternion(q).T @ F
    turn = 0.5 * _turned(S, S - S.T)
    turn = jnp.where(jnp.sum(turn**2) < 0.01, turn, 0.0)  # far off it only harms
    w, v = q[0], q[1:]
    q = jnp.concatenate([(w - v @ turn)[None], v + w * turn + jnp.cross(v, turn)])
    return _from_quaternion(q / jnp.linalg.norm(q))


def _quaternion(F: Float[Array, "3 3"]) -> Float[Array, "4"]:
    """The quaternion of the rotation nearest to F, up to the error of its root.

    It is the eigenvector of Davenport's matrix K for the largest eigenvalue, which is
    the largest root of |K - l 1| = l⁴ - 2 |F|² l² - 8 det(F) l + |F|⁴ - 4 |cof F|², and
    it is every column of the cofactors of K - l 1.
    """
    size = jnp.sqrt(jnp.sum(F**2))
    F = F / jnp.where(size > 0, size, 1.0)
    linear, constant = -8 * _det(F), 1 - 4 * jnp.sum(_cofactors(F) ** 2)

    def step(_, root):
        value = ((root**2 - 2) * root + linear) * root + constant
        slope = (4 * root**2 - 4) * root + linear
        return root - value / jnp.where(slope > 0, slope, 1.0)

    # From above all roots Newton's method falls onto the largest: l <= sqrt(3) |F|.
    bound = jnp.asarray(3**0.5, F.dtype) + 0 * linear
    root = jax.lax.fori_loop(0, _ROOT_STEPS, step, bound)
    trace = jnp.trace(F)
    u = _axis(F - F.T)
    L = F + F.T - (trace + root) * jnp.eye(3, dtype=F.dtype)
    p = trace - root
    minors = _cofactors(L)
    # Cofactors of [[p, u'], [u, L]] by blocks: of the first row, and of the others.
    first = jnp.concatenate([_det(L)[None], -minors @ u])
    others = (p + 1) * minors - _cofactors(L + jnp.outer(u, u))
    columns = jnp.concatenate(
        [first[None], jnp.concatenate([first[1:, None], others], 1)]
    )
    largest = jnp.argmax(jnp.abs(jnp.diag(columns)))
    q = columns[largest]
    length = jnp.linalg.norm(q)
    lost = length < jnp.finfo(F.dtype).tiny ** 0.5  # two stretches cancel
    one = jnp.eye(4, dtype=F.dtype)[0]
    return jnp.where(lost, one, q / jnp.where(lost, 1.0, length))


def _from_quaternion(q: Float[Array, "4"]) -> Float[Array, "3 3"]:
    w, x, y, z = q
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
    if F.shape[0] == 2:
        smallest = jnp.finfo(F.dtype).eps
        return R, R @ (skew / _away_from_zero(jnp.trace(S), smallest))
    x, y, z = _turned(S, skew)
    o = jnp.zeros_like(x)
    cross = [jnp.stack(row) for row in ((o, -z, y), (z, o, -x), (-y, x, o))]
    return R, R @ jnp.stack(cross)


def _turned(S: Array, skew: Array) -> Array:
    """The ω of (tr(S) 1 - S) ω = axis of `skew`."""
    matrix = jnp.trace(S) * jnp.eye(3, dtype=S.dtype) - 0.5 * (S + S.T)
    smallest = jnp.finfo(S.dtype).eps
    turn = _cofactors(matrix) @ _axis(skew)
    return turn / _away_from_zero(_det(matrix), smallest)


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


def _det(m: Array) -> Array:
    return m[0] @ jnp.cross(m[1], m[2])


def _away_from_zero(x: Array, smallest) -> Array:
    return jnp.where(jnp.abs(x) < smallest, smallest, x)
