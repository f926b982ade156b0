"""Ridge regression and gradient descent on features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import ridge


def noisy(key, num, size, noise=0.5):
    x_key, w_key, noise_key = jax.random.split(key, 3)
    x = jax.random.normal(x_key, (num, size)) + 3
    y = x @ jax.random.normal(w_key, (size,)) + 7
    return x, y + noise * jax.random.normal(noise_key, (num,))


@pytest.mark.slow
def test_a_linear_target_is_found_whatever_its_offset(key):
    x, y = noisy(key, 200, 5, noise=0.0)
    model, error = ridge.fit_ridge(x, y, (1e-6,))
    np.testing.assert_allclose(model(x), y, rtol=1e-3, atol=1e-2)
    assert error < 1e-3


@pytest.mark.slow
def test_primal_and_dual_give_the_same_predictions(key):
    """More constant features than examples switch the form, not the model."""
    x, y = noisy(key, 20, 6)
    padded = jnp.concatenate([x, jnp.ones((20, 20))], 1)
    primal, _ = ridge.fit_ridge(x, y, (0.1,))
    dual, _ = ridge.fit_ridge(padded, y, (0.1,))
    np.testing.assert_allclose(primal(x), dual(padded), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_pure_noise_asks_for_the_strongest_ridge_and_a_clean_line_for_the_weakest(key):
    x, y = noisy(key, 100, 60, noise=0.0)
    assert ridge.fit_ridge(x, y, (10.0, 1e-1, 1e-5))[0].strength == jnp.float32(1e-5)
    noise = jax.random.normal(jax.random.key(3), (100,))
    assert ridge.fit_ridge(x, noise, (1e3, 1e-5))[0].strength == 1e3


@pytest.mark.slow
def test_descent_follows_its_own_steps_and_ends_like_a_weak_ridge(key):
    x, y = noisy(key, 60, 4)
    path = ridge.descent_path(x, y, 9)
    np.testing.assert_array_equal(path.strength, 2 ** np.arange(10))
    design, target = x - x.mean(0), y - y.mean()
    one = path.weights[0]
    direction = design.T @ target
    cosine = one @ direction / jnp.linalg.norm(one) / jnp.linalg.norm(direction)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    least = jnp.linalg.lstsq(design, target)[0]
    np.testing.assert_allclose(path.weights[-1], least, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_descent_stopped_early_is_as_good_as_ridge(key):
    x, y = noisy(key, 300, 40, noise=4.0)
    scores = []
    for fit in (ridge.ridge_path, ridge.descent_path):
        errors = ridge.held_out_errors(fit(x[:150], y[:150]), x[150:], y[150:])
        scores.append(1 - jnp.min(errors) / jnp.var(y[150:]))
    assert scores[0] > 0.2
    np.testing.assert_allclose(*scores, atol=0.05)


def test_r_squared_is_one_for_the_truth_and_zero_for_the_mean():
    y = jnp.array([1.0, 2.0, 4.0])
    assert ridge.r_squared(y, y) == 1
    np.testing.assert_allclose(
        ridge.r_squared(y, jnp.full(3, jnp.mean(y))), 0, atol=1e-6
    )
