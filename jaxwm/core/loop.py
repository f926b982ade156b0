"""Loops over time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxwm.core import tree
from jaxwm.types import PyTree


def unroll(
    key: Key[Array, ""], state: PyTree, step: Callable, num_steps: int
) -> tuple[PyTree, PyTree]:
    """Scans `step(key, state) -> (state, row [B, ...])`; rows come back `[B, T, ...]`.

    Args:
        key: folded with the step's index, so `num_steps` does not change the draws.
        state: carried from step to step.
        step: one step of a batch.
        num_steps: T, a Python int.
    """

    def body(carry, i):
        return step(jax.random.fold_in(key, i), carry)

    state, rows = jax.lax.scan(body, state, jnp.arange(num_steps))
    return state, tree.swap_leading(rows)


def fold_in_each(key: Key[Array, ""], num: int) -> Key[Array, " {num}"]:
    """One key per index 0 ... num - 1; unlike `split`, the first ones never change."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
