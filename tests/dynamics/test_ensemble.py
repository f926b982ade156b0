"""Facts of the probabilistic ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from linear_system import SPEC, episodes, observe, transitions, windows

from jaxwm.core import optimise, stats
from jaxwm.dynamics import ensemble
from jaxwm.types import Discrete

MODEL = ensemble.ensemble(ensemble.TINY, SPEC)
OBS, ACTION = observe(np.zeros(3)), np.array([[0.3, -0.4], [0.1, 0.9]], np.float32)


@quick.jit
def begin(key, rows):
    return MODEL.adapt(MODEL.init(key), rows)


@quick.jit
def imagine(state):
    return MODEL.imagine(jax.random.key(2), state, OBS, ACTION, 2)


@quick.jit
def loss_and_grads(params, state, window):
    def loss(params):
        key = jax.random.key(3)
        return MODEL.loss(key, state._replace(params=params), window)[0]

    return jax.value_and_grad(loss)(params)


def window_of(data):
    """One window of eight rows."""
    window = windows(np.random.default_rng(1), data, 1, 8)
    return jax.tree.map(lambda x: x[0], window)


@pytest.fixture(scope="module")
def data():
    return episodes(np.random.default_rng(0), 20, 20)


@pytest.fixture(scope="module")
def state(data):
    """A fresh ensemble that has seen the statistics of the data."""
    return jax.tree.map(np.asarray, begin(jax.random.key(1), transitions(data)))


def with_weights(state, change):
    return state._replace(
        buffers={**state.buffers, "ema": change(state.buffers["ema"])}
    )


def test_members_start_apart(state):
    for kernel in jax.tree.leaves(state.params["mlp"]):
        if np.any(kernel != 0):  # biases all start at 0
            assert not np.array_equal(kernel[0], kernel[1])


def test_equal_members_learn_different_things_from_one_window(data, state):
    """Their keys are not shared: each weighs the steps by itself."""
    same = jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), state.params)
    _, grads = loss_and_grads(same, state, window_of(data))
    for g in jax.tree.leaves(grads["mlp"]):
        assert not np.allclose(g[0], g[1], rtol=1e-3)


def test_padding_does_not_enter_the_loss(data, state):
    one = window_of(data)
    one = one._replace(mask=np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32))
    other = one._replace(
        obs=one.obs + np.where(one.mask[:, None], 0, 1).astype(np.float32),
        reward=one.reward + np.where(one.mask, 0, 7).astype(np.float32),
    )
    values = [loss_and_grads(state.params, state, w)[0] for w in (one, other)]
    np.testing.assert_allclose(*values)
    empty = one._replace(mask=np.zeros(8, np.float32))
    _, grads = loss_and_grads(state.params, state, empty)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads["mlp"]))


def test_only_elites_imagine(state):
    scores = np.array([0.1, 5.0, 0.2], np.float32)
    state = state._replace(buffers={**state.buffers, "score": scores})

    def spoil(i):
        lost = np.arange(3) == i
        ruin = lambda x: np.where(lost.reshape(3, *[1] * (x.ndim - 1)), np.nan, x)
        return imagine(with_weights(state, lambda ema: jax.tree.map(ruin, ema)))

    assert spoil(1).info["finite"]
    assert not spoil(0).info["finite"]
    assert not spoil(2).info["finite"]


def test_scores_follow_the_error_of_each_member(data, state):
    batch = windows(np.random.default_rng(1), data, 16, 2)
    worse = lambda x: x * np.array([1, 1, 5]).reshape(3, *[1] * (x.ndim - 1))
    bad = state._replace(params=jax.tree.map(worse, state.params))
    after, _ = quick.jit(MODEL.fit)(jax.random.key(3), bad, batch)
    assert np.argmax(after.buffers["score"]) == 2


def test_equal_members_do_not_disagree(state):
    same = lambda ema: jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), ema)
    equal = imagine(with_weights(state, same)).info["disagreement"]
    np.testing.assert_allclose(equal, 0, atol=1e-6)
    assert (imagine(state).info["disagreement"] > 0.01).all()


def test_log_prob_is_the_density_of_what_was_drawn_in_raw_units(state):
    """With equal members that predict a known Gaussian: mean 0, log-variance v."""
    bias = np.zeros((3, 9), np.float32)
    v = np.array([-1.0, -2.0, 0.0, -3.0], np.float32)
    bias[:, 4:8] = 0.5 - np.log(np.expm1(0.5 - v))  # inverse of the upper bound

    def fix(ema):
        ema = jax.tree.map(np.zeros_like, ema)
        last = max(ema["mlp"]["params"])
        ema["mlp"]["params"][last]["bias"] = bias
        limits = {"max_log_var": 0.5, "min_log_var": -30.0}
        full = {k: np.full((3, 4), x, np.float32) for k, x in limits.items()}
        return {**ema, **full}

    rollout = imagine(with_weights(state, fix))
    target = state.buffers["statistics"].target
    change = rollout.obs[1] - rollout.obs[0]
    drawn = np.append(change, rollout.reward[0])
    spread = np.exp(v / 2) * stats.scale(target)
    z = (drawn - target.mean) / spread
    expected = np.sum(-0.5 * z**2 - np.log(spread) - 0.5 * np.log(2 * np.pi))
    # The observation's change is rounded to 8e-6 of about 0.003.
    np.testing.assert_allclose(rollout.info["log_prob"][0], expected, atol=0.05)
    assert rollout.info["disagreement"][0] == 0


def test_log_variances_stay_within_their_bounds(state):
    wild = lambda ema: {
        **ema,
        "mlp": jax.tree.map(lambda x: 1e3 * x, ema["mlp"]),
    }
    rollout = imagine(with_weights(state, wild))
    assert np.isfinite(rollout.info["log_prob"]).all()
    assert rollout.info["finite"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elites": 8}, "elites must be between 1 and members = 7, got 8"),
        ({"width": 0}, "width must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"beta": 2.0}, r"beta must be in \[0, 1\]"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ensemble.Config(**change)


def test_images_and_discrete_actions_are_refused():
    image = SPEC._replace(obs=jax.ShapeDtypeStruct((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="the ensemble needs one flat observation"):
        ensemble.ensemble(ensemble.TINY, image)
    with pytest.raises(ValueError, match="the ensemble needs continuous actions"):
        ensemble.ensemble(ensemble.TINY, SPEC._replace(action=Discrete(3)))


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_spread_of_its_draws_is_that_of_the_process(beta):
    """Noise 0.2 per step and dimension: residuals are as wide, and not correlated."""
    draw = np.random.default_rng(2)
    data = episodes(draw, 600, 20, noise=0.2)
    pool = jax.tree.map(jnp.asarray, windows(draw, data, 8192, 2))
    config = ensemble.Config(members=3, elites=2, width=64, beta=beta)
    model = ensemble.ensemble(config, SPEC)
    rows = transitions(data)
    start = quick.jit(lambda key: model.adapt(model.init(key), rows))
    state = start(jax.random.key(1))

    def update(key, state, pool):
        at_key, fit_key = jax.random.split(key)
        at = jax.random.randint(at_key, (128,), 0, 8192)
        return model.fit(fit_key, state, jax.tree.map(lambda x: x[at], pool))

    train = jax.jit(lambda *args: optimise.repeat(update, *args, 2000))
    state, _ = train(state, jax.random.key(2), pool)
    actions = jnp.zeros((2, 2))
    x = np.clip(draw.normal(size=(64, 3)), -1, 1)
    obs = np.repeat(observe(x), 64, 0)
    one = lambda key, obs: model.imagine(key, state, obs, actions, 2).obs[1]
    after = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 64 * 64), obs)
    after = (np.asarray(after, np.float64).reshape(64, 64, 3) - 100) / 0.01
    residual = after - after.mean(1, keepdims=True)
    ratio = residual.std((0, 1)) / 0.2
    assert (np.abs(ratio - 1) < 0.15).all(), ratio
    correlation = np.corrcoef(residual.reshape(-1, 3).T) - np.eye(3)
    assert np.abs(correlation).max() < 0.1
