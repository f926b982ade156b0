"""The guidance scale follows the spread of imagined actions."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import rl


def test_wide_actions_strengthen_guidance_and_narrow_ones_weaken_it():
    log_scale = jnp.log(0.01)
    for spread, change in ((1.5, 0.05), (1.0, 0.0), (0.5, -0.05)):
        got = rl.update_guidance(log_scale, jnp.float32(spread), 0.1)
        np.testing.assert_allclose(got - log_scale, change, atol=1e-6)


def test_the_scale_stays_within_its_bounds():
    log_scale = jnp.log(0.01)
    high = rl.update_guidance(log_scale, jnp.float32(100), 1.0, high=0.04)
    low = rl.update_guidance(log_scale, jnp.float32(-100), 1.0, low=0.001)
    np.testing.assert_allclose(
        jnp.exp(jnp.stack([low, high])), [0.001, 0.04], rtol=1e-5
    )


def test_spread_is_the_mean_over_dimensions_of_the_deviation(key):
    z = jax.random.normal(key, (300, 20, 2)) * jnp.array([0.5, 2.5]) + 3.0
    np.testing.assert_allclose(rl.action_spread(z), 1.5, rtol=0.03)


def test_the_controller_settles_where_actions_are_on_policy():
    """Actions spread as 0.02 / λ settle at λ = 0.02."""

    def step(log_scale, _):
        return rl.update_guidance(log_scale, 0.02 / jnp.exp(log_scale), 0.1), None

    log_scale, _ = jax.lax.scan(step, jnp.log(0.005), None, 200)
    np.testing.assert_allclose(jnp.exp(log_scale), 0.02, rtol=1e-3)
