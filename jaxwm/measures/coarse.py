"""Coarse-graining: low rank and a grid of bins, and what the result costs to store.

    W = U diag(s) V^T,   k = 1 + #{i : s_1 + ... + s_i < τ Σ s}
    L = U_k √s_k,  R = √s_k V_k^T        (mode "balanced")
    L = U_k s_k,   R = V_k^T             (mode "reference")
    W~ = δ² round(L/δ) round(R/δ)   if k (m + n) < m n,   else   δ round(W/δ)

Leaves of one axis are rounded only. Everything has a static shape: `jit`, `vmap` over
checkpoints and a loop over (τ, δ) work. Shapes: B matrices of a leaf, m rows, n
columns, r = min(m, n), M matrices of the whole tree.

Source: DeMoss et al., "The Complexity Dynamics of Grokking", 2024, section 4.
Departs: the singular value that crosses τ is kept (the published code drops it, so
that τ = 0 leaves nothing); both factors have one scale, so one bin suits both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxwm.measures import leaves
from jaxwm.types import PyTree

MAX_BIN = 512  # integers of this size or above do not fit the grid
_HEADER_BITS = 64  # of one matrix or vector: shape, rank, bin
_HIGHEST = jax.lax.Precision.HIGHEST


class Svd(NamedTuple):
    """Singular value decomposition of the matrices of one leaf."""

    u: Float[Array, "B m r"]
    s: Float[Array, "B r"]
    vt: Float[Array, "B r n"]


class Coarse(NamedTuple):
    """A coarse-grained tree and its size."""

    params: PyTree  # dequantised: same structure, shapes and dtypes
    bits: Float[Array, ""]  # order-0 entropy of the integers, tables included
    ranks: Int[Array, " M"]  # per matrix, in the order of the tree; r where dense
    ok: Bool[Array, ""]  # False where an integer is too large for the grid


def svd_cache(
    params: PyTree, *, stacked: leaves.Stacked = False
) -> tuple[Svd | None, ...]:
    """Decompositions of a tree's matrices, once for all bins and thresholds.

    Args:
        params: any pytree.
        stacked: tells, by path ("layers/kernel"), for which leaves the first axis
            counts layers; True for all. Those are matrices of their own.

    Returns:
        One entry per floating-point leaf: None for leaves of one axis.
    """
    found = leaves.flatten(params)
    return tuple(
        _decompose(array, name, stacked)
        for array, name in zip(found.arrays, found.names, strict=True)
    )


def coarse_grain(
    params: PyTree,
    cache: tuple[Svd | None, ...],
    tau: Float[Array, ""] | float | int,
    delta: Float[Array, ""] | float | int,
    mode: str = "balanced",
) -> Coarse:
    """Cuts ranks, rounds to bins, and counts the bits that are left.

    The size is that of a two-part code per matrix: `-Σ c log2(c / N)` for N integers
    of which each symbol occurs c times, plus its table, `D (log2(2 max|q| + 2) +
    log2 N)` for D symbols, plus 64 bits. Leaves that are not floating-point are kept
    and counted in full.

    Args:
        params: any pytree.
        cache: of the same tree, from `svd_cache`; decides which leaves are stacked.
        tau: share of the sum of singular values to keep, in [0, 1]; may be traced.
        delta: width of a bin, above 0; may be traced.
        mode: "balanced" or "reference": how the factors share the singular values.

    Raises:
        ValueError: for `tau` or `delta` outside their range (Python numbers), an
            unknown `mode`, a cache of another tree, params with NaN.
    """
    check_range(tau, delta, mode)
    found = leaves.flatten(params)
    if len(cache) != len(found.arrays):
        raise ValueError(
            f"cache must be svd_cache(params): it has {len(cache)} entries, params "
            f"have {len(found.arrays)} floating-point leaves."
        )
    parts = [
        _vector(array, delta)
        if svd is None
        else _matrices(array, svd, tau, delta, mode)
        for array, svd in zip(found.arrays, cache, strict=True)
    ]
    new, bits, ranks, ok = zip(*parts, strict=True)
    total = sum(bits) + jnp.float32(found.kept_bits())
    return Coarse(
        found.rebuild(new),
        total,
        jnp.concatenate([*ranks, jnp.zeros(0, jnp.int32)]),
        jnp.all(jnp.stack(ok)),
    )


def kept_rank(
    s: Float[Array, " r"], tau: Float[Array, ""] | float | int
) -> Int[Array, ""]:
    """Number of leading singular values up to and with the one that reaches τ."""
    rank = 1 + jnp.sum(jnp.cumsum(s) < tau * jnp.sum(s))
    return jnp.minimum(rank, s.shape[0]).astype(jnp.int32)


def factors(
    matrix: Float[Array, "m n"], tau: Float[Array, ""] | float | int, mode: str
) -> tuple[Float[Array, "m r"], Float[Array, "n r"]]:
    """Left and right factor of a matrix; columns beyond the kept rank are zero."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    keep = jnp.arange(s.shape[0]) < kept_rank(s, tau)
    root = jnp.sqrt(s)
    left, right = (u * root, vt.T * root) if mode == "balanced" else (u * s, vt.T)
    return jnp.where(keep, left, 0.0), jnp.where(keep, right, 0.0)


def entropy_bits(
    q: Int[Array, "..."], valid: Bool[Array, "..."]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """Size in bits of the valid integers, and whether all fit below `MAX_BIN`."""
    q, valid = q.reshape(-1), valid.reshape(-1)
    index = jnp.clip(q, -MAX_BIN, MAX_BIN) + MAX_BIN
    counts = jnp.zeros(2 * MAX_BIN + 1).at[index].add(valid.astype(jnp.float32))
    num = jnp.maximum(jnp.sum(counts), 1.0)
    share = jnp.where(counts > 0, counts / num, 1.0)
    largest = jnp.max(jnp.where(valid, jnp.abs(q), 0))
    symbols = jnp.sum(counts > 0)
    table = symbols * (jnp.log2(2.0 * largest + 2.0) + jnp.log2(num))
    bits = -jnp.sum(counts * jnp.log2(share)) + table + _HEADER_BITS
    return bits, largest < MAX_BIN


def _decompose(array, name: str, stacked: leaves.Stacked) -> Svd | None:
    if array.ndim < 2:
        return None
    layers = leaves.is_stacked(stacked, name, array.ndim)
    shape = leaves.matrix_shape(array.shape, layers)
    matrices = jnp.asarray(array, jnp.float32).reshape(shape)
    return Svd(*jnp.linalg.svd(matrices, full_matrices=False))


def _vector(array, delta):
    q, ok = _round(jnp.asarray(array, jnp.float32), delta)
    bits, small = entropy_bits(q, jnp.ones(q.shape, bool))
    new = (q * delta).astype(array.dtype)
    return new, bits, jnp.zeros(0, jnp.int32), ok & small


def _matrices(array, svd: Svd, tau, delta, mode: str):
    batch, m, _ = svd.u.shape
    n = svd.vt.shape[-1]
    matrices = jnp.asarray(array, jnp.float32).reshape(batch, m, n)

    def one(matrix, u, s, vt):
        rank = kept_rank(s, tau)
        keep = jnp.arange(s.shape[0]) < rank
        root = jnp.sqrt(s)
        left, right = (
            (u * root, root[:, None] * vt) if mode == "balanced" else (u * s, vt)
        )
        q_left, fits_left = _round(jnp.where(keep, left, 0.0), delta)
        q_right, fits_right = _round(jnp.where(keep[:, None], right, 0.0), delta)
        q_dense, fits_dense = _round(matrix, delta)
        low = rank * (m + n) < m * n
        integers = jnp.concatenate([q_left.reshape(-1), q_right.reshape(-1)])
        valid = jnp.concatenate(
            [
                jnp.broadcast_to(keep, q_left.shape).reshape(-1),
                jnp.broadcast_to(keep[:, None], q_right.shape).reshape(-1),
            ]
        )
        low_bits, low_small = entropy_bits(integers, valid)
        dense_bits, dense_small = entropy_bits(q_dense, jnp.ones(q_dense.shape, bool))
        # Integers below 512 and ranks below 1024 keep the product exact in float32,
        # where the machine is not allowed to shorten its factors.
        product = jnp.matmul(
            q_left.astype(jnp.float32), q_right.astype(jnp.float32), precision=_HIGHEST
        )
        new = jnp.where(low, product * delta**2, q_dense * delta)
        ok = jnp.where(
            low, low_small & fits_left & fits_right, dense_small & fits_dense
        )
        return (
            new,
            jnp.where(low, low_bits, dense_bits),
            jnp.where(low, rank, s.shape[0]).astype(jnp.int32),
            ok,
        )

    new, bits, ranks, ok = jax.vmap(one)(matrices, svd.u, svd.s, svd.vt)
    new = new.reshape(array.shape).astype(array.dtype)
    return new, jnp.sum(bits), ranks, jnp.all(ok)


def _round(x, delta):
    """Nearest integers, and whether none overflowed before it was clipped."""
    scaled = jnp.round(x / delta)
    fits = jnp.all(jnp.abs(scaled) < MAX_BIN)  # False for NaN, too
    return jnp.clip(scaled, -MAX_BIN, MAX_BIN).astype(jnp.int32), fits


def check_range(tau, delta, mode: str) -> None:
    """Refuses thresholds and bins outside their range; traced ones pass."""
    if isinstance(tau, int | float) and not 0 <= tau <= 1:
        raise ValueError(
            f"tau must lie in [0, 1], got {tau}; it is the share of the sum of "
            "singular values that is kept."
        )
    if isinstance(delta, int | float) and not delta > 0:
        raise ValueError(f"delta must be above 0, got {delta}; it is a bin's width.")
    if mode not in ("balanced", "reference"):
        raise ValueError(f'mode must be "balanced" or "reference", got {mode!r}.')
