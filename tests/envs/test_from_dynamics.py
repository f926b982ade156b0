"""A simulator as an environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.envs.from_dynamics import from_dynamics
from jaxwm.physics import bodies, rigid
from jaxwm.types import Factor

PENDULUM = rigid(bodies.pendulum(), dt=0.05)
MASS = Factor("mass", 1.0, 0.5, 2.0, "kg", "mass of the rod")


def make(**changes):
    options = dict(
        name="rod",
        time_limit=20,
        start=lambda key, params: bodies.State(jnp.array([3.0]), jnp.zeros(1)),
        reward=lambda before, action, after: jnp.cos(after.q[0]),
        terminated=lambda after: after.v[0] > 1.0,
        factors=(MASS,),
    )
    return from_dynamics(PENDULUM, **{**options, **changes})


def test_it_steps_like_its_simulator_and_adds_the_task(key):
    env = make()
    assert env.spec.obs.shape == (2,) and env.spec.action.size == 1
    state = env.reset(jax.random.fold_in(key, 0), {"mass": 2.0})
    after = jax.jit(env.step)(key, state, jnp.array([0.5]))
    params = {**PENDULUM.params, "mass": 2.0}
    expected = PENDULUM.step(params, state.physics, jnp.array([0.5]))
    np.testing.assert_allclose(after.physics.q, expected.q, rtol=1e-6)
    np.testing.assert_allclose(after.obs, [expected.q[0], expected.v[0]], rtol=1e-6)
    np.testing.assert_allclose(after.reward, np.cos(expected.q[0]), rtol=1e-6)
    assert after.discount == 1
    fast = env.reset_to(bodies.State(jnp.zeros(1), jnp.array([5.0])), None)
    assert env.step(jax.random.fold_in(key, 1), fast, jnp.zeros(1)).discount == 0


def test_gradients_reach_the_action_and_the_factor(key):
    env = make()

    def reward(action, mass):
        state = env.reset(jax.random.fold_in(key, 0), {"mass": mass})
        state = env.step(jax.random.fold_in(key, 1), state, action)
        return state.reward

    slopes = jax.grad(reward, (0, 1))(jnp.array([0.5]), 1.0)
    assert all(np.abs(s).sum() > 0 for s in slopes)


def test_factors_must_be_parameters():
    odd = Factor("colour", 1.0, 0.0, 2.0, "1", "nothing")
    with pytest.raises(ValueError, match=r"parameters of its simulator.*\['colour'\]"):
        make(factors=(odd,))
