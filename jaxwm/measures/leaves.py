"""A tree of parameters as a list of arrays to be coded, and back again.

Floating-point leaves are coded; every other leaf (counters, masks, random keys,
activation functions of a module) is kept as it is and counted at its own size.
A leaf of two or more axes is seen as matrices `[B, m, n]`: convolution kernels as one
of shape (product of the leading axes, output), stacked layers as B matrices of their
own, one per layer. Shapes: B matrices of a leaf, m rows, n columns.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import PyTree

Stacked = Callable[[str], bool] | bool


class Leaves(NamedTuple):
    """The coded leaves of a tree, and what is needed to put it together again."""

    arrays: list[Any]  # floating-point leaves, in the order of the tree
    names: list[str]  # their paths, "a/b/c"
    kept: list[Any]  # every leaf; None where it is coded
    coded: list[bool]
    structure: Any

    def rebuild(self, arrays) -> PyTree:
        """The tree with these arrays in place of the coded leaves."""
        arrays = iter(arrays)
        leaves = zip(self.kept, self.coded, strict=True)
        return self.structure.unflatten(
            next(arrays) if coded else kept for kept, coded in leaves
        )

    def kept_bits(self) -> int:
        """Size of the leaves that are not coded; what is no array is free."""
        return sum(
            8 * nbytes(leaf)
            for leaf, coded in zip(self.kept, self.coded, strict=True)
            if not coded
        )


def flatten(params: PyTree) -> Leaves:
    """Takes a tree apart.

    Raises:
        ValueError: where no leaf holds a floating-point number; for NaN or infinite
            numbers (seen only outside of `jit` and `vmap`).
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    arrays, names, kept, coded = [], [], [], []
    for path, leaf in paths:
        is_coded = is_float(leaf) and leaf.size > 0
        coded.append(is_coded)
        kept.append(None if is_coded else leaf)
        if is_coded:
            arrays.append(leaf)
            names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    if not arrays:
        raise ValueError(
            f"params must hold floating-point arrays, got {len(paths)} leaves and none "
            "of them; pass the tree of weights itself."
        )
    for name, leaf in zip(names, arrays, strict=True):
        if not isinstance(leaf, jax.core.Tracer) and not np.all(
            np.isfinite(np.asarray(leaf, np.float32))
        ):
            raise ValueError(
                f"params[{name or 'root'}] must be finite, got NaN or infinity; "
                "a code within epsilon of such weights means nothing."
            )
    return Leaves(arrays, names, kept, coded, structure)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of jax or numpy."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is an array of real floating-point numbers."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def nbytes(leaf: Any) -> int:
    """Bytes of an array, 8 per random key; 0 for what is not an array."""
    if not is_array(leaf):
        return 0
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8 * leaf.size
    return leaf.size * leaf.dtype.itemsize


def is_stacked(stacked: Stacked, name: str, ndim: int) -> bool:
    """Whether the first axis of a leaf counts layers."""
    told = stacked(name) if callable(stacked) else stacked
    return bool(told) and ndim >= 2


def matrix_shape(shape: tuple[int, ...], layers: bool) -> tuple[int, int, int]:
    """Shape (B, m, n) that a leaf of two or more axes is seen as.

    A stacked vector (`layers` of a leaf with two axes) is B columns of n = 1.
    """
    batch, rest = (shape[0], shape[1:]) if layers else (1, shape)
    if len(rest) == 1:
        return batch, rest[0], 1
    return batch, math.prod(rest[:-1]), rest[-1]


def check_scalar(loss: Callable, found: Leaves) -> Callable:
    """`loss` as a function of the coded arrays.

    Raises:
        ValueError: where it does not return one real number.
    """

    def of_arrays(arrays):
        return loss(found.rebuild(arrays))

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in found.arrays]
    out = jax.eval_shape(of_arrays, shapes)
    leaves = jax.tree.leaves(out)
    shape = tuple(getattr(leaf, "shape", "?") for leaf in leaves)
    if len(leaves) != 1 or not is_scalar(leaves[0]):
        raise ValueError(
            "loss must return one scalar, the mean loss in nats on a fixed set of "
            f"data, got shapes {shape}; average over examples, drop auxiliary outputs."
        )
    return lambda arrays: jax.tree.leaves(of_arrays(arrays))[0]


def is_scalar(value: Any) -> bool:
    """Whether a traced output is one real number."""
    return value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)


def check_epsilon(epsilon: Any) -> None:
    """Refuses tolerances that are not positive numbers; traced ones pass.

    Raises:
        ValueError: for 0, negative or NaN `epsilon`.
    """
    if isinstance(epsilon, jax.core.Tracer):
        return
    values = np.asarray(epsilon, np.float64)
    if values.size == 0 or not np.all(values > 0):
        raise ValueError(
            f"epsilon must be above 0 nats, got {epsilon}; it is how far the loss of "
            "the decoded network may lie above that of the original."
        )
