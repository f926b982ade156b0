"""PolyGRAD equals its reference, and keeps what its own modes promise."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn
from jaxwm.core import dists, stats
from jaxwm.dynamics import innovations
from jaxwm.recipes import polygrad as recipe
from jaxwm.recipes.polygrad import PAPER, TINY, Config, polygrad
from jaxwm.types import Box, Discrete, EnvSpec, Trajectory, Transition

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "polygrad_reference.npz"
SPEC = EnvSpec(
    "toy", jax.ShapeDtypeStruct((3,), jnp.float32), Box((-1.0,), (1.0,)), 0.1, 50
)
NUM = 200  # trajectories of a batch
OBS_MEAN, OBS_STD = jnp.array([5.0, -3.0, 0.0]), jnp.array([2.0, 0.1, 1.0])


def policy(obs):
    """Reads raw observations: normalised ones would give other means."""
    return dists.Normal(jnp.tanh(obs[:1] - 5.0), jnp.full(1, 0.3))


def rows(key, *shape):
    obs_key, act_key = jax.random.split(key)
    obs = OBS_MEAN + OBS_STD * jax.random.normal(obs_key, (*shape, 3))
    action = jnp.clip(jax.random.normal(act_key, (*shape, 1)), -1, 1)
    return obs, action, obs[..., 0], jnp.ones(shape)


def windows(key, num, length):
    obs, action, reward, one = rows(key, num, length)
    return Trajectory(obs, action, reward, one, one, {})


@functools.cache
def build(config):
    """The model of a setting, with jitted functions that tests share."""
    model = polygrad(config, SPEC)
    return model, jax.jit(model.init), jax.jit(model.fit)


@functools.cache
def runner(config, horizon):
    """Imagines a batch under `policy`, or under actions where some are given."""
    model = build(config)[0]

    def one(key, state, obs, actions):
        actor = policy if actions is None else actions
        return model.imagine(key, state, obs, actor, horizon)

    return jax.jit(jax.vmap(one, (0, None, 0, None)))


def start(config, key, discount=1.0):
    """A model that has seen data, and its state."""
    model, init, _ = build(config)
    data_key, init_key = jax.random.split(key)
    obs, action, reward, one = rows(data_key, 256)
    data = Transition(obs, action, reward, discount * one, one < 0, obs, one, {})
    return model, model.adapt(init(init_key), data)


def batch(config, state, key, horizon=4, actions=None):
    """Rollouts `[N, horizon, ...]` and the observations they start from."""
    obs = OBS_MEAN + OBS_STD * jax.random.normal(jax.random.key(11), (NUM, 3))
    keys = jax.random.split(key, NUM)
    return runner(config, horizon)(keys, state, obs, actions), obs


# --- the reference ---------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


@pytest.fixture(scope="module")
def reference(golden):
    """The recipe in the paper's mode with the reference's weights and statistics."""
    sizes = json.loads(str(golden["config"]))
    config = dataclasses.replace(
        PAPER,
        horizon=sizes["horizon"],
        levels=sizes["levels"],
        calls=sizes["levels"],
        tau=sizes["tau"],
        width=sizes["width"],
        depth=sizes["depth"],
        guidance_scale=float(golden["sample/guidance_scale"]),
        clip_std=sizes["clip_std"],
        clip_change=sizes["clip_state_change"],
    )
    bounds = (-1.0,) * sizes["act"]
    spec = EnvSpec(
        "reference",
        jax.ShapeDtypeStruct((sizes["obs"],), jnp.float32),
        Box(bounds, tuple(-low for low in bounds)),
        0.01,
        1000,
    )
    model = polygrad(config, spec)
    state = jax.jit(model.init)(jax.random.key(0))
    network = {"params": reference_weights(golden, sizes["depth"])}
    assert jax.tree.map(jnp.shape, state.params["network"]) == jax.tree.map(
        jnp.shape, network
    )
    params = {"network": network}

    def moments(*names):
        mean = np.concatenate([golden[f"norm/{n}/mean"] for n in names])
        std = np.concatenate([golden[f"norm/{n}/std"] for n in names]) + 1e-6
        return stats.Moments(jnp.float32(1), mean, std**2, jnp.zeros(std.shape))

    buffers = {
        **state.buffers,
        "ema": params,
        "rows": moments("observations", "rewards", "terminals"),
        "action": moments("actions"),
    }
    return model, state._replace(params=params, buffers=buffers)


def reference_weights(golden, depth):
    def linear(name):
        name = f"params/denoiser/{name}"
        return {"kernel": golden[f"{name}.weight"].T, "bias": golden[f"{name}.bias"]}

    def norm(name):
        name = f"params/denoiser/{name}"
        return {"scale": golden[f"{name}.weight"], "bias": golden[f"{name}.bias"]}

    network = "residual_mlp.network"
    params = {
        "embed": linear("proj"),
        "time": {"inner": linear("time_mlp.1"), "outer": linear("time_mlp.3")},
        "time_features": {"weights": golden["params/denoiser/time_mlp.0.weights"]},
        "enter": linear(f"{network}.0"),
        "norm_last": norm(f"{network}.{2 * depth + 1}"),
        "leave": linear("residual_mlp.final_linear"),
    }
    for i in range(depth):
        params[f"block_{i}"] = linear(f"{network}.{2 * i + 1}.linear")
        params[f"norm_{i}"] = norm(f"{network}.{2 * i + 1}.ln")
    return params


def reference_policy(golden):
    """The reference's actor on raw observations."""

    def actor(obs):
        get = lambda i, name: golden[f"params/ac/actor.model.{i}.{name}"]
        h = obs
        for i in (0, 3):
            h = get(i, "weight") @ h + get(i, "bias")
            h = (h - h.mean()) / jnp.sqrt(h.var() + 1e-3)
            h = jax.nn.elu(h * get(i + 1, "weight") + get(i + 1, "bias"))
        mean = jnp.tanh(get(6, "weight") @ h + get(6, "bias"))
        return dists.Normal(mean, jnp.asarray(golden["a2c/std"]))

    return actor


def test_the_loss_equals_the_reference(reference, golden, monkeypatch):
    model, state = reference
    x0, action, level, noise = (golden[f"loss/{n}"] for n in ("x0", "a0", "t", "noise"))
    draws = replaced_draws(monkeypatch)
    raw = stats.denormalise(state.buffers["rows"], x0)

    def one(raw, action, level, noise):
        draws.level, draws.noise = level, noise
        window = Trajectory(
            raw[:, :-2],
            stats.denormalise(state.buffers["action"], action),
            raw[:, -2],
            1 - raw[:, -1],
            jnp.ones(raw.shape[0]),
            {},
        )
        return model.loss(jax.random.key(0), state, window)[0]

    value = np.mean(
        [float(one(*row)) for row in zip(raw, action, level, noise, strict=True)]
    )
    np.testing.assert_allclose(value, golden["loss/value"], rtol=1e-4)


@pytest.mark.slow
def test_guided_sampling_equals_the_reference(reference, golden, monkeypatch):
    """Same weights and the same noise give the same trajectories, step by step."""
    model, state = reference
    draws = replaced_draws(monkeypatch)
    actor = reference_policy(golden)
    rows_, act = state.buffers["rows"], state.buffers["action"]

    @jax.jit
    @jax.vmap
    def run(s0, x_init, a_init, state_noise, action_noise):
        draws.start, draws.action = x_init, a_init
        draws.rows, draws.actions = state_noise[::-1], action_noise[::-1]
        size = s0.shape[0]
        obs = stats.denormalise(rows_, jnp.pad(s0, (0, 2)))[:size]
        horizon = model.spec.horizon
        return model.imagine(jax.random.key(0), state, obs, actor, horizon)

    names = ("s0", "x_init", "a_init", "state_noise", "action_noise")
    arrays = [golden[f"sample/{n}"] for n in names]
    arrays[3:] = [np.swapaxes(a, 0, 1) for a in arrays[3:]]
    rollout = run(*arrays)
    wanted = stats.denormalise(rows_, golden["sample/x"])
    scale = stats.scale(rows_)
    np.testing.assert_allclose(
        rollout.obs / scale[:-2], wanted[..., :-2] / scale[:-2], atol=1e-4
    )
    np.testing.assert_allclose(
        rollout.reward / scale[-2], wanted[..., -2] / scale[-2], atol=1e-4
    )
    np.testing.assert_array_equal(rollout.discount, wanted[..., -1] <= 0.5)
    np.testing.assert_allclose(
        stats.normalise(act, rollout.action), golden["sample/a"], atol=1e-4
    )


class Draws:
    """Recorded numbers in place of the keys' draws."""

    level = noise = start = action = rows = actions = None


def replaced_draws(monkeypatch):
    """Makes the recipe read its level and noise from the record returned."""
    draws, diffusion = Draws(), recipe.diffusion
    plain_sample, plain_climb = diffusion.sample, diffusion.climb_score

    def loss(key, denoise, levels, x0, cond, mask):
        level = jax.tree.map(
            lambda field: jnp.asarray(field)[draws.level],
            diffusion.cosine_schedule(16, 0.1),
        )
        error = diffusion.squared_error(denoise, level, draws.noise, x0, cond)
        return jnp.sum(error * mask) / jnp.sum(mask), error

    def sample(key, denoise, steps, shape, *, cond, terms):
        noise = diffusion.Noise(draws.start, draws.rows)
        return plain_sample(
            key, denoise, steps, shape, cond=draws.action, terms=terms, noise=noise
        )

    def climb(rate, *, clip_std):
        return plain_climb(rate, clip_std=clip_std, recorded=draws.actions)

    monkeypatch.setattr(diffusion, "loss", loss)
    monkeypatch.setattr(diffusion, "sample", sample)
    monkeypatch.setattr(diffusion, "climb_score", climb)
    return draws


# --- rollouts --------------------------------------------------------------


def test_actions_are_a_sample_of_the_policy_at_the_states_imagined(key):
    """By default exactly so, also before any training, in raw units."""
    _, state = start(TINY, key)
    rollout, _ = batch(TINY, state, jax.random.key(1))
    dist = jax.vmap(jax.vmap(policy))(rollout.feature)
    z = (rollout.action - dist.mean) / dist.stddev
    np.testing.assert_allclose([z.mean(), z.std()], [0.0, 1.0], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["fresh", "score", "none"])
def test_other_rules_follow_the_policy_as_far_as_they_should(guidance, key):
    config = dataclasses.replace(
        TINY, guidance=guidance, guidance_scale=0.05, calls=TINY.levels
    )
    _, state = start(config, key)
    rollout, _ = batch(config, state, jax.random.key(1))
    dist = jax.vmap(jax.vmap(policy))(rollout.feature)
    z = np.abs((rollout.action - dist.mean) / dist.stddev)
    if guidance == "score":
        assert z.max() <= config.clip_std + 1e-3
        np.testing.assert_allclose(np.abs(rollout.info["z"]), z, atol=1e-3)
    if guidance == "none":
        assert z.max() > 4


def test_rollouts_begin_where_they_are_told(key):
    _, state = start(TINY, key)
    rollout, obs = batch(TINY, state, jax.random.key(1))
    np.testing.assert_allclose(rollout.obs[:, 0], obs, rtol=1e-5)
    assert rollout.info["finite"].all()
    assert rollout.info["adapted"].all()


def test_given_actions_are_kept_even_out_of_bounds(key):
    _, state = start(TINY, key)
    actions = jnp.array([[0.1], [-0.4], [3.0], [0.0]])
    rollout, _ = batch(TINY, state, jax.random.key(1), actions=actions)
    wanted = np.broadcast_to(actions, (NUM, 4, 1))
    np.testing.assert_array_equal(rollout.action, wanted)
    # The network reads them as the environment applies them: clipped.
    inside = jnp.clip(actions, -1, 1)
    clipped, _ = batch(TINY, state, jax.random.key(1), actions=inside)
    np.testing.assert_array_equal(rollout.obs, clipped.obs)


def test_longer_horizons_are_chained_and_shorter_ones_cut(key):
    _, state = start(TINY, key)
    whole, short, long = (
        batch(TINY, state, jax.random.key(1), horizon)[0] for horizon in (4, 2, 9)
    )
    np.testing.assert_allclose(short.obs, whole.obs[:, :2], rtol=1e-5)
    np.testing.assert_allclose(long.obs[:, :3], whole.obs[:, :3], rtol=1e-5)
    assert long.obs.shape == (NUM, 9, 3)
    assert long.info["chained"].all()
    assert not whole.info["chained"].any()


def test_a_nan_start_is_flagged_and_does_not_spread(key):
    _, state = start(TINY, key)
    obs = jnp.broadcast_to(OBS_MEAN, (NUM, 3)).at[1, 1].set(jnp.nan)
    keys = jax.random.split(jax.random.key(1), NUM)
    finite = runner(TINY, 4)(keys, state, obs, None).info["finite"]
    np.testing.assert_array_equal(finite, np.arange(NUM) != 1)


def test_a_model_without_statistics_says_so(key):
    rollout, _ = batch(TINY, build(TINY)[1](key), jax.random.key(1))
    assert not rollout.info["adapted"].any()


def test_discounts_are_one_where_no_episode_ever_ended(key):
    _, state = start(TINY, key)
    assert (batch(TINY, state, jax.random.key(1))[0].discount == 1).all()
    _, state = start(TINY, jax.random.key(3), discount=0.0)
    soft = batch(TINY, state, jax.random.key(1))[0].discount
    assert ((soft >= 0) & (soft <= 1)).all()
    assert len(np.unique(soft)) > 2
    config = dataclasses.replace(TINY, soft_terminal=False)
    hard = batch(config, state, jax.random.key(1))[0].discount
    np.testing.assert_array_equal(hard, soft >= 0.5)


def test_one_compilation_serves_changed_states_and_keys(key):
    _, state = start(TINY, key)
    first, _ = batch(TINY, state, jax.random.key(1))
    size = runner(TINY, 4)._cache_size()
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    moved = state._replace(buffers={**state.buffers, "ema": zeros})
    second, _ = batch(TINY, moved, jax.random.key(2))
    assert runner(TINY, 4)._cache_size() == size
    assert np.any(first.obs != second.obs)


@pytest.mark.slow
def test_gradients_reach_the_actions(key):
    model, state = start(TINY, key)

    def last(actions):
        return model.imagine(jax.random.key(1), state, OBS_MEAN, actions, 4).obs[-1, 0]

    grads = jax.grad(last)(jnp.full((4, 1), 0.2))
    assert np.all(np.isfinite(grads))
    assert np.any(grads[:3] != 0)


# --- learning --------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param(
            {"denoiser": "transformer"}, id="transformer", marks=pytest.mark.slow
        ),
        pytest.param(
            {"process_noise": "innovations"}, id="innovations", marks=pytest.mark.slow
        ),
        pytest.param(
            {"time": "index", "scale_actions": True, "clip_actions": False},
            id="reference",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_lowers_the_loss(options, key):
    config = dataclasses.replace(TINY, width=32, head_width=16, **options)
    model, state = start(config, key)
    data = windows(jax.random.key(1), 64, 4)

    @jax.jit
    def train(state):
        step = lambda state, i: model.fit(jax.random.key(i), state, data)
        return jax.lax.scan(step, state, jnp.arange(200))

    state, metrics = train(state)
    loss = metrics["obs_error"]
    assert loss[-20:].mean() < 0.7 * loss[:20].mean()
    assert metrics["finite"].all()
    assert state.buffers["updates"] == 200


@pytest.mark.slow
def test_the_transformer_is_causal(key):
    """An action moves only states behind it; the rest of the noise is shared."""
    config = dataclasses.replace(TINY, denoiser="transformer")
    model, state = start(config, key)
    run = lambda actions: (
        model.imagine(jax.random.key(1), state, OBS_MEAN, actions, 4).obs
    )
    actions = jnp.zeros((4, 1))
    moved = run(actions.at[2].set(0.9)) - run(actions)
    np.testing.assert_array_equal(moved[:2], 0.0)
    assert np.any(moved[2:] != 0)


@pytest.mark.slow
def test_padding_behind_a_termination_does_not_train(key):
    """Its rewards and observations may be anything; its terminal channel stays 1."""
    model, state = start(TINY, key, discount=0.5)
    window = jax.tree.map(lambda x: x[0], windows(jax.random.key(1), 1, 4))
    window = window._replace(
        discount=jnp.array([1.0, 0.0, 0.0, 0.0]), mask=jnp.array([1.0, 1.0, 0.0, 0.0])
    )

    def grads(window):
        loss = lambda params: model.loss(
            jax.random.key(2), state._replace(params=params), window
        )[0]
        return jax.grad(loss)(state.params)["network"]["params"]["leave"]["bias"]

    leave = np.reshape(grads(window), (4, 5))
    assert np.all(leave[3, :4] == 0)  # observation and reward of padding
    assert np.all(leave[2, :3] != 0)  # the observation reached by terminating
    assert leave[2, 3] == 0  # the reward of padding
    assert np.all(leave[:, 4] != 0)  # terminations


@pytest.mark.slow
def test_a_constant_reward_stays_finite_on_padding(key):
    """Its deviation is 0: a padded 0 would normalise to a huge number."""
    model = polygrad(TINY, SPEC)
    obs, action, _, one = rows(jax.random.key(1), 64)
    data = Transition(obs, action, one, one, one < 0, obs, one, {})
    state = model.adapt(model.init(key), data)
    window = jax.tree.map(lambda x: x[0], windows(jax.random.key(2), 1, 4))
    window = window._replace(
        reward=jnp.array([1.0, 1.0, 0.0, 0.0]),
        discount=jnp.array([1.0, 0.0, 0.0, 0.0]),
        mask=jnp.array([1.0, 1.0, 0.0, 0.0]),
    )
    value, (_, metrics) = model.loss(jax.random.key(3), state, window)
    assert value < 100
    assert metrics["reward_error"] < 10


@pytest.mark.slow
def test_statistics_are_those_of_the_data_without_padding(key):
    model = polygrad(TINY, SPEC)
    obs, action, reward, one = rows(jax.random.key(1), 256)
    mask = (jnp.arange(256) < 200).astype(jnp.float32)
    state = model.init(key)
    for part in (slice(0, 100), slice(100, 256)):
        data = Transition(
            obs[part],
            action[part],
            reward[part],
            one[part],
            one[part] < 0,
            obs[part],
            mask[part],
            {},
        )
        state = model.adapt(state, data)
    seen = state.buffers["rows"]
    np.testing.assert_allclose(seen.mean[:3], obs[:200].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats.scale(seen)[:3], obs[:200].std(0), rtol=1e-4)
    np.testing.assert_allclose(stats.scale(seen)[-1], TINY.terminal_floor)
    assert seen.count == 200


@pytest.mark.slow
def test_the_average_is_a_copy_at_first_and_waits_between(key):
    config = dataclasses.replace(TINY, ema=0.9, ema_start=3, ema_every=2)
    _, state = start(config, key)
    data, fit = windows(jax.random.key(1), 8, 4), build(config)[2]
    bias = lambda params: params["network"]["params"]["leave"]["bias"]
    history = []
    for i in range(4):
        state, _ = fit(jax.random.key(i), state, data)
        history.append((bias(state.params), bias(state.buffers["ema"])))
    np.testing.assert_array_equal(history[1][1], history[1][0])  # update 2: a copy
    np.testing.assert_array_equal(history[2][1], history[1][1])  # update 3: waits
    decay = min(0.9, 5 / 14)  # update 4: a young average forgets quickly
    expected = decay * history[2][1] + (1 - decay) * history[3][0]
    np.testing.assert_allclose(history[3][1], expected, rtol=1e-5)


@pytest.mark.slow
def test_tuning_raises_the_rate_when_actions_spread_too_wide(key):
    config = dataclasses.replace(TINY, guidance="score", guidance_rate=0.1)
    model, state = start(config, key)
    rollouts, _ = batch(config, state, jax.random.key(1))
    before = state.buffers["log_guidance"]
    z = jax.random.normal(jax.random.key(2), (64, 4, 1))
    for factor, sign in ((3.0, 1), (0.2, -1)):
        info = {**rollouts.info, "z": factor * z}
        after = model.tune(state, rollouts._replace(info=info)).buffers["log_guidance"]
        assert np.sign(after - before) == sign
    # Never beyond the policy's variance, where one step reaches its mean.
    info = {**rollouts.info, "z": 1e6 * z}
    after = model.tune(state, rollouts._replace(info=info)).buffers["log_guidance"]
    np.testing.assert_allclose(jnp.exp(after), 0.09, rtol=1e-4)


@pytest.mark.slow
def test_innovations_make_the_model_stochastic_and_say_so(key):
    config = dataclasses.replace(TINY, process_noise="innovations", eta=0.0)
    model, state = start(config, key)
    assert "stochastic" in model.spec.abilities
    assert "stochastic" not in polygrad(TINY, SPEC).spec.abilities
    rollout, _ = batch(config, state, jax.random.key(1), actions=jnp.zeros((4, 1)))
    xi = rollout.info["innovation"]
    assert xi.shape == (NUM, 4, 3)
    np.testing.assert_array_equal(xi[:, -1], 0.0)
    np.testing.assert_allclose(xi[:, :-1].std(), 1.0, atol=0.1)


@pytest.mark.slow
def test_a_silent_network_leaves_what_the_head_makes_of_the_noise(key):
    """What is learnt is a correction: without one the head's rollout is imagined."""
    config = dataclasses.replace(TINY, process_noise="innovations", eta=0.0)
    _, state = start(config, key)
    average = state.buffers["ema"]
    leave = jax.tree.map(jnp.zeros_like, average["network"]["params"]["leave"])
    network = {"params": {**average["network"]["params"], "leave": leave}}
    buffers = {**state.buffers, "ema": {**average, "network": network}}
    actions = jnp.full((4, 1), 0.2)
    rollout, obs = batch(
        config, state._replace(buffers=buffers), jax.random.key(1), actions=actions
    )
    rows, act = buffers["rows"], buffers["action"]
    scale, mean = stats.scale(rows)[:3], rows.mean[:3]
    head = nn.GaussianHead(3, (config.head_width, config.head_width))
    rolled = jax.vmap(
        lambda obs, xi: innovations.roll_head(
            head,
            average["head"],
            (obs - mean) / scale,
            stats.normalise(act, actions),
            xi,
        )
    )(obs, rollout.info["innovation"])
    np.testing.assert_allclose(rollout.obs, mean + scale * rolled, rtol=1e-3, atol=1e-2)
    assert np.any(rollout.obs[:, 1:] != rollout.obs[:, :1])


# --- bad input -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"horizon": 1},
            "horizon must be at least 2 steps, got 1; one-step models live in "
            "jaxwm.dynamics.",
        ),
        ({"calls": 0}, "calls must be in 1 ... 128, .* got 0"),
        ({"calls": 129}, "calls must be in 1 ... 128, .* got 129"),
        ({"levels": 2}, "calls must be in 1 ... 2, .* got 4"),
        ({"denoiser": "unet"}, "denoiser must be one of mlp, transformer, got 'unet'"),
        ({"guidance": "grad"}, "guidance must be one of .* got 'grad'"),
        ({"process_noise": "full"}, "process_noise must be one of"),
        ({"time": "sigma"}, "time must be one of"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite, got nan"),
        ({"ema": 1.0}, "ema must be in"),
        ({"eta": 2.0}, "eta must be in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_environments_it_cannot_model_are_refused():
    image = SPEC._replace(obs=jax.ShapeDtypeStruct((8, 8, 3), jnp.uint8))
    with pytest.raises(ValueError, match="polygrad needs one flat observation"):
        polygrad(TINY, image)
    with pytest.raises(ValueError, match="polygrad needs continuous actions"):
        polygrad(TINY, SPEC._replace(action=Discrete(3)))


def test_horizons_and_actions_that_do_not_fit_are_refused(key):
    model = polygrad(TINY, SPEC)
    state = model.init(key)
    with pytest.raises(
        ValueError, match="horizon must be a positive Python int, got 0"
    ):
        model.imagine(jax.random.key(1), state, OBS_MEAN, policy, 0)
    with pytest.raises(ValueError, match=r"or 4 actions .* got 3"):
        model.imagine(jax.random.key(1), state, OBS_MEAN, jnp.zeros((3, 1)), 4)
    with pytest.raises(ValueError, match=r"obs must have shape .3,., got .2,."):
        model.imagine(jax.random.key(1), state, jnp.zeros(2), policy, 4)
    with pytest.raises(ValueError, match=r"must have 4 rows .* got 5"):
        window = jax.tree.map(lambda x: x[0], windows(jax.random.key(2), 1, 5))
        model.loss(jax.random.key(1), state, window)


def test_a_policy_of_another_action_size_is_refused(key):
    model, state = start(TINY, key)
    wide = lambda obs: dists.Normal(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match="actor must give 1 action values, got 2"):
        model.imagine(jax.random.key(1), state, OBS_MEAN, wide, 4)
