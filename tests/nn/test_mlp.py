"""Multi-layer perceptrons, actors, critics and the Gaussian head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn


def test_an_mlp_is_its_layers_composed(key):
    mlp = nn.MLP((5, 2), "tanh")
    params = mlp.init(key, jnp.zeros(3))
    weights = params["params"]
    x = jnp.array([0.3, -1.0, 2.0])
    hidden = jnp.tanh(x @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"])
    expected = hidden @ weights["Dense_1"]["kernel"] + weights["Dense_1"]["bias"]
    np.testing.assert_allclose(mlp.apply(params, x), expected, rtol=1e-6)


def test_leading_axes_are_carried_along(key):
    mlp = nn.MLP((4, 2), "elu", layer_norm=True)
    params = mlp.init(key, jnp.zeros(3))
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    one_by_one = jax.vmap(jax.vmap(lambda row: mlp.apply(params, row)))(x)
    np.testing.assert_allclose(mlp.apply(params, x), one_by_one, atol=1e-6)


def test_elu_is_the_librarys_but_for_rounding_and_so_is_its_slope():
    x = jnp.array([-50.0, -1.0, -1e-3, -1e-9, 0.0, 1e-9, 2.0])
    ours = nn.mlp.activation_function("elu")
    np.testing.assert_allclose(ours(x), jax.nn.elu(x), atol=1e-7)
    slope = jax.vmap(jax.grad(ours))(x)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(jax.nn.elu))(x), atol=1e-7)


def test_an_unknown_activation_is_refused(key):
    with pytest.raises(ValueError, match=r"activation must be .* got 'relux'"):
        nn.MLP((2, 2), "relux").init(key, jnp.zeros(3))


def test_an_actor_starts_near_zero_with_the_spread_asked_for(key):
    actor = nn.Actor(2, min_std=0.1, init_std=0.6)
    params = actor.init(key, jnp.zeros(3))
    dist = actor.apply(params, jax.random.normal(jax.random.key(1), (7, 3)))
    np.testing.assert_allclose(dist.stddev, jnp.full((7, 2), 0.6), rtol=1e-6)
    assert jnp.max(jnp.abs(dist.mean)) < 0.2


def test_an_actor_cannot_start_below_its_smallest_spread(key):
    with pytest.raises(ValueError, match="init_std must exceed min_std"):
        nn.Actor(2, min_std=0.5, init_std=0.5).init(key, jnp.zeros(3))


def test_a_critic_gives_one_value_per_feature(key):
    critic = nn.Critic()
    params = critic.init(key, jnp.zeros(3))
    assert critic.apply(params, jnp.ones((4, 5, 3))).shape == (4, 5)


def test_whitening_undoes_colouring(key):
    head = nn.GaussianHead(4, (8,))
    params = head.init(key, jnp.zeros(3))
    _, lower, scale = head.apply(params, jnp.ones(3))
    assert jnp.all(jnp.triu(lower) == 0)
    assert jnp.all(scale >= head.floor)
    xi = jax.random.normal(jax.random.key(1), (4,))
    residual = nn.colour(xi, lower, scale)
    np.testing.assert_allclose(nn.whiten(residual, lower, scale), xi, atol=1e-5)


def test_the_head_describes_the_covariance_of_its_residuals():
    lower = jnp.zeros((2, 2)).at[1, 0].set(0.5)
    scale = jnp.array([2.0, 0.1])
    columns = jax.vmap(lambda xi: nn.colour(xi, lower, scale))(jnp.eye(2))
    covariance = columns.T @ columns
    # r0 = 2 xi0, r1 = 0.5 r0 + 0.1 xi1
    np.testing.assert_allclose(covariance, [[4.0, 2.0], [2.0, 1.01]], rtol=1e-6)
