"""Facts of the recurrent state-space model: filtering, padding, images, learning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from linear_system import SPEC, episodes, transitions

from jaxwm import envs
from jaxwm.core import optimise
from jaxwm.dynamics import offline, rssm
from jaxwm.types import Discrete, EnvSpec, Trajectory, Transition

MODEL = rssm.rssm(rssm.TINY, SPEC)
NETS = rssm.networks(rssm.TINY, SPEC)
IMAGES = SPEC._replace(obs=jax.ShapeDtypeStruct((4, 6, 3), np.dtype("uint8")))


@pytest.fixture(scope="module")
def rows():
    return episodes(np.random.default_rng(0), 8, 12)


@pytest.fixture(scope="module")
def state(rows):
    """Statistics of the data, and weights large enough to tell steps apart."""
    begin = quick.jit(lambda key: MODEL.adapt(MODEL.init(key), transitions(rows)))
    state = jax.tree.map(np.asarray, begin(jax.random.key(1)))
    draw = np.random.default_rng(3)
    move = lambda x: x + (0.2 * draw.normal(size=x.shape)).astype(x.dtype)
    return state._replace(params=jax.tree.map(move, state.params))


@pytest.fixture(scope="module")
def window(rows):
    return jax.tree.map(lambda x: x[0, :6], rows._replace(physics=None))


@quick.jit
def loss_and_grads(state, window):
    loss = lambda p: MODEL.loss(jax.random.key(0), state._replace(params=p), window)
    return jax.value_and_grad(loss, has_aux=True)(state.params)


@quick.jit
def filter_all(state, obs, action, is_first):
    key = jax.random.key(5)
    return rssm.filter_episode(key, NETS, state, SPEC.action, obs, action, is_first)


def test_filtering_an_episode_is_observing_step_by_step(state, window):
    is_first = np.array([True, False, False, True, False, False])
    whole = filter_all(state, window.obs, window.action, is_first)
    memory, observe = MODEL.initial(state, None), quick.jit(MODEL.observe)
    previous = np.concatenate([np.zeros((1, 2), np.float32), window.action[:-1]])
    for i in range(6):
        step_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(5), i))
        memory = observe(
            step_key, state, memory, window.obs[i], previous[i], is_first[i]
        )
        for one, all_rows in zip(memory, whole.latent, strict=True):
            np.testing.assert_allclose(one, all_rows[i], atol=1e-5)


def test_nothing_crosses_the_first_row_of_an_episode(state, window):
    is_first = np.array([True, False, False, True, False, False])
    one = filter_all(state, window.obs, window.action, is_first)
    changed = window.obs.copy(), window.action.copy()
    changed[0][:3] += 0.01
    changed[1][:3] *= -1
    two = filter_all(state, *changed, is_first)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a[3:], b[3:])
        assert not np.array_equal(a[1:3], b[1:3])


def test_the_prior_does_not_see_its_observation_and_the_posterior_does(state, window):
    is_first = np.arange(6) == 0
    one = filter_all(state, window.obs, window.action, is_first)
    obs = window.obs.copy()
    obs[4] += 0.02
    two = filter_all(state, obs, window.action, is_first)
    np.testing.assert_array_equal(one.prior[:5], two.prior[:5])
    np.testing.assert_array_equal(one.posterior[:4], two.posterior[:4])
    assert not np.allclose(one.posterior[4], two.posterior[4])


def test_padding_behind_a_termination_teaches_nothing(state, window):
    """Rows without a step do not enter, whatever they hold."""
    mask = np.array([1, 1, 1, 0, 0, 0], np.float32)
    ended = window._replace(mask=mask, discount=mask * [1, 1, 0, 0, 0, 0])
    ended = jax.tree.map(lambda x: np.asarray(x, np.float32), ended)
    next_obs = ended.extras["next_obs"].copy()
    next_obs[3:] += 1
    other = ended._replace(
        reward=ended.reward + 9 * (1 - mask),
        action=ended.action + (1 - mask)[:, None],
        extras={"next_obs": next_obs},
    )
    (one, _), grads = loss_and_grads(state, ended)
    (two, _), _ = loss_and_grads(state, other)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    (none, _), empty = loss_and_grads(state, ended._replace(mask=0 * mask))
    assert none == 0 and all(np.all(g == 0) for g in jax.tree.leaves(empty))
    for name in ("encoder", "transition", "posterior", "obs", "reward", "discount"):
        assert any(np.any(g != 0) for g in jax.tree.leaves(grads[name])), name


def test_free_nats_are_free_and_beta_weighs_the_rest(state, window):
    @quick.jit
    def measure(state, window):
        found = []
        for change in ({"beta": 0.0}, {"free_nats": 1e3}, {"beta": 2.0}, {}):
            model = rssm.rssm(dataclasses.replace(rssm.TINY, **change), SPEC)
            found.append(model.loss(jax.random.key(0), state, window)[0])
        return found

    none, free, double, once = measure(state, window)
    # Seven observations' worth of a thousand nats over six rows.
    np.testing.assert_allclose(free - none, 7 / 6 * 1e3, rtol=1e-3)
    np.testing.assert_allclose(double - none, 2 * (once - none), rtol=1e-3)
    assert once > none


@pytest.fixture(scope="module")
def pictures():
    """A model of small images, and windows of random ones."""
    draw = np.random.default_rng(0)
    obs = draw.integers(0, 256, (2, 4, 4, 6, 3)).astype(np.uint8)
    ones = np.ones((2, 4), np.float32)
    action = draw.uniform(-1, 1, (2, 4, 2)).astype(np.float32)
    windows = Trajectory(obs, action, ones, ones, ones, {})
    return rssm.rssm(rssm.TINY, IMAGES), windows


def test_images_are_filtered_and_painted_as_bytes(pictures, key):
    model, windows = pictures

    @quick.jit
    def run(key):
        init_key, observe_key, imagine_key = jax.random.split(key, 3)
        state = model.init(init_key)
        memory = model.observe(
            observe_key,
            state,
            model.initial(state, None),
            windows.obs[0, 0],
            windows.action[0, 0],
            True,
        )
        rollout = model.imagine(imagine_key, state, memory, windows.action[0], 4)
        return rollout, model.decode(state, memory)

    rollout, decoded = run(key)
    assert rollout.obs.shape == (4, 4, 6, 3) and rollout.obs.dtype == np.uint8
    np.testing.assert_array_equal(rollout.obs[0], decoded)
    assert rollout.info["entropy"].shape == (4,)


@pytest.mark.slow
def test_images_are_learnt(pictures, key):
    model, windows = pictures
    init_key, loop_key = jax.random.split(key)

    @jax.jit
    def learn(state):
        return optimise.repeat(model.fit, state, loop_key, windows, num_steps=300)

    _, metrics = learn(model.init(init_key))
    assert metrics["finite"].all()
    assert metrics["obs"][-1] < 0.7 * metrics["obs"][0]


@pytest.mark.slow
def test_ten_steps_of_a_pendulum_are_foreseen():
    """A hundredth of what repeating the last observation misses; measured 0.016."""
    env = envs.make("pendulum", engine="jax")

    def episode(key):
        reset_key, act_key, step_key = jax.random.split(key, 3)

        def body(state, i):
            action = jax.random.uniform(
                jax.random.fold_in(act_key, i), (1,), minval=-1, maxval=1
            )
            new = env.step(step_key, state, action)
            row = (state.obs, action, new.reward, new.discount, i == 99, new.obs)
            return new, Transition(*row, jnp.ones(()), {})

        return jax.lax.scan(body, env.reset(reset_key), jnp.arange(100))[1]

    play = jax.jit(jax.vmap(episode))
    steps = play(jax.random.split(jax.random.key(1), 60))
    test = play(jax.random.split(jax.random.key(2), 64))
    config = rssm.Config()
    model = rssm.rssm(config, env.spec)
    state = jax.jit(
        lambda key: offline.fitted(key, model, steps, updates=600, batch=64)
    )(jax.random.key(0))
    start = config.context - 1

    def imagine(key, episode):
        def body(memory, i):
            previous = jnp.where(i > 0, episode.action[i - 1], 0.0)
            step_key = jax.random.fold_in(key, i)
            return model.observe(
                step_key, state, memory, episode.obs[i], previous, i == 0
            ), None

        steps = jnp.arange(config.context)
        memory = jax.lax.scan(body, model.initial(state, None), steps)[0]
        actions = episode.action[start : start + 11]
        return model.imagine(jax.random.fold_in(key, 99), state, memory, actions, 11)

    keys = jax.random.split(jax.random.key(5), 64)
    rollout = jax.jit(jax.vmap(imagine))(keys, test)
    truth = test.obs[:, start : start + 11]
    variance = np.var(steps.obs, (0, 1))
    error = np.mean((rollout.obs - truth)[:, 1:] ** 2 / variance)
    still = np.mean((truth[:, :1] - truth)[:, 1:] ** 2 / variance)
    print(f"error over copy-last {error / still:.3f}")
    assert error < 0.1 * still
    miss = np.mean((rollout.reward - test.reward[:, start : start + 11]) ** 2)
    assert miss < 0.2 * np.var(test.reward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deter": 0}, "deter must be at least 1, got 0"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"channels": ()}, "channels must name at least one layer"),
        ({"length": 1}, "length must be at least 2 rows and the context"),
        ({"context": 99}, "length must be at least 2 rows and the context, 99"),
        ({"balance": 1.5}, r"balance must be in \[0, 1\], got 1.5"),
        ({"free_nats": -1.0}, "free_nats must not be negative"),
        ({"obs_std": 0.0}, "obs_std must be positive, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(rssm.TINY, **change)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SPEC._replace(action=Discrete(3)), "the rssm needs continuous actions"),
        (IMAGES._replace(action=Discrete(3)), "the rssm needs one flat observation"),
        (
            SPEC._replace(obs=jax.ShapeDtypeStruct((4, 6), np.dtype("float32"))),
            "the rssm needs one flat observation",
        ),
    ],
)
def test_environments_it_cannot_read_are_refused(spec: EnvSpec, message):
    with pytest.raises(ValueError, match=message):
        rssm.rssm(rssm.TINY, spec)
