"""The quadratic network against its closed forms; the experiment runs small."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.recipes import lazy_to_rich_grokking as recipe
from jaxwm.recipes.lazy_to_rich_grokking import TINY, Config


def test_the_network_and_its_tangent_kernel_have_their_closed_forms(key):
    w_key, x_key = jax.random.split(key)
    w, x = jax.random.normal(w_key, (8, 6)), jax.random.normal(x_key, (5, 6))
    h = x @ w.T / np.sqrt(6)
    found = jax.vmap(recipe.network, (None, 0, None))(w, x, 0.25)
    np.testing.assert_allclose(found, (h + 0.125 * h**2).mean(1), rtol=1e-5)
    # K_ab = (x_a . x_b / D) (phi'(h_a) . phi'(h_b)) / N^2
    slope = 1 + 0.25 * h
    expected = (x @ x.T / 6) * (slope @ slope.T) / 8**2
    found = recipe.tangent_kernel(w, x, Config())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_targets_are_squares_of_a_direction_of_length_root_d(key):
    task = recipe.polynomial_task(key, TINY)
    np.testing.assert_allclose(task.beta @ task.beta, 6, rtol=1e-5)
    np.testing.assert_allclose(task.y, (task.x @ task.beta) ** 2 / 6, rtol=1e-5)
    assert task.x.shape == (12, 6)
    assert task.x_test.shape == (16, 6)


@pytest.mark.slow
@pytest.mark.parametrize("centred", [True, False])
def test_the_closed_form_test_loss_agrees_with_sampling(key, centred):
    w_key, move_key, beta_key, x_key = jax.random.split(key, 4)
    config = dataclasses.replace(TINY, centred=centred, alpha=2.0, eps=0.7)
    start = jax.random.normal(w_key, (8, 6))
    w = start + 0.5 * jax.random.normal(move_key, (8, 6))
    beta = jax.random.normal(beta_key, (6,))
    system = recipe.lazy_to_rich_grokking(config)
    state = system.init(jax.random.key(0))._replace(params=w, buffers=start)
    x = jax.random.normal(x_key, (100_000, 6))
    f = jax.vmap(system.predict, (None, 0))(state, x)
    sampled = jnp.mean((f - (x @ beta) ** 2 / 6) ** 2)
    found = recipe.quadratic_net_statistics(w, beta, config, start if centred else None)
    np.testing.assert_allclose(found.test_loss, sampled, rtol=0.04)
    assert 0 <= found.overlap <= 1


def test_weights_along_the_target_overlap_fully():
    beta = jnp.array([1.0, -2.0, 0.5])
    w = jnp.outer(jnp.array([1.0, -1.0]), beta)
    found = recipe.quadratic_net_statistics(w, beta * np.sqrt(3 / 5.25), TINY)
    np.testing.assert_allclose(found.overlap, 1, rtol=1e-5)
    np.testing.assert_allclose(found.mean_weight, 0, atol=1e-6)


def test_the_centred_network_starts_at_zero_and_gradient_descent_lowers_its_loss(key):
    task_key, fit_key = jax.random.split(key)
    task = recipe.polynomial_task(task_key, TINY)
    system = recipe.lazy_to_rich_grokking(TINY)
    assert system.predict(system.init(fit_key), task.x[0]) == 0
    state, curve = recipe.train_curve(jax.random.clone(fit_key), task, TINY)
    assert curve.train.shape == (4,)
    assert curve.train[-1] < curve.train[0] < 1
    assert np.all(curve.finite == 1)
    start = system.init(jax.random.split(jax.random.clone(fit_key))[0])
    np.testing.assert_array_equal(state.buffers, start.params)


@pytest.mark.slow
def test_the_linearised_network_keeps_its_tangent_kernel(key):
    """Its predictions are those of kernel regression once the data are fitted."""
    from jaxwm.measures import kernels

    task_key, fit_key = jax.random.split(key)
    config = dataclasses.replace(
        TINY, linearised=True, eps=1.0, num_train=4, num_steps=3000, record_every=1000
    )
    task = recipe.polynomial_task(task_key, config)
    state, curve = jax.jit(recipe.train_curve, static_argnums=2)(fit_key, task, config)
    assert curve.train[-1] < 1e-6
    points = jnp.concatenate([task.x, task.x_test])
    kernel = recipe.tangent_kernel(state.buffers, points, config)
    dual = kernels.kernel_ridge(kernel[:4, :4], task.y, 1e-6)
    predict = recipe.lazy_to_rich_grokking(config).predict
    f = jax.vmap(predict, (None, 0))(state, task.x_test)
    np.testing.assert_allclose(f, kernel[4:, :4] @ dual, rtol=0.02, atol=0.02)


def test_too_large_a_step_shows_in_finite(key):
    config = dataclasses.replace(TINY, step_size=500.0, eps=1.0, num_steps=60)
    task = recipe.polynomial_task(jax.random.key(0), config)
    _, curve = recipe.train_curve(key, task, config)
    assert curve.finite[-1] == 0


def test_the_experiment_gives_finite_numbers_from_a_tiny_setting(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert {"test/0.25", "alignment/16", "lazy/test_at_fit"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    np.testing.assert_allclose(metrics["closed_form/ratio"], 1, atol=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha must be positive, got 0"),
        ({"eps": -1.0}, "eps must be at least 0, got -1"),
        ({"num_test": 1}, "num_test must be at least 2 points, got 1"),
        ({"record_every": 0}, "record_every must be in 1"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
