"""The imagination agent on world models whose futures are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.agents import dream
from jaxwm.core import dists
from jaxwm.types import Box, ModelSpec, ModelState, Rollout, Trajectory, WorldModel

OBS = jax.ShapeDtypeStruct((2,), jnp.float32)


def exact_model(reward, step=lambda s, a: 0.5 * s + 0.1 * a, abilities=None):
    """A world model that knows `s' = step(s, a)`, `r = reward(s, a)` exactly."""
    if abilities is None:
        abilities = frozenset({"reward", "policy", "actions", "discount"})
    spec = ModelSpec(OBS, Box((-1.0,), (1.0,)), 2, 1, 1, abilities, 2)

    def imagine(key, state, memory, actor, horizon):
        def body(s, i):
            a = actor(s).sample(jax.random.fold_in(key, i))
            return step(s, a), (s, a, reward(s, a))

        _, (s, a, r) = jax.lax.scan(body, memory, jnp.arange(horizon))
        return Rollout(s, s, a, r, jnp.ones(horizon), {})

    return WorldModel(
        spec=spec,
        init=lambda key: ModelState({}, {}, ()),
        loss=lambda key, state, window: (jnp.zeros(()), ((), {})),
        fit=lambda key, state, windows: (state, {"finite": jnp.ones(())}),
        adapt=lambda state, transitions: state,
        initial=lambda state, context: jnp.zeros(2),
        observe=lambda key, state, memory, obs, action, is_first: obs,
        feature=lambda state, memory: memory,
        decode=lambda state, memory: memory,
        imagine=imagine,
    )


def sample(key, batch_size):
    obs = jax.random.uniform(key, (batch_size, 2, 2), minval=-1.0)
    rows = jnp.ones((batch_size, 2))
    return Trajectory(obs, jnp.zeros((batch_size, 2, 1)), rows, rows, rows, {})


@pytest.fixture(scope="module")
def trained():
    """An agent after rounds in a world that rewards the action `tanh(2 s_0) / 2`."""
    wanted = lambda s: 0.5 * jnp.tanh(2 * s[0])
    model = exact_model(lambda s, a: -((a[0] - wanted(s)) ** 2))
    config = dream.Config(
        horizon=5, fits=1, imagine_batch=128, actor_lr=3e-3, critic_lr=3e-3, gamma=0.8
    )
    agent = dream.dream(model, config)
    step = jax.jit(lambda key, state: agent.step(key, state, sample))
    state = agent.init(jax.random.key(1))
    for i in range(150):
        state, metrics = step(jax.random.fold_in(jax.random.key(2), i), state)
    return agent, state, metrics


def act(agent, state, obs, explore=False, key=None):
    memory = agent.begin(state)
    key = jax.random.key(0) if key is None else key
    return agent.act(key, state, memory, obs, True, explore)[0]


def test_the_policy_finds_the_action_that_depends_on_the_observation(trained):
    agent, state, _ = trained
    for s in (-0.8, -0.3, 0.0, 0.3, 0.8):
        action = act(agent, state, jnp.array([s, 0.2]))
        np.testing.assert_allclose(action[0], 0.5 * np.tanh(2 * s), atol=0.12)


def test_imagined_actions_are_on_policy(trained):
    _, _, metrics = trained
    assert abs(float(metrics["imagined/z_mean"])) < 0.15
    assert 0.8 < float(metrics["imagined/z_std"]) < 1.25


def test_exploring_draws_and_acting_does_not(trained):
    agent, state, _ = trained
    obs = jnp.array([0.1, 0.0])
    keys = jax.random.split(jax.random.key(5), 2)
    still = [float(act(agent, state, obs, False, key)[0]) for key in keys]
    drawn = [float(act(agent, state, obs, True, key)[0]) for key in keys]
    assert still[0] == still[1] and drawn[0] != drawn[1]


def test_actions_stay_inside_the_bounds(trained):
    agent, state, _ = trained
    keys = jax.random.split(jax.random.key(3), 64)
    obs = jnp.full((64, 2), 3.0)
    memory = jax.tree.map(lambda x: jnp.zeros((64, *x.shape)), agent.begin(state))
    actions, _ = jax.vmap(agent.act, (0, None, 0, 0, None, None))(
        keys, state, memory, obs, True, True
    )
    assert float(jnp.max(jnp.abs(actions))) <= 1.0


@pytest.mark.slow
def test_the_critic_learns_the_discounted_sum_of_a_constant_reward():
    model = exact_model(lambda s, a: jnp.ones(()))
    config = dream.Config(
        horizon=8, fits=1, imagine_batch=32, critic_lr=1e-2, gamma=0.5, target_decay=0.8
    )
    agent = dream.dream(model, dataclasses.replace(config, normalise=False))
    step = jax.jit(lambda key, state: agent.step(key, state, sample))
    state = agent.init(jax.random.key(1))
    for i in range(80):
        state, metrics = step(jax.random.fold_in(jax.random.key(2), i), state)
    np.testing.assert_allclose(metrics["imagined/return"], 2.0, atol=0.05)


@pytest.mark.slow
def test_the_trust_region_moves_log_probabilities_by_its_target():
    model = exact_model(lambda s, a: -((a[0] - 0.3) ** 2))
    config = dream.Config(
        horizon=4, fits=1, imagine_batch=64, epochs=1, actor_step="trust_region"
    )
    config = dataclasses.replace(config, actor_lr=3e-2, target_update=0.02)
    agent = dream.dream(model, config)
    state = agent.init(jax.random.key(1))
    step = jax.jit(lambda key, state: agent.step(key, state, sample))
    changes = []
    for i in range(5):
        state, metrics = step(jax.random.fold_in(jax.random.key(2), i), state)
        changes.append(float(metrics["actor/log_prob_change"]))
    assert max(changes) <= 0.02 * 1.2 + 1e-6
    assert np.median(changes) >= 0.02 * 0.8 - 1e-6


def test_a_model_without_rewards_is_refused_by_name():
    model = exact_model(lambda s, a: a[0], abilities=frozenset({"policy"}))
    with pytest.raises(ValueError, match="imagination agent needs reward"):
        dream.dream(model, dream.TINY)


@pytest.mark.parametrize(
    ("field", "value"),
    [("horizon", 1), ("gamma", 1.5), ("fits", 0), ("actor_lr", 0.0), ("min_std", -1)],
)
def test_config_names_the_bad_field(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(dream.TINY, **{field: value})


def test_scores_of_actions_drawn_from_the_policy_are_standard_normal(key):
    policy = lambda f: dists.Normal(f[:1], jnp.array([0.3]))
    feature = jax.random.normal(key, (400, 6, 2))
    noise = jax.random.normal(jax.random.fold_in(key, 1), (400, 6, 1))
    ones = jnp.ones((400, 6))
    rollout = Rollout(None, feature, feature[..., :1] + 0.3 * noise, ones, ones, {})
    z = dream.on_policy_scores(policy, rollout)
    assert z.shape == (400, 5, 1)
    np.testing.assert_allclose(z, noise[:, :-1], rtol=1e-4, atol=1e-4)
