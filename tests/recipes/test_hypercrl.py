"""Facts that continual learning with a hypernetwork rests on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.core import tree
from jaxwm.recipes import hypercrl as recipe
from jaxwm.types import Box, EnvSpec, Trajectory, Transition

SPEC = EnvSpec(
    name="made up",
    obs=jax.ShapeDtypeStruct((3,), np.dtype("float32")),
    action=Box((-1.0,), (1.0,)),
    control_dt=0.1,
    time_limit=50,
)
CONFIG = dataclasses.replace(recipe.TINY, beta=1.0, learning_rate=1e-2)


def windows(task, num=16):
    rng = np.random.default_rng(task)
    obs = rng.normal(size=(num, 1, 3))
    action = rng.uniform(-1, 1, (num, 1, 1))
    after = obs + (0.5 if task else -0.5) * action + 0.1 * obs[..., ::-1]
    obs, action, after = (np.float32(x) for x in (obs, action, after))
    ones = np.ones((num, 1), np.float32)
    return Trajectory(obs, action, after[..., 0], ones, ones, {"next_obs": after})


def transitions(rows):
    flat = jax.tree.map(lambda x: x[:, 0], rows)
    return Transition(*flat[:4], flat.mask < 0, flat.extras["next_obs"], flat.mask, {})


@functools.cache
def functions(config=CONFIG):
    """Jitted: begin task 0; learn a task for some updates, last metrics included."""
    model = recipe.hypercrl(config, SPEC)

    @functools.partial(jax.jit, static_argnums=2)
    def learn(state, rows, updates):
        def update(state, _):
            return model.fit(None, state, rows)

        return jax.lax.scan(update, state, None, length=updates)

    begin = jax.jit(lambda key, rows: model.adapt(model.init(key), transitions(rows)))
    return model, begin, learn


def weights_of(state, task, config=CONFIG):
    _, hyper = recipe._networks(config, 3, 1)
    params = state.params
    return np.asarray(hyper.flat(params["theta"], params["embeddings"][task]))


@functools.cache
def two_tasks(config=CONFIG):
    """States after the first task, at the start of the second, and after it."""
    model, begin, learn = functions(config)
    first, metrics = learn(begin(jax.random.key(7), windows(0)), windows(0), 30)
    started = recipe.start_task(config, SPEC, first, 1)
    started = model.adapt(started, transitions(windows(1)))
    second, later = learn(started, windows(1), 30)
    return first, started, second, metrics, later


@pytest.mark.slow
def test_the_first_task_is_not_regularised_and_later_ones_are():
    _, _, _, metrics, later = two_tasks()
    assert np.array_equal(metrics["regulariser"], np.zeros(30))
    assert (later["regulariser"][1:] > 0).all()
    assert metrics["error"][-1] < 0.7 * metrics["error"][0]
    assert metrics["finite"].all() and later["finite"].all()


def test_a_new_task_freezes_the_weights_of_the_old_ones():
    first, started, second, _, _ = two_tasks()
    assert started.buffers["task"] == 1
    targets = started.buffers["targets"]
    np.testing.assert_allclose(targets[0], weights_of(first, 0), atol=1e-6)
    assert np.array_equal(second.buffers["targets"], targets)
    moments = jax.tree.leaves(started.opt_state)
    assert all(np.array_equal(x, np.zeros_like(x)) for x in moments)
    # Only the embedding of the task at hand moves; statistics are the task's own.
    before, after = (np.asarray(s.params["embeddings"]) for s in (started, second))
    assert np.array_equal(before[[0, 2]], after[[0, 2]])
    assert np.abs(before[1] - after[1]).max() > 0
    counts = second.buffers["statistics"].obs.count
    assert np.array_equal(counts, [16, 16, 0])


def test_the_regulariser_keeps_old_weights_and_without_it_they_drift():
    drift = {}
    for beta in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, beta=beta)
        first, _, second, _, _ = two_tasks(config)
        gap = weights_of(second, 0, config) - weights_of(first, 0, config)
        drift[beta] = np.linalg.norm(gap)
    assert drift[1.0] < 0.5 * drift[0.0]


def test_the_first_look_ahead_equals_the_penalty_of_the_step_it_foresees():
    """dtheta is the step for L_task: at the start the gap is all its doing."""
    _, started, _, _, later = two_tasks()
    _, hyper = recipe._networks(CONFIG, 3, 1)
    alone = dataclasses.replace(CONFIG, beta=0.0)
    stepped, _ = functions(alone)[2](started, windows(1), 1)
    gap = hyper.flat(stepped.params["theta"], started.params["embeddings"][0])
    penalty = np.sum((gap - started.buffers["targets"][0]) ** 2)
    np.testing.assert_allclose(later["regulariser"][0], penalty, rtol=1e-3)
    blind = dataclasses.replace(CONFIG, look_ahead=False)
    _, metrics = functions(blind)[2](started, windows(1), 1)
    assert metrics["regulariser"][0] < 1e-6 * penalty


def test_each_task_is_imagined_with_its_own_dynamics():
    model, *_ = functions()
    _, _, second, _, _ = two_tasks()
    obs, actions = jnp.ones(3), jnp.ones((3, 1))

    @jax.jit
    def imagine(task):
        memory = model.initial(second, task)
        memory = model.observe(None, second, memory, obs, actions[0], True)
        return model.imagine(jax.random.key(0), second, memory, actions, 3).obs

    assert np.abs(imagine(0)[1:] - imagine(1)[1:]).max() > 1e-3
    now = model.initial(second)
    assert now.task == 1


def test_tasks_beyond_the_table_are_refused():
    model, begin, _ = functions()
    state = begin(jax.random.key(0), windows(0))
    for task in (0, 3):
        with pytest.raises(ValueError, match=r"task must be in 1 ... 2, rows of the"):
            recipe.start_task(CONFIG, SPEC, state, task)
    with pytest.raises(ValueError, match=r"task must be in 0 ... 2"):
        model.initial(state, 3)


@pytest.mark.slow
def test_every_number_of_the_experiment_is_finite(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, recipe.TINY))(key)
    assert tree.all_finite(metrics)
    assert metrics["regulariser/first"] == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tasks": 0}, "tasks must be at least 1, got 0"),
        ({"embedding": 0}, "embedding must be at least 1, got 0"),
        ({"beta": -1.0}, "beta must not be negative, got -1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(recipe.Config(), **change)
