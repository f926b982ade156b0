"""Actor and critic that follow derivatives of what a world model imagines."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.agents import behaviour
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.types import Box, ModelSpec, ModelState

SPEC = ModelSpec(
    obs=jax.ShapeDtypeStruct((1,), np.dtype("float32")),
    action=Box((-1.0,), (1.0,)),
    feature_size=1,
    horizon=1,
    context=1,
    abilities=frozenset({"reward", "gradient"}),
    window=2,
    name="line",
)
STATE = ModelState((), (), ())


def line(reward):
    """A point moved by its action; the reward is that of the place reached."""

    def step(key, state, x, action):
        del key, state
        x = x + 0.3 * action
        return Step(x, reward(x[0]), jnp.ones(()), {})

    nothing = lambda *args: None
    return from_step(SPEC, step, init=nothing, loss=nothing, fit=nothing)


@pytest.mark.slow
def test_a_policy_finds_the_middle_of_the_line(key):
    model = line(lambda x: -(x**2))
    config = behaviour.Config(horizon=8, hidden=(16,), learning_rate=3e-3)
    agent = behaviour.behaviour(model, config)
    init_key, start_key, loop_key = jax.random.split(key, 3)
    starts = jax.random.uniform(start_key, (128, 1), minval=-1, maxval=1)

    @jax.jit
    def learn(state):
        def body(state, i):
            key = jax.random.fold_in(loop_key, i)
            return agent.improve(key, state, STATE, starts)

        return jax.lax.scan(body, state, jnp.arange(300))

    state, metrics = learn(agent.init(init_key))
    assert metrics["finite"].all()
    assert metrics["imagined/reward"][-20:].mean() > 0.3 * metrics["imagined/reward"][0]
    for x in (-0.8, 0.8):
        assert agent.policy(state)(jnp.array([x])).mean * np.sign(x) < -0.5


@pytest.mark.slow
def test_the_critic_learns_the_discounted_sum_of_a_constant_reward(key):
    model = line(lambda x: 1.0 + 0.0 * x)
    config = behaviour.Config(
        horizon=4, batch=16, gamma=0.8, hidden=(8,), slow=0.2, learning_rate=1e-2
    )
    agent = behaviour.behaviour(model, config)
    init_key, loop_key = jax.random.split(key)
    starts = jnp.linspace(-1, 1, 32)[:, None]

    @jax.jit
    def learn(state):
        def body(state, i):
            key = jax.random.fold_in(loop_key, i)
            return agent.improve(key, state, STATE, starts)

        return jax.lax.scan(body, state, jnp.arange(600))

    state, metrics = learn(agent.init(init_key))
    # Everyone is worth 1 / (1 - 0.8) = 5: the error of the critic vanishes there.
    assert metrics["critic"][-1] < 1e-2 < metrics["critic"][0]
    error = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), state.buffers, state.params["critic"]
    )
    assert max(jax.tree.leaves(error)) < 0.1  # the slow copy has caught up


def test_models_without_derivatives_are_refused():
    model = line(lambda x: x)
    blind = model._replace(
        spec=model.spec._replace(abilities=model.spec.abilities - {"gradient"})
    )
    with pytest.raises(ValueError, match="behaviour needs gradient, which the line"):
        behaviour.behaviour(blind, behaviour.TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 1}, "horizon must be at least 2 steps, got 1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"gamma": 1.2}, r"gamma must be in \[0, 1\], got 1.2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(behaviour.TINY, **change)
