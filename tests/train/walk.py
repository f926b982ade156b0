"""A walk on a line whose returns and errors are computed by hand."""

import jax
import jax.numpy as jnp

from jaxwm import types

SPEC = types.EnvSpec(
    name="walk",
    obs=jax.ShapeDtypeStruct((2,), jnp.float32),
    action=types.Box((-1.0,), (1.0,)),
    control_dt=0.1,
    time_limit=4,
    factors=(types.Factor("gain", 1.0, 0.5, 2.0, "1", "moved per unit of action"),),
)


def make(noise=0.0, start=0.0, end=3.0):
    """x moves by gain * action, up to `end` where it terminates; the reward is 10 + x.

    Two entries are observed, x and 2 x; behind the end everything is NaN, so nothing
    may be read there.
    """

    def state(x, gain, t, reward, discount):
        return types.EnvState(
            x,
            {"gain": gain},
            t,
            jnp.stack([x, 2 * x]),
            reward,
            discount,
            t >= SPEC.time_limit,
            {},
        )

    def reset_to(physics, params):
        gain = jnp.float32(1.0) if params is None else params["gain"]
        return state(physics, gain, jnp.int32(0), jnp.zeros(()), jnp.ones(()))

    def reset(key, params):
        return reset_to(start + noise * jax.random.normal(key), params)

    def step(key, s, action):
        gain, reward = s.params["gain"], 10 + s.physics
        x = s.physics + gain * action[0] + noise * jax.random.normal(key)
        x = jnp.where(s.physics >= end, jnp.nan, x)
        return state(x, gain, s.t + 1, reward, jnp.where(x >= end, 0.0, 1.0))

    return types.Env(SPEC, reset, reset_to, step)


def constant(value):
    def act(key, memory, obs, is_first):
        return jnp.array([value]), memory

    return act


def rollouts(obs, action, reward=None):
    obs, action = jnp.asarray(obs, jnp.float32), jnp.asarray(action, jnp.float32)
    reward = jnp.zeros(obs.shape[:2]) if reward is None else reward
    return types.Rollout(obs, obs, action, reward, jnp.ones(obs.shape[:2]), {})
