"""Kernels of networks and of data: tangent kernel, alignment, ridge regression.

Source: Jacot et al., "Neural Tangent Kernel", NeurIPS 2018; Cortes et al., "Algorithms
for Learning Kernels Based on Centered Alignment", JMLR 2012.
Shapes: N and M examples, D features of one. `apply(params, x)` maps ONE example to one
number; a network with several outputs is handed over with one of them chosen.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.types import Params, PyTree

_LARGEST_WHOLE = 5000  # examples whose gradients may be held at once without asking


def empirical_ntk(
    apply: Callable,
    params: Params,
    x1: PyTree,
    x2: PyTree,
    *,
    block: int | None = 256,
) -> Float[Array, "N M"]:
    """Tangent kernel of a scalar network at its present weights.

        K(x, x') = <d f(x) / d theta, d f(x') / d theta>

    Args:
        apply: `(params, x) -> []` for one example.
        params: theta, any pytree of arrays.
        x1: examples, leading axis N.
        x2: examples, leading axis M.
        block: gradients held at once of each side; None holds them all.

    Raises:
        ValueError: if `apply` does not return one number, `block` is below 1, or all
            gradients of more than 5000 examples were to be held at once.
    """
    out = jax.eval_shape(apply, params, jax.tree.map(lambda x: x[0], x1))
    if getattr(out, "shape", None) != ():
        raise ValueError(
            "apply must return one number per example, got "
            f"{jax.tree.map(lambda leaf: leaf.shape, out)}; choose an output, for "
            "example `lambda params, x: apply(params, x)[0]`."
        )
    largest = max(_length(x1), _length(x2))
    if block is None and largest > _LARGEST_WHOLE:
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        raise ValueError(
            f"block None would hold the gradients of {largest} examples, "
            f"{4e-9 * largest * size:.1f} GB; give a block, for example 256."
        )
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1 example, got {block}; try 256.")
    block = largest if block is None else block
    gradients = jax.vmap(jax.grad(apply), (None, 0))

    def rows(left):  # [block, ...] -> [block, M]
        of_left = gradients(params, left)

        def tile(right):
            products = jax.tree.map(
                lambda a, b: a.reshape(len(a), -1) @ b.reshape(len(b), -1).T,
                of_left,
                gradients(params, right),
            )
            return sum(jax.tree.leaves(products))

        tiles = jax.lax.map(tile, _blocks(x2, block))  # [blocks of M, n, block]
        return jnp.concatenate(tiles, -1)

    kernel = jnp.concatenate(jax.lax.map(rows, _blocks(x1, block)))
    return kernel[: _length(x1), : _length(x2)]


def linearised(apply: Callable, start: Params) -> Callable:
    """The network's first-order expansion in its weights around `start`.

        f_lin(theta, x) = f(theta_0, x) + J(x) (theta - theta_0)

    Trained with a squared error it is kernel regression with the tangent kernel at
    `start`: features cannot move. Same signature as `apply`.
    """

    def apply_linearised(params, *inputs):
        change = jax.tree.map(jnp.subtract, params, start)
        value, slope = jax.jvp(lambda p: apply(p, *inputs), (start,), (change,))
        return value + slope

    return apply_linearised


def centred_scaled(apply: Callable, start: Params, alpha: float) -> Callable:
    """Output scale that sets how lazily a network learns.

        f(theta, x) = alpha (apply(theta, x) - apply(theta_0, x))

    With the loss divided by alpha^2, large alpha fits the data before the weights have
    moved (lazy, the tangent kernel stays), small alpha must move them (rich).

    Raises:
        ValueError: if alpha is not positive.

    Source: Chizat et al., "On Lazy Training in Differentiable Programming", 2019.
    """
    if alpha <= 0:
        raise ValueError(
            f"alpha must be positive, got {alpha}; small is rich, large is lazy."
        )

    def apply_scaled(params, *inputs):
        return alpha * (apply(params, *inputs) - apply(start, *inputs))

    return apply_scaled


def centred(kernel: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """`H K H` with `H = I - 1 1^T / N`: the kernel of features with mean zero."""
    half = kernel - jnp.mean(kernel, 0)
    return half - jnp.mean(half, 1, keepdims=True)


def kernel_alignment(
    kernel: Float[Array, "N N"], y: Float[Array, " N"], *, centre: bool = True
) -> Float[Array, ""]:
    """How much of a kernel points along the target, in [0, 1].

        A = y^T K y / (|K|_F |y|^2), with K and y centred

    On which points (training or test) is the caller's choice and changes the number.

    Raises:
        ValueError: if y is constant and known outside of a trace; inside one, the
            value is NaN.
    """
    if centre:
        kernel, y = centred(kernel), y - jnp.mean(y)
    power = jnp.sum(y**2)
    if not isinstance(power, jax.core.Tracer) and power == 0:
        raise ValueError(
            f"y must vary, got {y.shape[0]} equal targets; alignment is then 0/0."
        )
    return y @ kernel @ y / (jnp.linalg.norm(kernel) * power)


def kernel_drift(
    before: Float[Array, "N N"], after: Float[Array, "N N"]
) -> Float[Array, ""]:
    """Relative movement `|K_t - K_0|_F / |K_0|_F`; 0 while training is lazy."""
    return jnp.linalg.norm(after - before) / jnp.linalg.norm(before)


def kernel_ridge(
    kernel: Float[Array, "N N"],
    y: Float[Array, " N"],
    ridge: float | Float[Array, ""] = 1e-6,
) -> Float[Array, " N"]:
    """Dual coefficients of ridge regression, `(K + ridge tr(K)/N I)^-1 y`.

    Predictions are `K_test @ coefficients`.

    Args:
        kernel: symmetric positive semi-definite.
        y: targets.
        ridge: relative to the mean of the diagonal. In float32 below about 1e-6 the
            factorisation of a nearly singular kernel gives NaN.
    """
    size = kernel.shape[0]
    shift = ridge * jnp.trace(kernel) / size
    factor = jax.scipy.linalg.cho_factor(kernel + shift * jnp.eye(size))
    return jax.scipy.linalg.cho_solve(factor, y)


def rbf(
    x1: Float[Array, "N D"], x2: Float[Array, "M D"], width: float
) -> Float[Array, "N M"]:
    """Gaussian kernel `exp(-|x - x'|^2 / (2 width^2))`."""
    squares = jnp.sum(x1**2, 1)[:, None] + jnp.sum(x2**2, 1) - 2 * x1 @ x2.T
    return jnp.exp(-jnp.maximum(squares, 0.0) / (2 * width**2))


def arc_cosine(x1: Float[Array, "N D"], x2: Float[Array, "M D"]) -> Float[Array, "N M"]:
    """Kernel of infinitely many ReLU units, `2 E_w[relu(w.x) relu(w.x')]`, w normal.

        |x| |x'| (sin t + (pi - t) cos t) / pi, t the angle between x and x'

    Source: Cho and Saul, "Kernel Methods for Deep Learning", NeurIPS 2009, degree 1.
    """
    norms = jnp.linalg.norm(x1, axis=1)[:, None] * jnp.linalg.norm(x2, axis=1)
    cosine = jnp.clip(x1 @ x2.T / jnp.maximum(norms, 1e-12), -1, 1)
    angle = jnp.arccos(cosine)
    return norms * (jnp.sin(angle) + (jnp.pi - angle) * cosine) / jnp.pi


def _length(x: PyTree) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _blocks(x: PyTree, block: int) -> PyTree:
    """`[N, ...]` to `[blocks, block, ...]`; the last one repeats the last example."""
    length = _length(x)
    short = -length % block

    def split(leaf):
        padded = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], short, 0)])
        return padded.reshape(-1, block, *leaf.shape[1:])

    return jax.tree.map(split, x)
