"""Models say what they can do, and models are made of models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from linear_system import SPEC, episodes, transitions, windows

from jaxwm.dynamics import ensemble, frozen, require, with_reward

MODEL = ensemble.ensemble(ensemble.TINY, SPEC)


@pytest.fixture(scope="module")
def state():
    return quick.jit(MODEL.init)(jax.random.key(1))


def test_what_is_there_may_be_required():
    require(MODEL, "policy", "reward", who="imagination agent")
    require(MODEL, who="someone who needs nothing")


def test_what_is_missing_is_named_with_who_needs_it_and_which_model_lacks_it():
    with pytest.raises(
        ValueError, match="planner needs graph, which the ensemble"
    ) as e:
        require(MODEL, "reward", "graph", who="planner")
    assert "returns the graph it used" in str(e.value)
    assert "choose another world model." in str(e.value)


def test_a_missing_reward_is_told_how_to_be_added():
    blind = MODEL._replace(spec=MODEL.spec._replace(abilities=frozenset({"policy"})))
    with pytest.raises(ValueError, match="add a known one by with_reward"):
        require(blind, "reward", who="agent")


def test_an_ability_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="got rewards; agent asks for something"):
        require(MODEL, "rewards", who="agent")


def test_requiring_fails_while_tracing():
    def run(x):
        require(MODEL, "graph", who="planner")
        return x

    with pytest.raises(ValueError, match="planner needs graph"):
        jax.jit(run)(1.0)


def test_a_frozen_model_keeps_its_state_and_still_measures(state):
    draw = np.random.default_rng(0)
    data = episodes(draw, 4, 10)
    batch = windows(draw, data, 4, 2)
    held = frozen(MODEL, state)
    assert held.init(jax.random.key(9)) is state
    assert held.adapt(state, transitions(data)) is state
    assert held.fit(jax.random.key(2), state, batch)[0] is state
    assert held.tune(state, None) is state

    one = jax.tree.map(lambda x: x[0], batch)

    def loss(model, params):
        return model.loss(jax.random.key(3), state._replace(params=params), one)[0]

    value, grads = quick.jit(jax.value_and_grad(lambda p: loss(held, p)))(state.params)
    plain = quick.jit(lambda p: loss(MODEL, p))(state.params)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads))


def test_a_known_reward_replaces_the_imagined_one(state):
    model = MODEL._replace(
        spec=MODEL.spec._replace(abilities=MODEL.spec.abilities - {"reward"})
    )
    known = with_reward(model, lambda obs, action: obs[0] - action[1] ** 2)
    require(known, "reward", who="agent")
    actions = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)

    @quick.jit
    def imagine(key):
        run = lambda model: model.imagine(key, state, jnp.ones(3), actions, 3)
        return run(known), run(model)

    with jax.debug_key_reuse(False):  # the same draws are the point
        rollout, plain = imagine(jax.random.key(2))
    expected = rollout.obs[:, 0] - actions[:, 1] ** 2
    np.testing.assert_allclose(rollout.reward, expected, rtol=1e-5)
    np.testing.assert_array_equal(plain.obs, rollout.obs)
    assert not np.array_equal(plain.reward, rollout.reward)


def test_a_known_reward_needs_observations():
    blind = MODEL._replace(spec=MODEL.spec._replace(abilities=frozenset({"policy"})))
    with pytest.raises(ValueError, match="with_reward needs decode"):
        with_reward(blind, lambda obs, action: 0.0)
