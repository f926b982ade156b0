"""Winners, who learns from them, and what the classifier copies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.envs.tasks import rule_particles
from jaxwm.recipes import comet as recipe
from jaxwm.recipes.comet import EXPERIMENT, Config, comet

ENV = rule_particles.rule_particles(push=0.0)
SMALL = dataclasses.replace(
    EXPERIMENT, mechanisms=3, width=8, composer_width=8, window=2, warm_up=2
)
N, M = 4, 3


@functools.cache
def windows():
    draw = jax.jit(lambda key: recipe._draw(key, ENV, jnp.arange(8) % 4, 2))
    return draw(jax.random.key(0))[0]


@functools.cache
def model(**options):
    built = comet(dataclasses.replace(SMALL, **options), ENV.spec)
    state = jax.jit(built.init)(jax.random.key(1))
    return built, state, jax.jit(built.fit)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


@pytest.mark.slow
def test_mechanisms_see_no_place_and_no_type():
    _, state, _ = model()
    obs = windows().obs[0, 0].reshape(N, 7)
    moved = obs.at[:, :2].add(jnp.array([3.0, -1.0]))
    retyped = moved.at[:, 4:].set(jnp.roll(obs[:, 4:], 1, 1))
    pairs = [recipe._read(SMALL, state.buffers, x.ravel())[1] for x in (obs, retyped)]
    np.testing.assert_allclose(pairs[0], pairs[1], atol=1e-5)
    # [i, j] holds i, j, and the offset from i to j, which is 0 from i to itself.
    np.testing.assert_allclose(pairs[0][1, 2, -2:], obs[2, :2] - obs[1, :2], atol=1e-6)
    np.testing.assert_array_equal(pairs[0][np.arange(N), np.arange(N), -2:], 0)


def test_a_pair_must_win_over_the_whole_window():
    """Best at the first step, but worse than the other one over both."""
    error = np.ones((2, 1, 2, 1), np.float32)
    error[:, 0, 0, 0] = [0.0, 0.9]
    error[:, 0, 1, 0] = [0.3, 0.3]
    alone = recipe.winners(recipe.over_windows(jnp.asarray(error), 1))
    np.testing.assert_array_equal(alone.mechanism[:, 0], [0, 1])
    both = recipe.winners(recipe.over_windows(jnp.asarray(error), 2))
    np.testing.assert_array_equal(both.mechanism, [[1]])


def test_winners_name_mechanism_and_context():
    error = np.ones((N, M, N), np.float32)
    pairs = [(0, 3), (2, 1), (1, 1), (2, 0)]
    for i, (m, j) in enumerate(pairs):
        error[i, m, j] = 0.5
    choice = recipe.winners(jnp.asarray(error))
    np.testing.assert_array_equal(np.stack(choice, 1), pairs)


def test_credit_sharpens_from_a_mixture_to_the_winner():
    config = Config(warm_up=100, temperature=2.0)
    error = jnp.asarray(np.random.default_rng(0).uniform(size=(N, M, N)), jnp.float32)
    weights = [recipe.credit(config, error, jnp.int32(n)) for n in (0, 50, 100)]
    for weight in weights:
        np.testing.assert_allclose(weight.sum((1, 2)), 1, rtol=1e-5)
    flat = error.reshape(N, -1)
    start = jax.nn.softmax(-flat / 2.0).reshape(error.shape)
    np.testing.assert_allclose(weights[0], start, rtol=1e-5)
    assert np.all(weights[1].max((1, 2)) > weights[0].max((1, 2)))
    np.testing.assert_array_equal(weights[2].max((1, 2)), 1)
    soft = dataclasses.replace(config, hard=False)
    np.testing.assert_allclose(
        recipe.credit(soft, error, jnp.int32(500)), start, rtol=1e-5
    )


@pytest.mark.slow
def test_only_winners_move_in_competition_and_only_the_classifier_in_composition():
    _, state, fit = model(phase="competition", warm_up=0)
    after, metrics = fit(jax.random.key(2), state, windows())
    assert equal(after.params["composer"], state.params["composer"])
    errors = jax.vmap(lambda w: recipe._errors(SMALL, state, w))(windows())
    averaged = recipe.over_windows(jnp.moveaxis(errors, 1, 0), 2)[0]
    won = np.unique(recipe.winners(averaged).mechanism)
    moved = [
        not equal(
            jax.tree.map(lambda x, m=m: x[m], state.params["library"]),
            jax.tree.map(lambda x, m=m: x[m], after.params["library"]),
        )
        for m in range(M)
    ]
    np.testing.assert_array_equal(np.flatnonzero(moved), won)
    np.testing.assert_allclose(
        metrics["winner"], averaged.min((2, 3)).mean(), rtol=1e-4
    )
    _, _, compose = model(phase="composition")
    after, metrics = compose(jax.random.key(2), state, windows())
    assert equal(after.params["library"], state.params["library"])
    assert not equal(after.params["composer"], state.params["composer"])
    assert metrics["cross_entropy"] > 0


def test_an_idle_mechanism_becomes_like_the_most_used():
    library = {"w": jnp.array([[1.0, 2], [5, 5], [3, 4]])}
    usage, dead = jnp.array([0.2, 0.0, 0.8]), jnp.array([False, True, False])
    revived = recipe._revive(jax.random.key(0), library, usage, dead)["w"]
    np.testing.assert_array_equal(revived[0::2], library["w"][0::2])
    gap = np.abs(revived[1] - library["w"][2])
    assert np.all(gap > 0) and np.all(gap < 0.5)


def test_one_state_serves_any_number_of_objects_and_says_who_chose_what():
    _, state, _ = model()
    env = rule_particles.rule_particles(6, push=0.0)
    built = comet(SMALL, env.spec)
    obs = env.reset(jax.random.key(0)).obs

    def imagine(obs):
        return built.imagine(jax.random.key(0), state, obs, jnp.zeros((3, 0)), 3)

    rollout = jax.jit(imagine)(obs)
    assert rollout.obs.shape == (3, 42)
    info = rollout.info
    assert info["mechanism"].shape == info["context"].shape == (3, 6)
    places = rollout.obs.reshape(3, 6, 7)[..., :2]
    np.testing.assert_array_equal(info["position"], places)
    assert built.spec.tokens == ("0", "1", "2", "3", "4", "5")
    for k, i in np.ndindex(3, 6):
        row = np.zeros(6, bool)
        row[[i, info["context"][k, i]]] = True
        np.testing.assert_array_equal(info["graph"][k, i], row)
    kinds = rollout.obs.reshape(3, 6, 7)[..., 4:]
    np.testing.assert_array_equal(kinds[0], kinds[2])


def test_identification_forgives_names_and_skips_where_nothing_acts():
    choice = recipe.Choice(jnp.array([[2, 0, 1, 1]]), jnp.array([[1, 1, 0, 3]]))
    rule, context = jnp.array([[1, 2, 3, 0]]), jnp.array([[1, 0, 0, 3]])
    found = recipe.identification(choice, rule, context, rule > 0, 3)
    np.testing.assert_allclose(found["accuracy"], 1)
    np.testing.assert_allclose(found["context"], 2 / 3, rtol=1e-6)


def test_what_cannot_be_built_or_read_is_refused():
    pendulum = envs.make("pendulum", "jax").spec
    with pytest.raises(ValueError, match="object_size must divide the 3 numbers"):
        comet(Config(object_size=2), pendulum)
    with pytest.raises(ValueError, match="leave something to predict of the 3"):
        comet(Config(labels=3), pendulum)
    with pytest.raises(ValueError, match="must fit into memory"):
        comet(dataclasses.replace(SMALL, mechanisms=10**6), ENV.spec)
    built, state, _ = model()
    short = jax.tree.map(lambda x: x[:, :1], windows())
    with pytest.raises(ValueError, match="window must be at most the 1 steps"):
        built.fit(jax.random.key(0), state, short)
    with pytest.raises(ValueError, match="mechanisms must be at least 1, got 0"):
        Config(mechanisms=0)
    with pytest.raises(ValueError, match="phase must be both, competition or"):
        Config(phase="neither")
    with pytest.raises(ValueError, match="temperature must be positive"):
        Config(temperature=0.0)
    with pytest.raises(ValueError, match="labels must not be negative"):
        Config(labels=-1)


@pytest.mark.slow
def test_the_experiment_measures_what_its_claim_reads(key, monkeypatch):
    small = {"_UPDATES": 5, "_TEST": 40, "_ROUNDS": 1, "_PER_ROUND": 2}
    for name, value in small.items():
        monkeypatch.setattr(recipe, name, value)
    metrics = jax.jit(lambda key: recipe.experiment(key, SMALL))(key)
    assert all(np.isfinite(value) for value in metrics.values())
    assert 0 < metrics["acting"] < 1
