"""Innovations give back the window they were taken from; the head finds home."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm import nn
from jaxwm.dynamics import innovations

HEAD = nn.GaussianHead(2, (16,))
TURN = 0.3  # rad per step


def window(key, num):
    """Points on a circle that turn by a fixed angle, and actions that do nothing."""
    angle = jax.random.uniform(key, maxval=2 * jnp.pi) + TURN * jnp.arange(num)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), jnp.zeros((num, 1))


def test_the_head_rolled_out_with_a_windows_innovations_is_that_window(key):
    init_key, data_key, noise_key = jax.random.split(key, 3)
    params = HEAD.init(init_key, jnp.zeros(3))
    obs, action = window(data_key, 6)
    obs = obs + 0.05 * jax.random.normal(noise_key, obs.shape)
    xi = innovations.innovations(HEAD, params, obs, action, jnp.ones(5))
    rolled = innovations.roll_head(HEAD, params, obs[0], action, xi)
    np.testing.assert_allclose(rolled, obs, atol=1e-4)
    np.testing.assert_array_equal(xi[-1], 0)


def test_unknown_steps_have_no_innovation_whatever_lies_there(key):
    init_key, data_key = jax.random.split(key)
    params = HEAD.init(init_key, jnp.zeros(3))
    obs, action = window(data_key, 4)
    obs = obs.at[2:].set(jnp.nan)
    valid = jnp.array([1.0, 0.0, 0.0])
    xi = innovations.innovations(HEAD, params, obs, action, valid)
    assert bool(jnp.all(jnp.isfinite(xi)))
    np.testing.assert_array_equal(xi[1:], 0)


def test_a_head_gone_astray_stays_finite(key):
    params = jax.tree.map(lambda x: 1e3 * x, HEAD.init(key, jnp.zeros(3)))
    start, action = jnp.ones(2), jnp.zeros((50, 1))
    rolled = innovations.roll_head(HEAD, params, start, action, jnp.ones((50, 2)))
    assert bool(jnp.all(jnp.abs(rolled) <= 10))


@pytest.mark.slow
def test_jitter_leads_a_rolled_out_head_back_to_the_data(key):
    """Of an error of the radius, which no angle has, less is left after 11 steps."""
    optimiser = optax.adam(5e-3)

    def kept(key, jitter):
        init_key, fit_key, test_key = jax.random.split(key, 3)

        def loss(params, key):
            data_key, loss_key = jax.random.split(key)
            obs, action = window(data_key, 8)
            return innovations.head_loss(
                loss_key, HEAD, params, obs, action, jnp.ones(7), jitter=jitter
            )

        def update(carry, i):
            params, opt_state = carry
            keys = jax.random.split(jax.random.fold_in(fit_key, i), 64)
            grads = jax.grad(
                lambda params: jnp.mean(jax.vmap(loss, (None, 0))(params, keys))
            )(params)
            updates, opt_state = optimiser.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        params = HEAD.init(init_key, jnp.zeros(3))
        carry = (params, optimiser.init(params))
        (params, _), _ = jax.lax.scan(update, carry, jnp.arange(1500))
        obs, action = window(test_key, 12)
        still = jnp.zeros((12, 2))
        ends = [
            innovations.roll_head(HEAD, params, scale * obs[0], action, still)[-1]
            for scale in (1.0, 1.05)
        ]
        return jnp.linalg.norm(ends[1] - ends[0]) / 0.05

    kept = jax.jit(kept, static_argnums=1)
    without, with_jitter = (kept(jax.random.clone(key), jitter) for jitter in (0, 0.05))
    assert with_jitter < 0.8
    assert with_jitter < without
