"""Other world models, trained on what a run has collected, to compare errors."""

import sys

import jax
import jax.numpy as jnp

from jaxwm import catalogue, data
from jaxwm.commands.assemble import Assembly
from jaxwm.types import ModelState, PyTree, WorldModel


def train(
    assembly: Assembly,
    iteration: int,
    state: PyTree,
    num_updates: int,
    *,
    batch_size: int = 256,
) -> dict[str, tuple[WorldModel, ModelState]]:
    """Trains the world models of `jaxwm.dynamics` on the first seed's replay.

    Those are what papers compare with; systems of their own want data of their own. One
    is named on the console and left out where its windows are longer than the replay,
    or where the run's policy cannot read its features.

    Args:
        assembly: of the run.
        iteration: that led to the state.
        state: of its learner, all seeds.
        num_updates: of each model.
        batch_size: windows per update.

    Returns:
        Models with their trained states, by name.
    """
    buffer = jax.tree.map(lambda x: jnp.asarray(x[0]), state.buffer)
    index = iteration * assembly.parts.loop.steps
    columns, trained = buffer.reward.shape[1], {}
    read = _feature_shape(assembly.model)
    for entry in catalogue.ENTRIES:
        if entry.bundle != "WorldModel" or entry.room != "dynamics":
            continue
        if entry.name == assembly.entry.name:
            continue
        model = entry.builder()(entry.load().Config(), assembly.env.spec)
        shape, window = _feature_shape(model), model.spec.window
        if window > columns or shape != read:
            reason = (
                f"its windows have {window} steps, the replay {columns}"
                if window > columns
                else f"the policy reads features of shape {read}, not {shape}"
            )
            print(f"{entry.name} is left out: {reason}", file=sys.stderr)
            continue
        learnt = _fit(model, buffer, index, num_updates, batch_size)
        trained[model.spec.name] = model, learnt
    return trained


def _feature_shape(model: WorldModel) -> tuple[int, ...]:
    """What a policy reads."""

    def feature(key):
        state = model.init(key)
        return model.feature(state, model.initial(state, None))

    return jax.eval_shape(feature, jax.random.key(0)).shape


def _fit(model: WorldModel, buffer, index: int, num_updates: int, batch_size: int):
    """A model's state after some updates on windows of the replay."""
    num_envs, capacity = buffer.reward.shape
    replay = data.replay(num_envs, capacity, model.spec.window)
    init_key, fit_key = jax.random.split(jax.random.key(0))
    stored = jax.tree.map(lambda x: x[:, :index].reshape(-1, *x.shape[2:]), buffer)
    stored = stored._replace(mask=jnp.ones_like(stored.reward))

    @jax.jit
    def run(buffer, stored):
        def body(i, state):
            sample_key, step_key = jax.random.split(jax.random.fold_in(fit_key, i))
            windows = replay.sample(sample_key, buffer, index, batch_size)
            return model.fit(step_key, state, windows)[0]

        first = model.adapt(model.init(init_key), stored)
        return jax.lax.fori_loop(0, num_updates, body, first)

    return run(buffer, stored)
