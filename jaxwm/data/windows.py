"""Windows from a fixed dataset: a world model's training data without an environment.

Shapes: M rows of a dataset, B batch, W rows of a window.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxwm.data import dataset
from jaxwm.data.replay import as_stored, windows_at
from jaxwm.types import Trajectory, Transition


class Windows(NamedTuple):
    """Pure functions of one dataset.

    init:   (rows) -> buffer; `rows` is a dataset as `dataset.concatenate` or
            `minari.load` make it, `[M, ...]`. Checks it, on the host.
    sample: (key, buffer, batch_size) -> Trajectory [B, W, ...], first rows drawn
            uniformly over all rows. What a window holds, also where an episode is
            shorter than W, is as in `replay.windows_at`.
    """

    init: Callable
    sample: Callable


def windows(window: int) -> Windows:
    """Builds the functions that draw windows of W rows.

    The buffer is an argument of `sample`, so a compiled training step takes it as an
    input: an agent's source is `lambda key, n: source.sample(key, buffer, n)` written
    inside the function that is compiled.

    Args:
        window: W, at least 1.

    Raises:
        ValueError: if `window` is not positive; from `init`, naming episode and row, if
            rows are missing or not finite.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}.")

    def init(rows: Transition) -> Transition:
        rows = dataset.concatenate(dataset.split_episodes(rows))
        rows = as_stored(jax.tree.map(jnp.asarray, rows))
        return jax.tree.map(lambda x: x[None], rows)

    def sample(key: Key[Array, ""], buffer: Transition, batch_size: int) -> Trajectory:
        # A dataset is a ring of one environment that has been filled exactly once.
        num_rows = buffer.reward.shape[1]
        row = jax.random.randint(key, (batch_size,), 0, num_rows)
        return windows_at(buffer, num_rows, jnp.zeros_like(row), row, window)

    return Windows(init, sample)
