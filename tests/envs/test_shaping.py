"""What shaping adds to an episode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.envs import shaped
from jaxwm.envs.tasks import dr_reach


def extras_of(key, gamma, discount=1.0):
    """Discounted sum of what shaping adds, and the potential at the two ends."""
    potential = lambda obs: 3.0 * obs[0] + obs[3]
    base = dr_reach.dr_reach()

    def step(key, state, action):
        after = base.step(key, state, action)
        return after._replace(discount=jnp.where(after.t == 6, discount, 1.0))

    env = base._replace(step=step)
    other = shaped(env, potential, gamma)
    start = env.reset(key)

    def both(states, action):
        plain, guided = states
        new = env.step(key, plain, action), other.step(key, guided, action)
        return new, new[1].reward - new[0].reward

    actions = jnp.linspace(-1, 1, 12).reshape(6, 2)
    (last, _), extras = jax.lax.scan(both, (start, start), actions)
    return extras @ gamma ** jnp.arange(6.0), potential(start.obs), potential(last.obs)


@pytest.mark.parametrize("discount", [1.0, 0.0])
def test_shaping_adds_no_more_than_the_potential_at_the_two_ends(key, discount):
    """So the best policy stays the best; behind a termination nothing is left."""
    with jax.debug_key_reuse(False):  # deterministic
        found, first, last = jax.jit(lambda key: extras_of(key, 0.9, discount))(key)
    np.testing.assert_allclose(found, discount * 0.9**6 * last - first, rtol=1e-4)


def test_a_discount_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\], got 1.5"):
        shaped(dr_reach.dr_reach(), lambda obs: obs[0], 1.5)
