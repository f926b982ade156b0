"""Facts of autoregressive diffusion: what is known, what is learnt, what is applied."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from linear_system import SPEC, episodes, observe, transitions, windows

from jaxwm.dynamics import autoregressive_diffusion
from jaxwm.dynamics.autoregressive_diffusion import Config

TINY = autoregressive_diffusion.TINY


def build(**change):
    config = dataclasses.replace(TINY, **change)
    return autoregressive_diffusion.autoregressive_diffusion(config, SPEC)


MODEL = build()


@pytest.fixture(scope="module")
def data():
    return episodes(np.random.default_rng(0), 20, 20)


def ready(model, data):
    rows = transitions(data)
    return quick.jit(lambda key: model.adapt(model.init(key), rows))(jax.random.key(1))


@quick.jit
def loss_and_grads(key, state, window):
    loss = lambda p: MODEL.loss(key, state._replace(params=p), window)[0]
    return jax.value_and_grad(loss)(state.params)


@pytest.fixture(scope="module")
def state(data):
    return ready(MODEL, data)


def pairs(data, num=1):
    """Windows of two rows without stored next observations: one transition each."""
    draw = np.random.default_rng(1)
    return windows(draw, data, num, 2, keep_next_obs=False)


def test_the_second_row_s_reward_and_end_are_not_learnt(state, data):
    """They belong to an action that the model is not given."""
    one = jax.tree.map(lambda x: x[0], pairs(data))
    other = one._replace(
        reward=one.reward + np.array([0, 9], np.float32),
        action=one.action + np.array([[0], [9]], np.float32),
    )
    loss = lambda window: loss_and_grads(jax.random.key(3), state, window)[0]
    assert loss(one) == loss(other)
    first = one._replace(reward=one.reward + np.array([9, 0], np.float32))
    assert loss(one) != loss(first)


def test_padding_is_never_drawn(state, data):
    draw = np.random.default_rng(1)
    one = jax.tree.map(lambda x: x[0], windows(draw, data, 1, 6))
    one = one._replace(mask=np.array([1, 0, 0, 0, 0, 0], np.float32))
    ruin = lambda x: np.where(
        one.mask.reshape(6, *(1,) * (x.ndim - 1)) > 0, x, np.float32(np.nan)
    )
    spoilt = one._replace(obs=ruin(one.obs), reward=ruin(one.reward))
    for seed in range(5):
        value, _ = loss_and_grads(jax.random.key(seed), state, spoilt)
        assert np.isfinite(value)


def test_an_empty_window_teaches_nothing(state, data):
    one = jax.tree.map(lambda x: x[0], pairs(data))
    one = one._replace(mask=np.zeros(2, np.float32), discount=np.ones(2, np.float32))
    value, grads = loss_and_grads(jax.random.key(0), state, one)
    assert value == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads))


def test_every_transition_of_a_longer_window_is_drawn(state, data):
    draw = np.random.default_rng(1)
    one = jax.tree.map(lambda x: x[0], windows(draw, data, 1, 4))
    one = one._replace(mask=np.ones(4, np.float32), physics=None)

    def reward_weight(key):
        """Which reward the loss depends on."""
        loss = lambda r: MODEL.loss(key, state, one._replace(reward=r))[0]
        return jax.grad(loss)(jnp.asarray(one.reward)) != 0

    keys = jax.random.split(jax.random.key(0), 64)
    used = np.asarray(quick.jit(jax.vmap(reward_weight))(keys))
    assert (used.sum(1) == 1).all()
    assert (used.sum(0) > 4).all()


def test_actions_beyond_the_bounds_act_like_the_bounds(data):
    start = jnp.asarray(observe(np.zeros(3)))
    for clips in (True, False):
        model = build(clip_actions=clips)
        state = ready(model, data)

        @quick.jit
        def after(scale, model=model, state=state):
            actions = scale * jnp.array([[1.0, -1.0], [1.0, 1.0]])
            return model.imagine(jax.random.key(2), state, start, actions, 2)

        one, three = after(1.0), after(3.0)
        assert np.array_equal(one.obs, three.obs) == clips
        np.testing.assert_array_equal(three.action[0], [3, -3])


def test_without_terminations_every_step_goes_on(data):
    state = ready(MODEL, data._replace(discount=np.ones_like(data.discount)))
    start = jnp.asarray(observe(np.zeros(3)))
    run = lambda key: MODEL.imagine(key, state, start, jnp.zeros((3, 2)), 3)
    np.testing.assert_array_equal(quick.jit(run)(jax.random.key(2)).discount, 1)


def test_the_published_mode_runs_all_levels_with_scaled_actions(data):
    published = autoregressive_diffusion.PAPER
    assert (published.calls, published.levels, published.tau) == (128, 128, 0.1)
    small = dataclasses.replace(published, width=16, depth=1)
    model = autoregressive_diffusion.autoregressive_diffusion(small, SPEC)
    state = ready(model, data)
    start = jnp.asarray(observe(np.zeros(3)))
    run = lambda key: model.imagine(key, state, start, jnp.zeros((2, 2)), 2)
    assert quick.jit(run)(jax.random.key(2)).info["finite"]
    one = jax.tree.map(lambda x: x[0], pairs(data))
    assert np.isfinite(quick.jit(model.loss)(jax.random.key(3), state, one)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calls": 0}, r"calls must be in 1 \.\.\. 128"),
        ({"calls": 200}, r"calls must be in 1 \.\.\. 128"),
        ({"width": 0}, "width must be at least 1"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"time": "clock"}, 'time must be "log_sigma" or "index"'),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)
