"""Graphs come with rollouts, the multiplier follows the error, tokens adapt alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.envs.tasks import local_particles
from jaxwm.recipes import spartan as recipe
from jaxwm.recipes.spartan import EXPERIMENT, TINY, Config, spartan

SMALL = dataclasses.replace(EXPERIMENT, embed=8, hidden=8)
ENV = local_particles.local_particles(push=0.0)
NUM = 5


@functools.cache
def windows():
    draw = jax.jit(lambda key: recipe._draw(key, ENV, jnp.arange(16) % 4))
    return draw(jax.random.key(0))[0]


@functools.cache
def model(**options):
    built = spartan(dataclasses.replace(SMALL, **options), ENV.spec)
    return built, jax.jit(built.init)(jax.random.key(1)), jax.jit(built.fit)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_every_imagined_step_comes_with_its_graph():
    built, state, _ = model()
    assert {"graph", "gradient"} <= built.spec.abilities
    assert "reward" not in built.spec.abilities
    memory = built.initial(state, 2)._replace(obs=windows().obs[0, 0])

    def imagine(memory):
        return built.imagine(jax.random.key(0), state, memory, jnp.zeros((3, 0)), 3)

    rollout = jax.jit(imagine)(memory)
    graph = rollout.info["graph"]
    assert graph.shape == (3, NUM, NUM + 1) and graph.dtype == bool
    assert built.spec.tokens == ("0", "1", "2", "3", "4", "environment")
    assert np.all(graph[:, np.arange(NUM), np.arange(NUM)])


@pytest.mark.slow
def test_with_actions_and_rewards_the_graph_names_them_too():
    env = local_particles.local_particles()
    config = Config(object_size=4, embed=8, hidden=8)
    predict = recipe.predictor(config, env.spec)
    built = spartan(config, env.spec)
    state = built.init(jax.random.key(0))
    statistics = state.buffers["statistics"]
    token = jnp.zeros((0, 8))
    out = predict(state.params, statistics, jnp.ones(20), jnp.ones(2), token)
    assert out.change.shape == (20,) and out.outcome.shape == (2,)
    # Targets are 5 objects and the reward; the action is read as well.
    assert recipe.local_graph(config, out.edges).shape == (6, 7)
    assert built.spec.tokens == ("0", "1", "2", "3", "4", "reward", "action")


@pytest.mark.slow
def test_the_multiplier_follows_the_error_and_dense_attention_has_none():
    _, state, fit = model()
    for target, up in ((1e-3, True), (1e3, False)):
        aimed = state._replace(buffers=state.buffers | {"target": jnp.float32(target)})
        after, metrics = fit(jax.random.key(2), aimed, windows())
        before = state.buffers["multiplier"].value
        assert (after.buffers["multiplier"].value > before) == up
        assert metrics["paths"] > 0
        assert not equal(after.params["environment"], state.params["environment"])
    _, state, fit = model(attention="dense")
    after, metrics = fit(jax.random.key(2), state, windows())
    assert equal(after.buffers, state.buffers)
    assert "paths" not in metrics


def test_a_removed_object_is_not_read():
    _, state, _ = model()
    test = jax.jit(lambda w, p: recipe._test(SMALL, ENV, state, w, p))
    present = jnp.ones((16, NUM), bool).at[:, 2].set(False)
    moved = windows().obs.at[:, :, 8:12].add(0.3)
    shifted = windows()._replace(
        obs=moved,
        extras={**windows().extras, "next_obs": windows().extras["next_obs"]},
    )
    one, _ = test(windows(), present)
    two, edges = test(shifted, present)
    others = np.r_[0:8, 12:20]
    np.testing.assert_allclose(one[:, others], two[:, others], rtol=1e-4, atol=1e-6)
    assert np.all(np.abs(edges[..., 2]) < 1e-6)


def test_a_token_is_fitted_with_every_weight_held():
    built, state, _ = model()
    new = jax.jit(lambda key: recipe.fit_token(key, built, state, windows(), steps=60))(
        jax.random.key(3)
    )
    assert equal(new.params["network"], state.params["network"])
    assert new.params["environment"].shape == (1, SMALL.embed)
    mean = state._replace(
        params={
            **state.params,
            "environment": state.params["environment"].mean(0, keepdims=True),
        }
    )
    named = windows()._replace(
        extras=windows().extras | {"environment": jnp.zeros((16, 1), jnp.int32)}
    )
    test = jax.jit(lambda state: jnp.mean(recipe._test(SMALL, ENV, state, named)[0]))
    assert test(new) < test(mean)


def test_a_context_is_a_row_a_token_or_the_mean():
    built, state, _ = model()
    table = state.params["environment"]
    np.testing.assert_array_equal(built.initial(state, 3).environment, table[3:])
    np.testing.assert_allclose(
        built.initial(state, None).environment[0], table.mean(0), rtol=1e-6
    )
    token = jnp.arange(8.0)
    np.testing.assert_array_equal(built.initial(state, token).environment[0], token)
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=f"environment in 0 ... 3, got {wrong}"):
            built.initial(state, wrong)


def test_the_rate_falls_to_a_tenth_at_the_end():
    rate = recipe._rate(Config(updates=100, cooldown=40, learning_rate=1.0))
    np.testing.assert_allclose(
        [rate(0), rate(60), rate(80), rate(100), rate(500)],
        [1, 1, 0.55, 0.1, 0.1],
        rtol=1e-5,
    )


def test_what_cannot_be_built_or_read_is_refused():
    with pytest.raises(ValueError, match="object_size must divide the 3 numbers"):
        spartan(Config(object_size=2), envs.make("pendulum", "jax").spec)
    built, state, _ = model()
    nameless = windows()._replace(extras={"next_obs": windows().extras["next_obs"]})
    with pytest.raises(ValueError, match="must name their environment in extras"):
        built.fit(jax.random.key(0), state, nameless)
    with pytest.raises(ValueError, match="target must be positive, got 0"):
        Config(target=0.0)
    with pytest.raises(ValueError, match="attention must be sparse or dense"):
        Config(attention="soft")
    with pytest.raises(ValueError, match="penalty must be one of log, paths, reach"):
        Config(penalty="count")
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        Config(blocks=0)
    with pytest.raises(ValueError, match="environments must be at least 0"):
        Config(environments=-1)
    assert TINY.environments == 0


@pytest.mark.slow
def test_the_experiment_measures_what_its_claim_reads(key, monkeypatch):
    monkeypatch.setattr(recipe, "_TEST", 50)
    config = dataclasses.replace(SMALL, updates=20)
    metrics = jax.jit(lambda key: recipe.experiment(key, config))(key)
    assert all(np.isfinite(value) for value in metrics.values())
    # Before anything is pruned the graph is full.
    assert metrics["objects/recall"] > 0.9 and metrics["shd"] > metrics["shd/empty"]
