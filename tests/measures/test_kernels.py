"""Kernels against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn
from jaxwm.measures import kernels


def linear(params, x):
    return params["w"] @ x + params["b"]


def test_the_tangent_kernel_of_a_linear_map_is_the_inner_product_plus_one(key):
    x1, x2 = jnp.split(jax.random.normal(key, (12, 3)), (5,))
    params = {"w": jnp.arange(3.0), "b": jnp.ones(())}
    for block in (None, 1, 4, 256):
        found = kernels.empirical_ntk(linear, params, x1, x2, block=block)
        np.testing.assert_allclose(found, x1 @ x2.T + 1, rtol=1e-5)


@pytest.mark.slow
def test_the_tangent_kernel_of_a_network_is_the_gram_of_its_jacobian(key):
    net_key, x_key = jax.random.split(key)
    network = nn.MLP((6, 1), "tanh")
    x = jax.random.normal(x_key, (7, 3))
    params = network.init(net_key, x[0])
    flat, restore = jax.flatten_util.ravel_pytree(params)
    jacobian = jax.jacobian(lambda p: network.apply(restore(p), x)[:, 0])(flat)

    def apply(params, x):
        return network.apply(params, x)[0]

    found = kernels.empirical_ntk(apply, params, x, x, block=3)
    np.testing.assert_allclose(found, jacobian @ jacobian.T, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_linearising_a_linear_model_changes_nothing_and_a_network_in_second_order(key):
    network = nn.MLP((5, 1), "tanh")
    x = jnp.ones(3)
    start = network.init(key, x)
    flat = kernels.linearised(network.apply, start)

    def error(size):
        moved = jax.tree.map(lambda p: p + size, start)
        return jnp.abs(flat(moved, x) - network.apply(moved, x))[0]

    assert error(0.0) == 0
    assert 2.5 < error(0.1) / error(0.05) < 6  # 4, to leading order
    params = {"w": jnp.arange(3.0), "b": jnp.ones(())}
    moved = jax.tree.map(lambda p: p + 1, params)
    straight = kernels.linearised(linear, params)
    np.testing.assert_allclose(straight(moved, x), linear(moved, x), rtol=1e-6)


def test_the_centred_scaled_network_starts_at_zero_with_alpha_times_the_gradient():
    start = {"w": jnp.arange(3.0), "b": jnp.ones(())}
    scaled = kernels.centred_scaled(linear, start, 4.0)
    x = jnp.array([1.0, -2.0, 0.5])
    assert scaled(start, x) == 0
    np.testing.assert_allclose(jax.grad(scaled)(start, x)["w"], 4 * x)


def test_alignment_is_one_for_the_targets_own_kernel_and_ignores_scale_and_shift(key):
    y = jax.random.normal(key, (9,))
    kernel = jnp.outer(y, y)
    np.testing.assert_allclose(kernels.kernel_alignment(kernel, y), 1, rtol=1e-5)
    moved = kernels.kernel_alignment(3 * kernel + 5, 2 * y + 7)
    np.testing.assert_allclose(moved, 1, rtol=1e-4)
    identity = kernels.kernel_alignment(jnp.eye(9), y, centre=False)
    np.testing.assert_allclose(identity, 1 / 3, rtol=1e-5)  # 1 / sqrt(9)


def test_drift_is_relative():
    before = jnp.eye(4)
    assert kernels.kernel_drift(before, before) == 0
    np.testing.assert_allclose(kernels.kernel_drift(before, 3 * before), 2)


def test_kernel_ridge_equals_ridge_on_the_features(key):
    feature_key, y_key = jax.random.split(key)
    features = jax.random.normal(feature_key, (20, 6))
    y = jax.random.normal(y_key, (20,))
    gram, ridge = features @ features.T, 0.3
    shift = ridge * jnp.trace(gram) / 20
    primal = jnp.linalg.solve(
        features.T @ features + shift * jnp.eye(6), features.T @ y
    )
    dual = gram @ kernels.kernel_ridge(gram, y, ridge)
    np.testing.assert_allclose(dual, features @ primal, rtol=1e-3, atol=1e-4)


def test_the_arc_cosine_kernel_is_the_mean_over_relu_units(key):
    x_key, w_key = jax.random.split(key)
    x = jax.random.normal(x_key, (4, 3))
    units = jax.nn.relu(x @ jax.random.normal(w_key, (3, 200_000)))
    expected = 2 * units @ units.T / units.shape[1]
    np.testing.assert_allclose(kernels.arc_cosine(x, x), expected, rtol=0.03, atol=0.03)


def test_the_gaussian_kernel_is_one_at_zero_and_falls_with_distance():
    x = jnp.array([[0.0], [1.0], [3.0]])
    found = kernels.rbf(x, x, 1.0)
    np.testing.assert_allclose(jnp.diag(found), 1)
    np.testing.assert_allclose(found[0], jnp.exp(-jnp.array([0, 1, 9]) / 2), rtol=1e-5)


def test_wrong_arguments_are_refused():
    x = jnp.ones((4, 3))
    params = {"w": jnp.arange(3.0), "b": jnp.ones(())}
    with pytest.raises(ValueError, match="apply must return one number"):
        kernels.empirical_ntk(lambda p, x: p["w"] * x, params, x, x)
    with pytest.raises(ValueError, match="block must be at least 1"):
        kernels.empirical_ntk(linear, params, x, x, block=0)
    many = jnp.ones((5001, 3))
    with pytest.raises(ValueError, match=r"5001 examples, 0\.0 GB"):
        kernels.empirical_ntk(linear, params, many, x, block=None)
    with pytest.raises(ValueError, match="alpha must be positive"):
        kernels.centred_scaled(linear, params, 0.0)
    with pytest.raises(ValueError, match="y must vary, got 4 equal"):
        kernels.kernel_alignment(jnp.eye(4), jnp.ones(4))
