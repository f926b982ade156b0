"""Spectral entropy of weight matrices: how many directions a network spreads over.

Source: DeMoss et al., "The Complexity Dynamics of Grokking", Physica D 482, 2025, where
it regularises; the effective rank is that of Roy and Vetterli, "The Effective Rank: A
Measure of Effective Dimensionality", EUSIPCO 2007.
Shapes: m rows and n columns of a matrix, r = min(m, n) singular values. Entropies are
in nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.measures import leaves
from jaxwm.types import Params


def spectral_entropy(
    W: Float[Array, "..."], method: str = "svd"
) -> Float[Array, "..."]:
    """Entropy of the distribution that the singular values make.

        H = -sum_i q_i log q_i,   q_i = sigma_i / sum_j sigma_j

    Between 0 (rank one) and log r; it does not change when W is scaled or transposed.

    Args:
        W: matrices, `[..., m, n]`.
        method: "svd" as written; "gram" the same from the eigenvalues of the smaller of
            W W^T and W^T W, faster and blind to singular values below about 1e-3 of the
            largest in float32; "renyi2" the order-2 entropy of the squared values,

                -log sum_i p_i^2 = 2 log tr G - log tr G^2,
                p_i = sigma_i^2 / sum_j sigma_j^2,   G = W W^T

            which needs one matrix product and is at most log r as well.

    Returns:
        H, 0 for a zero matrix. First derivatives are finite everywhere: exact where
        singular values repeat, and 0 along directions whose singular value is zero,
        where H has a kink and 0 is the average of its two slopes.

    Raises:
        ValueError: for an unknown method or fewer than two axes.
    """
    if jnp.ndim(W) < 2:
        raise ValueError(
            f"W must be a matrix or a batch of them, got shape {jnp.shape(W)}; "
            "a vector has no spectrum."
        )
    return _entropy_function(method)(_upright(jnp.asarray(W)))


def effective_rank(W: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exponential of the spectral entropy: 1 for rank one, r for equal values.

    A zero matrix has 1.
    """
    return jnp.exp(spectral_entropy(W))


def spectral_entropy_penalty(
    params: Params, method: str = "svd", *, stacked: leaves.Stacked = False
) -> Float[Array, ""]:
    """Mean spectral entropy over the matrices of a tree.

    Embeddings and output layers count; vectors and scalars do not. Convolution kernels
    are reshaped to `(prod(rest), out)`. Matrices of one shape, transposed or not, are
    decomposed in one call.

    Args:
        params: any tree; leaves that are not floating-point arrays are passed over.
        method: as in `spectral_entropy`.
        stacked: tells, by path ("layers/kernel"), for which leaves the first axis
            counts layers, each a matrix of its own; True for all.

    Returns:
        Nats; 0 if there is no matrix.
    """
    return mean_over_matrices(_entropy_function(method), params, stacked=stacked)


def mean_effective_rank(
    params: Params, *, stacked: leaves.Stacked = False
) -> Float[Array, ""]:
    """Mean effective rank of a tree's matrices; arguments as of the penalty."""
    rank = lambda W: jnp.exp(_entropy_function("svd")(W))
    return mean_over_matrices(rank, params, stacked=stacked)


def mean_over_matrices(
    measure: Callable, params: Params, *, stacked: leaves.Stacked = False
) -> Float[Array, ""]:
    """Mean of `measure([B, m, n]) -> [B]`, m >= n, over a tree's matrices."""
    groups: dict[tuple, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not leaves.is_float(leaf) or leaf.ndim < 2 or leaf.size == 0:
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layers = leaves.is_stacked(stacked, name, leaf.ndim)
        if layers and leaf.ndim == 2:  # a vector per layer
            continue
        W = jnp.asarray(leaf).reshape(leaves.matrix_shape(leaf.shape, layers))
        W = _upright(W)
        groups.setdefault((*W.shape[1:], W.dtype), []).append(W)
    if not groups:
        return jnp.zeros(())
    found = [measure(jnp.concatenate(group)) for group in groups.values()]
    return jnp.mean(jnp.concatenate(found))


def _upright(W: Array) -> Array:
    """At least as many rows as columns; the spectrum does not change."""
    return W if W.shape[-2] >= W.shape[-1] else jnp.swapaxes(W, -1, -2)


def _entropy_function(method: str) -> Callable:
    """Entropy of upright matrices."""
    functions = {
        "svd": lambda W: _entropy(jnp.linalg.svd(W, compute_uv=False), W.shape[-2]),
        "gram": lambda W: _entropy_of_squares(_eigenvalues(_gram(W)), W.shape[-2]),
        "renyi2": _renyi2,
    }
    if method not in functions:
        raise ValueError(
            f"method must be one of {', '.join(functions)}, got {method!r}."
        )
    return functions[method]


def _gram(W: Array) -> Array:
    # TF32 products would hide all but the largest tenths of the spectrum.
    return jnp.einsum("...mi,...mj->...ij", W, W, precision=jax.lax.Precision.HIGHEST)


def _entropy(sigma: Array, rows: int) -> Array:
    """Of singular values; those within rounding of zero are left out."""
    floor = rows * jnp.finfo(sigma.dtype).eps * jnp.max(sigma, -1, keepdims=True)
    counts = ~(sigma <= floor)  # NaN counts, so that it shows
    sigma = jnp.where(counts, sigma, 0.0)
    total = jnp.sum(sigma, -1, keepdims=True)
    q = sigma / jnp.where(total > 0, total, 1.0)
    return -jnp.sum(q * jnp.log(jnp.where(counts, q, 1.0)), -1)


def _entropy_of_squares(squares: Array, rows: int) -> Array:
    """Of squared singular values, whose rounding is relative to the largest square."""
    floor = rows * jnp.finfo(squares.dtype).eps * jnp.max(squares, -1, keepdims=True)
    counts = ~(squares <= jnp.maximum(floor, jnp.finfo(squares.dtype).tiny))
    sigma = jnp.sqrt(jnp.where(counts, squares, 1.0))
    return _entropy(jnp.where(counts, sigma, 0.0), rows)


def _renyi2(W: Array) -> Array:
    # Scaled first: fourth powers of large or small weights leave float32.
    largest = jnp.max(jnp.abs(W), (-2, -1), keepdims=True)
    W = W / jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    gram = _gram(W)
    trace = jnp.einsum("...ii->...", gram)
    square = jnp.sum(gram**2, (-2, -1))
    is_zero = trace == 0
    trace, square = (jnp.where(is_zero, 1.0, x) for x in (trace, square))
    return jnp.where(is_zero, 0.0, 2 * jnp.log(trace) - jnp.log(square))


@jax.custom_jvp
def _eigenvalues(G: Array) -> Array:
    """Eigenvalues of symmetric matrices.

    The derivative `v_i^T dG v_i` needs no differences of eigenvalues, which the
    derivative of the eigenvectors divides by.
    """
    return jnp.linalg.eigvalsh(G)


@_eigenvalues.defjvp
def _eigenvalues_jvp(primals, tangents):
    values, vectors = jnp.linalg.eigh(primals[0])
    return values, jnp.einsum("...ji,...jk,...ki->...i", vectors, tangents[0], vectors)
