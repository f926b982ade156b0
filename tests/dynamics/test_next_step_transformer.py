"""Facts of the transformer world model: its window, and what it is trained on."""

import jax
import numpy as np
import pytest
import quick
from linear_system import SPEC, episodes, transitions, windows

from jaxwm.core import stats
from jaxwm.dynamics import transformer

CONTEXT = transformer.TINY.context
MODEL = transformer.transformer(transformer.TINY, SPEC)


@pytest.fixture(scope="module")
def data():
    return episodes(np.random.default_rng(0), 20, 20)


@pytest.fixture(scope="module")
def state(data):
    """Statistics of the data, and weights large enough to tell steps apart."""
    rows = transitions(data)
    state = quick.jit(lambda key: MODEL.adapt(MODEL.init(key), rows))(jax.random.key(1))
    state = jax.tree.map(np.asarray, state)
    draw = np.random.default_rng(3)
    move = lambda x: x + (0.2 * draw.normal(size=x.shape)).astype(x.dtype)
    params = jax.tree.map(move, state.params)
    return state._replace(params=params, buffers={**state.buffers, "ema": params})


@quick.jit
def see(state, memory, obs, prev_action, is_first):
    return MODEL.observe(jax.random.key(0), state, memory, obs, prev_action, is_first)


@quick.jit
def imagine(state, memory, actions):
    return MODEL.imagine(jax.random.key(0), state, memory, actions, 2)


@quick.jit
def loss_and_grads(key, state, window):
    loss = lambda p: MODEL.loss(key, state._replace(params=p), window)
    return jax.value_and_grad(loss, has_aux=True)(state.params)


def measure(state, window, seed=0):
    """The loss and its metrics."""
    (value, (_, metrics)), _ = loss_and_grads(jax.random.key(seed), state, window)
    return float(value), metrics


def observe_all(state, obs, prev_action):
    memory = jax.tree.map(np.asarray, MODEL.initial(state, None))
    for i in range(len(obs)):
        memory = see(state, memory, obs[i], prev_action[i], i == 0)
    return memory


def test_the_window_fills_and_then_slides(state):
    num = CONTEXT + 3
    obs = np.arange(3 * num, dtype=np.float32).reshape(num, 3)
    prev_action = 100 + np.arange(2 * num, dtype=np.float32).reshape(num, 2)
    for seen in (2, CONTEXT, num):
        memory = observe_all(state, obs[:seen], prev_action[:seen])
        kept = min(seen, CONTEXT)
        assert memory.length == kept
        np.testing.assert_array_equal(memory.obs[:kept], obs[seen - kept : seen])
        # The action of a row is the one the next observation came with.
        np.testing.assert_array_equal(
            memory.action[: kept - 1], prev_action[seen - kept + 1 : seen]
        )
        np.testing.assert_array_equal(memory.action[kept - 1], 0)
        np.testing.assert_array_equal(MODEL.feature(state, memory), obs[seen - 1])


def test_what_was_forgotten_does_not_matter(state, data):
    obs, prev_action = data.obs[0, :7], data.action[0, :7]
    changed = obs.copy()
    changed[: 7 - CONTEXT] += 1
    actions = np.array([[0.5, -0.5], [0.1, 0.2]], np.float32)
    run = lambda obs: imagine(state, observe_all(state, obs, prev_action), actions)
    np.testing.assert_array_equal(run(obs).obs, run(changed).obs)
    changed[7 - CONTEXT] += 1  # the oldest row it still holds
    assert not np.array_equal(run(obs).obs[1], run(changed).obs[1])


def test_each_step_of_the_loss_is_what_filtering_predicts(state, data):
    """Trained on a whole window, asked step by step: the predictions are the same."""
    window = jax.tree.map(lambda x: x[0, :CONTEXT], data._replace(physics=None))
    assert window.mask.all()
    statistics = state.buffers["statistics"]
    previous = np.concatenate([np.zeros((1, 2), np.float32), window.action[:-1]])
    for t in range(CONTEXT):
        only = window._replace(mask=np.eye(CONTEXT, dtype=np.float32)[t])
        _, metrics = measure(state, only)
        memory = observe_all(state, window.obs[: t + 1], previous[: t + 1])
        actions = np.stack([window.action[t], np.zeros(2, np.float32)])
        rollout = imagine(state, memory, actions)
        scale = stats.scale(statistics.target)
        miss = (rollout.obs[1] - window.extras["next_obs"][t]) / scale[:3]
        # Observations of about 100 are known to 8e-6, their changes are about 0.003.
        np.testing.assert_allclose(metrics["obs"], np.mean(miss**2), rtol=0.03)
        miss = (rollout.reward[0] - window.reward[t]) / scale[3]
        np.testing.assert_allclose(metrics["reward"], miss**2, rtol=1e-3)


def test_the_future_does_not_enter_the_prediction(state, data):
    window = jax.tree.map(lambda x: x[0, :CONTEXT], data._replace(physics=None))
    window = window._replace(mask=np.eye(CONTEXT, dtype=np.float32)[1])
    changed = window._replace(
        obs=window.obs + (np.arange(CONTEXT) > 1)[:, None].astype(np.float32),
        action=window.action + (np.arange(CONTEXT) > 1)[:, None].astype(np.float32),
    )
    assert measure(state, window)[0] == measure(state, changed)[0]
    changed.action[0] = -0.9 * np.sign(window.action[0])
    assert measure(state, window)[0] != measure(state, changed)[0]


def test_longer_windows_are_cut_to_what_the_model_reads(state, data):
    draw = np.random.default_rng(1)
    one = jax.tree.map(lambda x: x[0], windows(draw, data, 1, 10))
    one = one._replace(physics=None)
    values = {measure(state, one, seed)[0] for seed in range(20)}
    cuts = [jax.tree.map(lambda x, i=i: x[i : i + CONTEXT], one) for i in range(7)]
    parts = [measure(state, cut)[0] for cut in cuts]
    assert len(values) > 1
    assert all(min(abs(v - p) for p in parts) < 1e-5 * v for v in values)


def test_an_empty_window_teaches_nothing(state, data):
    one = jax.tree.map(lambda x: x[0, :CONTEXT], data._replace(physics=None))
    one = one._replace(mask=np.zeros(CONTEXT, np.float32))
    (value, _), grads = loss_and_grads(jax.random.key(0), state, one)
    assert value == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"embed": 30}, "embed must be a positive multiple of heads = 4, got 30"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"ema": -0.1}, r"ema must be in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        transformer.Config(**change)
