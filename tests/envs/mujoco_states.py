"""States and actions that the tests of the MuJoCo engines share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import envs
from jaxwm.core import loop


def starts(key, env, num, speed=4.0):
    """States faster than the usual starts, with factors drawn over their ranges."""
    start_key, speed_key, params_key = jax.random.split(key, 3)
    ranges = envs.factors.ranges(env.spec, "range")
    draw = lambda key: envs.factors.sample(key, env.spec, ranges)
    params = jax.vmap(draw)(loop.fold_in_each(params_key, num))
    state = jax.vmap(env.reset)(loop.fold_in_each(start_key, num), params)
    qvel = jax.random.uniform(speed_key, state.physics.qvel.shape, minval=-1.0)
    return jax.vmap(env.reset_to)(state.physics._replace(qvel=speed * qvel), params)


def actions(key, env, *shape):
    """Actions of which some are outside of their bounds."""
    high = jnp.array(env.spec.action.high)
    shape = (*shape, env.spec.action.size)
    return 1.2 * high * jax.random.uniform(key, shape, minval=-1.0)


def rolled(env, state, steps):
    """Physics after actions `[T, ...]`, drawn beforehand."""

    def step(state, action):
        return env.step(jax.random.key(0), state, action), None

    return jax.lax.scan(step, state, steps)[0].physics


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)
