"""PPO: probe environments of known value, and the form of a learner."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.agents import ppo
from jaxwm.core import stats
from jaxwm.envs import probes
from jaxwm.nn import Critic

SMALL = ppo.Config(
    steps=20, epochs=4, minibatches=4, gamma=0.9, hidden=(16,), learning_rate=5e-3
)


def trained(probe, num_iterations, config=SMALL):
    """Agent and state after training on sixteen copies of a probe."""
    agent = ppo.ppo(envs.batch(probe.env, 16), config)

    @jax.jit
    def run(key):
        init_key, step_key = jax.random.split(key)

        def body(state, i):
            return agent.learner.step(jax.random.fold_in(step_key, i), state, i)

        return jax.lax.scan(
            body, agent.learner.init(init_key), jnp.arange(num_iterations)
        )

    return agent, *run(jax.random.key(0))


@pytest.mark.parametrize("terminal", [True, False])
def test_actions_follow_the_observation(terminal):
    probe = probes.obs_action_reward(terminal)
    agent, state, _ = trained(probe, 60)
    for s in (-1.0, 1.0):
        obs = jnp.array([s])
        action = agent.act(jax.random.key(1), state, obs, False)
        np.testing.assert_allclose(action, probe.action(obs), atol=0.1)


@pytest.mark.slow
def test_values_go_on_behind_a_time_limit_and_discount_what_comes_later():
    probe = probes.delayed_reward(terminal=False)
    _, state, metrics = trained(probe, 60)
    # Rewards are 0 and 1 in turn, so an episode's mean is one half.
    assert float(metrics["collect/reward"][-1]) == pytest.approx(0.5, abs=0.05)
    obs = jnp.array([[0.0], [1.0]])
    normed = jax.vmap(lambda o: stats.normalise(state.obs, o))(obs)
    critic = Critic(SMALL.hidden, SMALL.activation)
    found = critic.apply(state.model.params["critic"], normed)
    found = found * stats.scale(state.returns)[0]
    expected = jax.vmap(lambda o: probe.value(o, SMALL.gamma))(obs)
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_the_form_of_a_learner():
    env = envs.batch(envs.make("pendulum", "jax"), 4)
    agent = ppo.ppo(env, ppo.TINY, auxiliary=lambda params, obs: 0.0 * jnp.sum(obs))
    seeds = jnp.arange(2, dtype=jnp.uint32)
    init = jax.jit(jax.vmap(lambda seed: agent.learner.init(jax.random.key(seed))))
    state = init(seeds)
    chex.assert_trees_all_equal(state, init(seeds))

    @jax.jit
    def step(state, i):
        def one(seed, state):
            key = jax.random.fold_in(jax.random.key(seed), i)
            return agent.learner.step(key, state, i)

        return jax.vmap(one)(seeds, state)

    for i in range(3):
        new, metrics = step(state, jnp.int32(i))
    assert step._cache_size() == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    for name, value in metrics.items():
        assert value.shape == (2,) and np.isfinite(value).all(), name
    one = jax.tree.map(lambda x: x[0], new)
    actions = [agent.act(jax.random.key(i), one, jnp.zeros(3), True) for i in (1, 2)]
    assert actions[0] != actions[1]
    assert np.abs(np.asarray(actions)).max() <= 1


@pytest.mark.slow
def test_the_learning_rate_falls_to_zero():
    env = envs.batch(envs.make("pendulum", "jax"), 2)
    agent = ppo.ppo(
        env, ppo.Config(steps=4, minibatches=2, hidden=(4,), decay_iterations=1)
    )
    step = jax.jit(agent.learner.step)
    state = agent.learner.init(jax.random.key(0))
    state, _ = step(jax.random.key(1), state, jnp.int32(0))
    after, _ = step(jax.random.key(2), state, jnp.int32(1))
    chex.assert_trees_all_equal(after.model.params, state.model.params)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"clip": 0.0}, "clip must be positive"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        ppo.Config(**change)


def test_minibatches_must_divide_the_steps():
    env = envs.batch(envs.make("pendulum", "jax"), 3)
    with pytest.raises(ValueError, match="minibatches must divide the 12 steps"):
        ppo.ppo(env, ppo.Config(steps=4, minibatches=5))
