"""Fits a world model to recorded episodes, without an environment or an agent.

Shapes: N episodes of T steps each; B windows of a batch.
"""

import jax
from jaxtyping import Array, Key

from jaxwm import data
from jaxwm.core import optimise, tree
from jaxwm.types import ModelState, Transition, WorldModel


def fitted(
    key: Key[Array, ""],
    model: WorldModel,
    steps: Transition,
    *,
    updates: int,
    batch: int = 256,
) -> ModelState:
    """The model after training on windows drawn uniformly from episodes.

    Args:
        key: for first weights, windows and training.
        model: any world model; its normalisers see all steps first.
        steps: episodes `[N, T, ...]`, the last step of each marked as `truncated`.
        updates: how many; a Python int.
        batch: B, windows of an update.
    """
    num, length = steps.reward.shape
    replay = data.replay(num, length, model.spec.window)
    example = jax.tree.map(lambda x: x[0, 0], steps)
    buffer = replay.add(replay.init(example), 0, steps)
    flat = jax.tree.map(lambda x: x.reshape(num * length, *x.shape[2:]), steps)
    init_key, fit_key = jax.random.split(key)

    def step(key, state, buffer):
        sample_key, update_key = jax.random.split(key)
        windows = replay.sample(sample_key, buffer, length, batch)
        return model.fit(update_key, state, windows)

    state = tree.strong(model.adapt(model.init(init_key), flat))
    return optimise.repeat(step, state, fit_key, buffer, num_steps=updates)[0]
