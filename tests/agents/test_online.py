"""The online loop: what it stores, when it learns, and that it compiles once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import data, envs
from jaxwm.agents import dream, online
from jaxwm.envs.tasks import pendulum
from jaxwm.recipes import polygrad

NUM_ENVS, STEPS, WINDOW = 3, 5, 4
LOOP = online.Config(steps=STEPS, random_iterations=2, pretrain=2, rounds=1)


def learner(loop=LOOP):
    env = pendulum.pendulum()
    model = polygrad.polygrad(polygrad.TINY, env.spec)
    agent = dream.dream(model, dream.TINY)
    replay = data.replay(NUM_ENVS, 30, WINDOW)
    return online.online(agent, envs.batch(env, NUM_ENVS), replay, loop)


@pytest.fixture(scope="module")
def run():
    """Two seeds, six iterations, jitted as they are in a run."""
    loop = learner()
    keys = jax.vmap(jax.random.key)(jnp.arange(2))

    @jax.jit
    @jax.vmap
    def init(key):
        return loop.init(key)

    def one(key, state, iteration):
        return loop.step(jax.random.fold_in(key, iteration), state, iteration)

    step = jax.jit(jax.vmap(one, (0, 0, None)))
    states, metrics = [init(keys)], []
    for i in range(6):
        state, m = step(keys, states[-1], jnp.int32(i))
        states.append(state)
        metrics.append(m)
    return states, metrics, step


def test_the_loop_compiles_once(run):
    _, _, step = run
    assert step._cache_size() == 1


def test_columns_are_written_in_order_and_kept(run):
    states, _, _ = run
    early, late = states[2].buffer, states[5].buffer
    kept = slice(0, 2 * STEPS)
    np.testing.assert_array_equal(early.obs[:, :, kept], late.obs[:, :, kept])
    assert not np.any(np.asarray(early.obs[:, :, 2 * STEPS :]))
    # Steps follow each other: the next observation is the following row's.
    np.testing.assert_array_equal(late.next_obs[:, :, :9], late.obs[:, :, 1:10])


def test_nothing_is_learnt_while_actions_are_random(run):
    states, metrics, _ = run
    first, second = states[0].agent, states[1].agent
    chex.assert_trees_all_equal(first.model.params, second.model.params)
    chex.assert_trees_all_equal(first.actor.params, second.actor.params)
    actions = np.asarray(states[2].buffer.action[:, :, : 2 * STEPS])
    assert actions.min() < -0.5 and actions.max() > 0.5
    assert float(metrics[0]["model/finite"][0]) == 1.0


def test_learning_starts_when_the_random_iterations_are_over(run):
    states, _, _ = run
    before, after = states[1].agent, states[2].agent
    for part in ("model", "actor", "critic"):
        old = jax.tree.leaves(getattr(before, part).params)
        new = jax.tree.leaves(getattr(after, part).params)
        assert any(np.any(a != b) for a, b in zip(old, new, strict=True)), part


def test_normalisers_see_every_step_once(run):
    states, _, _ = run
    count = states[6].agent.model.buffers["rows"].count
    np.testing.assert_array_equal(count, 6 * NUM_ENVS * STEPS)
    obs = np.asarray(states[6].buffer.obs[0]).reshape(NUM_ENVS * 30, -1)
    mean = states[6].agent.model.buffers["rows"].mean[0, :3]
    np.testing.assert_allclose(mean, obs.mean(0), atol=1e-4)


@pytest.mark.slow
def test_seeds_differ_and_a_seed_alone_gives_the_same_run(run):
    states, _, _ = run
    both = states[3].buffer.obs
    assert np.any(np.asarray(both[0]) != np.asarray(both[1]))
    loop = learner()
    key = jax.random.key(1)
    state = jax.jit(loop.init)(key)
    step = jax.jit(lambda s, i: loop.step(jax.random.fold_in(key, i), s, i)[0])
    for i in range(3):
        state = step(state, jnp.int32(i))
    np.testing.assert_allclose(state.buffer.obs, both[1], atol=1e-4)


@pytest.mark.parametrize("field", ["steps", "random_iterations", "rounds"])
def test_config_names_the_bad_field(field):
    with pytest.raises(ValueError, match=field):
        online.Config(**{field: 0})
