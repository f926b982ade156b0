"""A model made of one step rolls that step out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from jaxwm.core import dists
from jaxwm.dynamics import Step, from_step
from jaxwm.types import Box, ModelSpec, ModelState

SPEC = ModelSpec(
    obs=jax.ShapeDtypeStruct((2,), jnp.float32),
    action=Box((-1.0,), (1.0,)),
    feature_size=2,
    horizon=1,
    context=1,
    abilities=frozenset({"reward", "discount"}),
    window=2,
    name="toy",
)
STATE = ModelState({"gain": jnp.float32(2.0)}, {}, ())
REST = dict(
    init=lambda key: STATE,
    loss=lambda key, state, window: (jnp.zeros(()), (state.buffers, {})),
    fit=lambda key, state, windows: (state, {}),
)


def step(key, state, obs, action):
    """s' = (s_0 + gain a, s_0 s_1) + noise / 10, reward s_0 + 10 a, discount 1 - a."""
    after = jnp.stack([obs[0] + state.params["gain"] * action[0], obs[0] * obs[1]])
    noise = 0.1 * jax.random.normal(key)
    return Step(after + noise, obs[0] + 10 * action[0], 1 - action[0], {"noise": noise})


def roll(model, memory, actor, horizon):
    def imagine(memory):
        return model.imagine(jax.random.key(1), STATE, memory, actor, horizon)

    return quick.jit(imagine)(memory)


def test_given_actions_roll_out_the_step_by_hand():
    model = from_step(SPEC, step, **REST)
    actions = jnp.array([[0.5], [-0.25], [1.0]])
    start = jnp.array([1.0, 3.0])
    rollout = roll(model, start, actions, 3)
    noise = np.asarray(rollout.info["noise"])
    s0, s1 = [1.0], [3.0]
    for t in range(2):
        a = float(actions[t, 0])
        s0, s1 = (
            [*s0, s0[-1] + 2 * a + noise[t]],
            [*s1, s0[-1] * s1[-1] + noise[t]],
        )
    np.testing.assert_allclose(rollout.obs, np.stack([s0, s1], 1), rtol=1e-5)
    np.testing.assert_allclose(rollout.feature, rollout.obs)
    np.testing.assert_allclose(rollout.reward, np.array(s0) + 10 * actions[:, 0])
    np.testing.assert_allclose(rollout.discount, 1 - actions[:, 0])
    assert len(set(noise.tolist())) == 3


def test_a_policy_acts_on_the_feature_of_its_own_step():
    model = from_step(SPEC, step, **REST)
    policy = lambda feature: dists.Normal(0.1 * feature[:1], jnp.full(1, 1e-6))
    start = jnp.array([1.0, 3.0])
    rollout = roll(model, start, policy, 4)
    np.testing.assert_allclose(rollout.action, 0.1 * rollout.feature[:, :1], atol=1e-5)


def test_a_longer_horizon_begins_with_the_shorter_one():
    model = from_step(SPEC, step, **REST)
    policy = lambda feature: dists.Normal(jnp.zeros(1), jnp.ones(1))
    start = jnp.array([1.0, 3.0])
    short = roll(model, start, policy, 2)
    long = roll(model, start, policy, 5)
    for a, b in zip(short[:5], long[:5], strict=True):
        np.testing.assert_array_equal(a, b[:2])


def test_a_model_with_a_memory_of_its_own_may_lack_observations():
    """It counts steps in its memory and sums what it saw."""

    def count(key, state, memory, action):
        del key, state, action
        total, num = memory
        return Step((total, num + 1), total, jnp.ones(()), {})

    def observe(key, state, memory, obs, prev_action, is_first):
        total, num = jax.tree.map(lambda x: jnp.where(is_first, 0, x), memory)
        return total + jnp.sum(obs), num + 1

    model = from_step(
        SPEC._replace(feature_size=1),
        count,
        **REST,
        initial=lambda state, context: (jnp.zeros(()), jnp.zeros((), jnp.int32)),
        observe=observe,
        feature=lambda state, memory: memory[1][None].astype(jnp.float32),
    )
    assert "decode" not in model.spec.abilities
    memory = model.initial(STATE, None)
    for is_first in (True, False, False):
        memory = model.observe(
            jax.random.key(0), STATE, memory, jnp.ones(2), jnp.zeros(1), is_first
        )
    rollout = roll(model, memory, jnp.zeros((2, 1)), 2)
    assert rollout.obs is None
    np.testing.assert_array_equal(rollout.feature[:, 0], [3, 4])
    np.testing.assert_array_equal(rollout.reward, [6, 6])


def test_nested_observations_are_flattened_into_the_feature():
    shapes = {"a": SPEC.obs, "b": jax.ShapeDtypeStruct((), jnp.float32)}
    keep = lambda key, state, memory, action: Step(memory, 0.0, 1.0, {})
    model = from_step(SPEC._replace(obs=shapes, feature_size=3), keep, **REST)
    assert jax.tree.map(jnp.shape, model.initial(STATE, None)) == {"a": (2,), "b": ()}
    memory = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    np.testing.assert_array_equal(model.feature(STATE, memory), [1, 2, 3])
    rollout = roll(model, memory, jnp.zeros((4, 1)), 4)
    assert jax.tree.map(jnp.shape, rollout.obs) == {"a": (4, 2), "b": (4,)}


def test_a_rollout_says_when_it_is_not_finite():
    burst = lambda key, state, obs, action: Step(obs * 1e30, 0.0, 1.0, {})
    model = from_step(SPEC, burst, **REST)
    start = jnp.ones(2)
    for horizon, finite in ((2, True), (3, False)):
        actions = jnp.zeros((horizon, 1))
        rollout = roll(model, start, actions, horizon)
        assert rollout.info["finite"] == finite


def test_half_a_memory_is_refused_naming_what_is_missing():
    with pytest.raises(ValueError, match="toy lacks observe, feature; give all three"):
        from_step(SPEC, step, **REST, initial=lambda state, context: None)
