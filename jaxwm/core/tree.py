"""Operations on whole pytrees."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxwm.types import PyTree


def where(condition: Bool[Array, "..."], then: PyTree, otherwise: PyTree) -> PyTree:
    """Selects leaf by leaf; `condition`'s axes are the leading axes of every leaf."""

    def select(a, b):
        shape = condition.shape + (1,) * (jnp.ndim(a) - condition.ndim)
        return jnp.where(condition.reshape(shape), a, b)

    return jax.tree.map(select, then, otherwise)


def ema(average: PyTree, new: PyTree, decay) -> PyTree:
    """Exponential moving average: `decay * average + (1 - decay) * new`, per leaf."""
    return jax.tree.map(lambda a, n: a + (1 - decay) * (n - a), average, new)


def fill(tree: PyTree, value) -> PyTree:
    """The same Python value in place of every leaf."""
    return jax.tree.map(lambda _: value, tree)


def stack(trees: list[PyTree]) -> PyTree:
    """Stacks equal trees on a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def swap_leading(tree: PyTree) -> PyTree:
    """Swaps the first two axes of every leaf: `[T, B, ...]` to `[B, T, ...]`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every floating-point entry of every leaf is finite."""
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def strong(tree: PyTree) -> PyTree:
    """Drops weak types, so that a state has one type before and after a step.

    Weakly typed leaves come from Python numbers; a step that returns them strongly
    typed would be compiled a second time.
    """
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), tree)


def usual_floats(tree: PyTree) -> PyTree:
    """Floats in JAX's usual precision, as much as `jax_enable_x64` asks for.

    Declared shapes say float32 whatever the precision is, and simulators differ: a
    memory that is carried has one type from its first step on.
    """

    def cast(x):
        floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.asarray(x, jnp.result_type(float)) if floating else x

    return jax.tree.map(cast, tree)


def num_bytes(tree: PyTree) -> int:
    """Bytes of all leaves; shapes are enough (`jax.eval_shape` output works)."""
    return sum(
        leaf.size * jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf.size * 8
        for leaf in jax.tree.leaves(tree)
    )
