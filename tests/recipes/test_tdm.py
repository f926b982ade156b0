"""Facts that the generalist dynamics model rests on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.core import tree
from jaxwm.recipes import tdm as recipe
from jaxwm.types import Box, EnvSpec, Trajectory, Transition

SPEC = EnvSpec(
    name="made up",
    obs=jax.ShapeDtypeStruct((3,), np.dtype("float32")),
    action=Box((-1.0, -2.0), (1.0, 2.0)),
    control_dt=0.1,
    time_limit=50,
)
DETERMINISTIC = dataclasses.replace(recipe.TINY, temperature=0.0)
LAYOUTS = ("step", "scalar")


def moved(state, key):
    """Weights away from their small start, for imagination too; statistics, as well."""
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(key, len(leaves))
    leaves = [
        x + 0.3 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    params = jax.tree.unflatten(structure, leaves)
    return state._replace(params=params, buffers={**state.buffers, "ema": params})


def rows(*shape):
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(*shape, 3))
    after = obs + 0.3 * rng.normal(size=(*shape, 3))
    action, reward = rng.uniform(-1, 1, (*shape, 2)), rng.normal(size=shape)
    return [np.float32(x) for x in (obs, after, action, reward)]


@functools.cache
def make(tokens, **changes):
    """A model that has seen some data, and its state."""
    config = dataclasses.replace(DETERMINISTIC, tokens=tokens, **changes)
    model = recipe.tdm(config, SPEC)

    @jax.jit
    def begin(key):
        init_key, move_key = jax.random.split(key)
        obs, after, action, reward = rows(64)
        ones = np.ones(64, np.float32)
        data = Transition(obs, action, reward, ones, ones < 0, after, ones, {})
        return moved(model.adapt(model.init(init_key), data), move_key)

    return model, begin(jax.random.key(7))


def remembered(model, state, obs, num, context=None):
    """Memory after `num` observations, none of them drawn by chance."""
    memory = model.initial(state, context)
    for i in range(num):
        action = jnp.array([0.4, -0.9]) * (-1) ** i
        memory = model.observe(None, state, memory, obs[i], action, i == 0)
    return memory


@pytest.mark.parametrize(
    "tokens", [pytest.param("step", marks=pytest.mark.slow), "scalar"]
)
def test_a_rollout_with_caches_equals_one_that_reads_everything_again(tokens):
    """At any length of history, and beyond the context (8 places, 11 steps)."""
    (model, state), (plain, _) = make(tokens), make(tokens, cached=False)
    obs, _, actions, _ = rows(12)

    @jax.jit
    def both():
        memories = [remembered(model, state, obs, num) for num in (1, 4, 12)]
        return [
            jax.vmap(
                lambda memory, m=m: m.imagine(
                    jax.random.key(1), state, memory, actions[:11], 11
                )
            )(tree.stack(memories))
            for m in (model, plain)
        ]

    cached, uncached = both()
    assert (np.abs(cached.obs[:, 1:] - cached.obs[:, :1]).max((1, 2)) > 0.1).all()
    for name in ("obs", "reward", "discount"):
        a, b = getattr(cached, name), getattr(uncached, name)
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("tokens", LAYOUTS)
def test_predictions_read_this_action_and_the_past_but_not_the_future(tokens):
    model, state = make(tokens)
    obs, after, action, reward = rows(8)
    ones = np.ones(8, np.float32)
    window = Trajectory(obs, action, reward, ones, ones, {"next_obs": after})

    @jax.jit
    def loss(window):
        """Of row 4 alone."""
        window = window._replace(mask=(jnp.arange(8) == 4).astype(jnp.float32))
        return model.loss(jax.random.key(3), state, window)[0]

    def other(field, at):
        value = getattr(window, field).copy()
        value[at] *= -1
        return loss(window._replace(**{field: value}))

    base = loss(window)
    for field in ("obs", "action"):
        assert other(field, 2) != base  # the history identifies
        assert other(field, 4) != base
        # Number by number, the loss of o_5 reads the first numbers of o_5.
        later = 6 if (tokens, field) == ("scalar", "obs") else 5
        assert other(field, later) == base


@pytest.mark.parametrize("tokens", LAYOUTS)
def test_dimensions_that_do_not_exist_change_nothing(tokens):
    model, state = make(tokens)
    exists, ones = jnp.array([1.0, 1.0, 0.0]), jnp.ones(8)
    obs, after, action, reward = rows(8)

    @jax.jit
    def ask(junk):
        seen, reached = (jnp.asarray(x).at[:, 2].set(junk) for x in (obs, after))
        memory = remembered(model, state, seen, 4, exists)
        rollout = model.imagine(jax.random.key(1), state, memory, action[:3], 3)
        extras = {"next_obs": reached, "exists": jnp.tile(exists, (8, 1))}
        window = Trajectory(seen, action, reward, ones, ones, extras)
        return rollout.obs, model.loss(jax.random.key(1), state, window)[0]

    (none, none_loss), (junk, junk_loss) = ask(0.0), ask(5.0)
    np.testing.assert_allclose(none[:, :2], junk[:, :2], rtol=1e-6)
    np.testing.assert_allclose(none_loss, junk_loss, rtol=1e-6)
    assert np.array_equal(junk[:, 2], np.full(3, 5.0))
    with pytest.raises(ValueError, match="mask of 3 dimensions"):
        model.initial(state, jnp.ones(2))


@pytest.mark.slow
def test_numbers_are_drawn_where_the_temperature_says_so():
    model, state = make("scalar", temperature=1.0)
    obs, _, action, _ = rows(4)

    @jax.jit
    def imagine(seed):
        memory = remembered(model, state, obs, 4)
        return model.imagine(jax.random.key(seed), state, memory, action[:3], 3)

    one, two = imagine(0), imagine(1)
    assert not np.array_equal(one.obs, two.obs)
    assert "stochastic" in model.spec.abilities
    entropy = one.info["entropy"]
    assert entropy.shape == (3,)
    assert (entropy > 0).all() and (entropy <= 3 * np.log(16) + 1e-4).all()


def test_a_system_weighs_by_its_own_spread():
    model, state = make("step")
    obs, after, action, reward = rows(8)
    ones = jnp.ones(8)

    @jax.jit
    def metrics(scale):
        extras = {"next_obs": after, "scale": jnp.full((8, 4), scale)}
        window = Trajectory(obs, action, reward, ones, ones, extras)
        return model.loss(jax.random.key(1), state, window)[1][1]

    one, half = metrics(1.0), metrics(0.5)
    np.testing.assert_allclose(half["obs"], 4 * one["obs"], rtol=1e-5)
    np.testing.assert_allclose(half["reward"], 4 * one["reward"], rtol=1e-5)


@pytest.mark.slow
def test_every_number_of_the_experiment_is_finite(key):
    config = dataclasses.replace(recipe.TINY, context=16, steps=24)
    metrics = jax.jit(lambda key: recipe.experiment(key, config))(key)
    assert tree.all_finite(metrics)
    assert 0 <= metrics["wins"] <= config.held


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokens": "pixel"}, 'tokens must be "step" or "scalar"'),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"history": 32}, "history must be in 0 ... context - 1 = 23, got 32"),
        ({"embed": 30}, "embed must be a positive multiple of heads = 4, got 30"),
        ({"clip": 0.0}, "clip must be positive, got 0.0"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(recipe.Config(), **change)
