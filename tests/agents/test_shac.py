"""SHAC: it follows gradients of the environment, across resets and time limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.agents import shac
from jaxwm.core import stats
from jaxwm.envs import probes, tasks
from jaxwm.nn import Critic
from jaxwm.types import Box, EnvSpec

SMALL = shac.Config(
    horizon=10,
    gamma=0.9,
    hidden=(16,),
    actor_lr=1e-2,
    critic_lr=1e-2,
    critic_epochs=8,
)


def trained(env, num_iterations, config=SMALL):
    """Agent, state and metrics after training on sixteen copies."""
    agent = shac.shac(envs.batch(env, 16), config)

    @jax.jit
    def run(key):
        init_key, step_key = jax.random.split(key)

        def body(state, i):
            return agent.learner.step(jax.random.fold_in(step_key, i), state, i)

        start = agent.learner.init(init_key)
        return jax.lax.scan(body, start, jnp.arange(num_iterations))

    return agent, *run(jax.random.key(0))


def cart(time_limit):
    """A cart that is pushed; reward 1 - x², paid for where the push has led."""
    spec = EnvSpec(
        "cart",
        jax.ShapeDtypeStruct((2,), np.dtype("float32")),
        Box((-1.0,), (1.0,)),
        control_dt=0.2,
        time_limit=time_limit,
    )

    def advance(key, x, params, action):
        del key, params
        v = 0.9 * x[1] + 0.4 * action[0]
        after = jnp.stack([x[0] + 0.4 * v, v])
        return after, 1 - after[0] ** 2, 1.0

    def start(key, params):
        del params
        return jnp.stack([jax.random.uniform(key, minval=-2.0, maxval=2.0), 0.0])

    return tasks.assemble(spec, start, advance, lambda x, params: x)


@pytest.mark.slow
def test_actions_follow_the_observation_in_episodes_of_one_step():
    probe = probes.obs_action_reward(terminal=True)
    agent, state, metrics = trained(probe.env, 150)
    for s in (-1.0, 1.0):
        obs = jnp.array([s])
        action = agent.act(jax.random.key(1), state, obs, False)
        np.testing.assert_allclose(action, probe.action(obs), atol=0.1)
    assert metrics["actor/skipped"].sum() == 0


@pytest.mark.slow
def test_a_cart_is_brought_to_rest_from_anywhere_beyond_the_window():
    # The window is shorter than the way: the critic must tell what lies behind it.
    env = cart(40)
    agent, state, _ = trained(env, 200)

    def last(x):
        start = env.reset_to(jnp.stack([x, 0.0]), None)

        def body(s, i):
            action = agent.act(jax.random.key(0), state, s.obs, False)
            return env.step(jax.random.key(0), s, action), None

        return jax.lax.scan(body, start, jnp.arange(30))[0].obs

    found = jax.jit(jax.vmap(last))(jnp.array([-2.0, -0.5, 1.0, 2.0]))
    assert np.abs(found).max() < 0.2


@pytest.mark.slow
def test_values_go_on_behind_a_time_limit():
    probe = probes.constant_reward(terminal=False)
    _, state, _ = trained(probe.env, 80)
    critic = Critic(SMALL.hidden, SMALL.activation)
    normed = stats.normalise(state.obs, jnp.zeros(1))
    found = critic.apply(state.critic.params, normed)
    expected = probe.value(jnp.zeros(1), SMALL.gamma)
    assert float(found) == pytest.approx(float(expected), rel=0.1)


def test_a_reset_cuts_the_gradient(key):
    batch = envs.batch(cart(3), 2)

    def later_rewards(first_action, key):
        reset_key, step_key = jax.random.split(key)
        state, rewards = batch.reset(reset_key), []
        for i in range(6):
            action = first_action if i == 0 else jnp.zeros((2, 1))
            state, _ = batch.step(jax.random.fold_in(step_key, i), state, action)
            rewards.append(state.env.reward)
        return jnp.stack(rewards)

    slopes = jax.jit(jax.jacrev(later_rewards))(jnp.full((2, 1), 0.3), key)
    own = np.abs(np.asarray(slopes))[:, [0, 1], [0, 1], 0]  # [step, env]
    assert (own[:3] > 1e-4).all()
    np.testing.assert_array_equal(own[3:], 0)


def test_the_form_of_a_learner():
    agent = shac.shac(envs.batch(cart(7), 4), shac.TINY)
    seeds = jnp.arange(2, dtype=jnp.uint32)
    init = jax.jit(jax.vmap(lambda seed: agent.learner.init(jax.random.key(seed))))
    state = init(seeds)

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


@pytest.mark.parametrize(
    ("make", "window"), [(shac.apg, 3), (shac.bptt, 6)], ids=["apg", "bptt"]
)
def test_without_a_critic_the_objective_is_the_mean_reward(make, window, key):
    batch = envs.batch(cart(6), 2)
    agent = make(batch, shac.Config(horizon=3, gamma=1.0, hidden=(8,)))
    init_key, step_key = jax.random.split(key)
    state = jax.jit(agent.learner.init)(init_key)
    new, metrics = jax.jit(agent.learner.step)(step_key, state, jnp.int32(0))
    assert float(-metrics["actor/loss"]) == pytest.approx(
        float(metrics["collect/reward"]), rel=1e-5
    )
    # bptt's window is the episode, whatever `horizon` says: the clock is at its start
    np.testing.assert_array_equal(new.env.env.t, window % 6)
    chex.assert_trees_all_equal(new.critic.params, state.critic.params)


def test_an_exploded_window_is_skipped_and_counted():
    def advance(key, x, params, action):
        del key, params
        # finite values with a derivative that is not
        return x, jnp.sqrt(jnp.abs(action[0]) * 0.0) + 0.0 * x[0], 1.0

    env = cart(5)
    broken = tasks.assemble(
        env.spec, lambda key, p: jnp.zeros(2), advance, lambda x, p: x
    )
    _, state, metrics = trained(broken, 3, shac.TINY)
    np.testing.assert_array_equal(metrics["actor/skipped"], 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.actor.params))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"lambda_": -0.5}, r"lambda_ must be in \[0, 1\], got -0.5"),
        ({"actor_lr": 0.0}, "actor_lr must be positive"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        shac.Config(**change)


def test_minibatches_must_divide_the_window():
    with pytest.raises(ValueError, match="critic_minibatches must divide the 9 steps"):
        shac.shac(envs.batch(cart(5), 3), shac.Config(horizon=3))
