"""Wrong input, drawn at random: a ValueError that names it, never a crash or a hang.

A few cases of each kind by default, 200 in the slow tests.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm import data, diffusion, envs
from jaxwm.agents import behaviour, dream, ppo
from jaxwm.data import minari
from jaxwm.dynamics import autoregressive_diffusion, ensemble, rssm, transformer
from jaxwm.envs.tasks import pendulum
from jaxwm.train import layout
from jaxwm.train.settings import RunConfig
from jaxwm.types import Box, EnvSpec
from tests.data.episodes import episode

NUM = [pytest.param(200, marks=pytest.mark.slow), 5]
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
TOO_FEW = st.integers(-(2**40), 0)


def cases(num):
    """Draws `num` cases, the same every time; each may take 5 s, and compile."""

    def apply(strategy):
        return lambda check: settings(
            max_examples=num, deadline=20_000, derandomize=True, database=None
        )(given(strategy)(check))()

    return apply


def refuse(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))


@st.composite
def broken_episodes(draw):
    """An episode with one thing wrong, its number of rows, and what must be named."""
    num = draw(st.integers(1, 6))
    good = episode(0, num)
    kind = draw(st.sampled_from(["value", "rows", "rank", "object", "text", "none"]))
    field = draw(st.sampled_from(["obs", "action", "reward", "next_obs"]))
    array = getattr(good, field)
    words = [field]
    if kind == "value":
        row, array = draw(st.integers(0, num - 1)), np.array(array)
        array[row] = draw(NOT_FINITE)
        words = [field, f"row {row}"]
    elif kind == "rows":
        array = np.concatenate([array] * draw(st.integers(2, 4)))
        # All others differ from the rewards, whose number counts.
        words = ["rows"] if field == "reward" else [field, "rows"]
    elif kind == "rank":
        array = np.float32(1.0)
        words = ["row"] if field == "reward" else [field, "rows"]
    elif kind == "object":
        array = np.array([{"x": 1}] * num, object)
        words = [field, "numbers"]
    elif kind == "text":
        array = np.array(["1.0"] * num)
        words = [field, "numbers"]
    else:
        good, array = jax.tree.map(lambda x: x[:0], good), array[:0]
        words = ["at least one row"]
    return good._replace(**{field: array}), words


@pytest.mark.parametrize("num", NUM)
def test_episodes_that_are_not_sound_are_refused_naming_field_and_row(num):
    @cases(num)(broken_episodes())
    def check(case):
        bad, words = case
        refuse(lambda: data.concatenate([episode(1, 2), bad]), "episode 1", *words)


@pytest.mark.parametrize("num", NUM)
def test_no_file_is_written_of_episodes_that_are_not_sound(num, tmp_path):
    spec = EnvSpec("toy", None, Box((-1.0,), (2.0,)), 0.1, 9, ())

    @cases(num)(broken_episodes())
    def check(case):
        bad, _ = case
        refuse(lambda: minari.save(tmp_path / "x", [episode(1, 2), bad], spec=spec))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num", NUM)
def test_windows_are_not_drawn_from_what_is_not_sound(num):
    @cases(num)(broken_episodes())
    def check(case):
        bad, _ = case
        refuse(lambda: data.windows(2).init(bad))


def as_double(x):
    return x.astype(np.float64) if x.dtype == np.float32 else x


@pytest.mark.parametrize("num", NUM[:1])  # every length is compiled for
def test_short_episodes_and_doubles_are_welcome(num):
    """Windows of episodes of one row hold that row; doubles become floats."""

    @cases(num)(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    def check(lengths):
        episodes = [episode(i, length) for i, length in enumerate(lengths)]
        doubles = [jax.tree.map(as_double, e) for e in episodes]
        source = data.windows(3)
        buffer = source.init(data.concatenate(doubles))
        assert buffer.obs.dtype == jnp.float32
        at = jnp.arange(sum(lengths))
        got = data.windows_at(buffer, sum(lengths), jnp.zeros_like(at), at, 3)
        starts = np.concatenate([np.full(n, i) for i, n in enumerate(lengths)])
        np.testing.assert_array_equal(got.obs[:, 0, 0], starts)
        assert got.mask[:, 0].all()
        assert not got.mask[:, 2].any()


SIZES = {
    "num_envs": [
        lambda n: data.replay(n, 8, 2),
        lambda n: RunConfig(num_envs=n - 1),
        lambda n: envs.batch(pendulum.pendulum(), n),
    ],
    "window": [lambda n: data.replay(2, 8, n), data.windows],
    "capacity": [lambda n: data.replay(2, n, 2)],
    "pool_size": [lambda n: envs.batch(pendulum.pendulum(), 2, pool_size=n)],
    "horizon": [
        lambda n: dream.Config(horizon=n),
        lambda n: behaviour.Config(horizon=n),
    ],
    "steps": [lambda n: ppo.Config(steps=n)],
    "seeds": [lambda n: RunConfig(seeds=n), lambda n: layout.check([n - 1])],
    "env_steps": [lambda n: RunConfig(env_steps=n - 1)],
    "eval_episodes": [lambda n: RunConfig(eval_episodes=n)],
    "keep": [lambda n: RunConfig(keep=n)],
    "num": [diffusion.cosine_schedule, lambda n: diffusion.karras(n)],
    "members": [lambda n: ensemble.Config(members=n, elites=1)],
    "batch": [lambda n: behaviour.Config(batch=n)],
}
WORDS = {"num": "at least 1 level"}


@pytest.mark.parametrize("num", NUM)
def test_sizes_below_one_are_refused_by_name(num):
    @cases(num)(st.tuples(st.sampled_from(sorted(SIZES)), TOO_FEW))
    def check(case):
        name, size = case
        for call in SIZES[name]:
            refuse(functools.partial(call, size), WORDS.get(name, name))


CONFIGS = [
    dream.Config,
    behaviour.Config,
    ppo.Config,
    ensemble.Config,
    rssm.Config,
    transformer.Config,
    autoregressive_diffusion.Config,
]
FLOATS = [
    (config, field.name)
    for config in CONFIGS
    for field in dataclasses.fields(config)
    if isinstance(getattr(config(), field.name), float)
]


@pytest.mark.parametrize("num", NUM)
def test_numbers_that_are_not_finite_are_refused_by_name(num):
    @cases(num)(st.tuples(st.sampled_from(FLOATS), NOT_FINITE))
    def check(case):
        (config, name), value = case
        refuse(lambda: config(**{name: value}), name, str(value))


@pytest.mark.parametrize("num", NUM)
def test_noise_levels_of_no_width_are_refused(num):
    bad = st.one_of(NOT_FINITE, st.floats(-1e6, 0))

    @cases(num)(st.tuples(st.sampled_from(["tau", "low", "high", "rho", "data"]), bad))
    def check(case):
        name, value = case
        if name == "tau":
            refuse(lambda: diffusion.cosine_schedule(8, value), "tau", str(value))
        elif name == "data":
            refuse(lambda: diffusion.edm(value), "sigma_data", str(value))
        else:
            refuse(lambda: diffusion.karras(8, **{name: value}), name, str(value))


@pytest.mark.parametrize("num", NUM)
def test_actions_of_another_shape_are_refused(num):
    batch = envs.batch(pendulum.pendulum(), 3)
    state = jax.eval_shape(batch.reset, jax.random.key(0))
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)

    @cases(num)(shapes.filter(lambda shape: shape != (3, 1)))
    def check(shape):
        actions = jax.ShapeDtypeStruct(shape, jnp.float32)
        call = lambda: jax.eval_shape(batch.step, jax.random.key(1), state, actions)
        refuse(call, "actions must have the shape (3, 1)", str(shape))


@st.composite
def broken_rows(draw):
    """Rows for a replay of 2 environments with one leaf of another form."""
    rows = jax.tree.map(lambda x: np.stack([x, x]), episode(0, 3))
    field = draw(st.sampled_from(["obs", "action", "reward", "next_obs"]))
    array = getattr(rows, field)
    kind = draw(st.sampled_from(["rank", "envs", "steps", "dtype", "empty"]))
    if kind == "rank":
        return rows._replace(**{field: array[..., None]}), field
    if kind == "envs":
        return rows._replace(**{field: array[:1]}), field
    if kind == "steps":
        words = "transitions" if field == "reward" else field
        return rows._replace(**{field: array[:, :2]}), words
    if kind == "dtype":
        return rows._replace(**{field: array.astype(np.int16)}), field
    return jax.tree.map(lambda x: x[:, :0], rows), "steps"


@pytest.mark.parametrize("num", NUM)
def test_rows_that_do_not_fit_a_replay_are_refused_by_name(num):
    replay = data.replay(2, 8, 2)
    example = jax.tree.map(lambda x: x[0], episode(0, 3))
    buffer = jax.eval_shape(replay.init, example)

    @cases(num)(broken_rows())
    def check(case):
        rows, word = case
        refuse(lambda: jax.eval_shape(replay.add, buffer, 0, rows), word)


@pytest.mark.parametrize("num", NUM)
def test_horizons_that_cannot_be_are_refused_by_every_imagination(num):
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    spec = EnvSpec("toy", shape, Box((-1.0,), (2.0,)), 0.1, 9, ())
    models = [
        ensemble.ensemble(ensemble.TINY, spec),
        transformer.transformer(transformer.TINY, spec),
    ]
    bad = st.one_of(TOO_FEW, st.floats(), st.booleans(), st.none(), st.text())

    @cases(num)(st.tuples(st.sampled_from(models), bad))
    def check(case):
        model, horizon = case
        actor = jnp.zeros((3, 1))
        call = lambda: model.imagine(jax.random.key(0), None, None, actor, horizon)
        refuse(call, "horizon", repr(horizon))
