"""Targets have the moments the theory asks for; the stages do what they should."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.recipes import hierarchical_polynomials as recipe
from jaxwm.recipes.hierarchical_polynomials import TINY, Config


def test_inner_polynomial_and_target_are_standardised(key):
    target_key, x_key = jax.random.split(key)
    x = jax.random.normal(x_key, (100_000, 6))
    for degree in (1, 2, 3):
        target = recipe.hierarchical_target(
            jax.random.clone(target_key), 6, degree, (0.0, 1.0)
        )
        p = target.inner(x)
        np.testing.assert_allclose([p.mean(), p.var()], [0, 1], atol=0.04)
        np.testing.assert_allclose(target(x), p, rtol=1e-6)


def test_a_quadratic_target_is_its_matrix(key):
    x_key, a_key = jax.random.split(key)
    square = np.asarray(jax.random.normal(a_key, (20, 20)))
    matrix = square + square.T
    matrix -= np.trace(matrix) / 20 * np.eye(20)
    matrix /= np.sqrt(2) * np.linalg.norm(matrix)  # |A|_F^2 = 1/2, traceless
    x = jax.random.normal(x_key, (7, 20))
    target = recipe.quadratic_target(matrix, (0.0, 1.0))
    expected = np.einsum("ni,ij,nj->n", x, matrix, x)
    np.testing.assert_allclose(target.inner(x), expected, rtol=1e-3, atol=1e-4)


def test_the_default_target_has_a_traceless_matrix_of_the_right_norm(key):
    target = recipe.hierarchical_target(key, 10, 2, (0.0, 1.0))
    v = target.directions
    np.testing.assert_allclose(v @ v.T, np.eye(10), atol=1e-5)
    matrix = (v.T * target.weights) @ v / np.sqrt(2)
    np.testing.assert_allclose(jnp.trace(matrix), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(matrix**2), 0.5, rtol=1e-5)


@pytest.mark.slow
def test_a_link_of_degree_one_is_learnt_from_plenty_of_samples(key):
    target_key, x_key, fit_key = jax.random.split(key, 3)
    config = dataclasses.replace(
        TINY, num_inputs=3, link=(0.0, 1.0), num_inner=120, ratio=60.0
    )
    target = recipe.hierarchical_target(target_key, 3, 2, config.link)
    x = jax.random.normal(x_key, (4 * config.num_samples, 3))
    h, n = target(x), config.num_samples
    model = recipe.hierarchical_polynomials(
        fit_key, x[:n], h[:n], x[n : 2 * n], h[n : 2 * n], config
    )
    rest = slice(2 * n, None)
    correlation = jnp.corrcoef(model.feature(x[rest]), target.inner(x[rest]))[0, 1]
    assert correlation > 0.97
    assert jnp.mean((model(x[rest]) - h[rest]) ** 2) < 0.1 * jnp.var(h)
    z = model.feature(x[n : 2 * n])
    np.testing.assert_allclose([z.mean(), z.std()], [0, 1], atol=1e-3)


@pytest.mark.slow
def test_the_experiment_gives_finite_numbers_from_a_tiny_setting(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert {"correlation/4", "gap/2", "no_slope/correlation"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner_degree": 0}, "inner_degree must be at least 1, got 0"),
        ({"link": (1.0, 0.0)}, r"link must not be constant, got \(1.0, 0.0\)"),
        ({"ratio": 0.5}, "at least 20 samples, got 12"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_wrong_matrices_are_refused_and_narrow_ones_warned_of():
    with pytest.raises(ValueError, match="matrix must be symmetric"):
        recipe.quadratic_target(np.triu(np.ones((3, 3))), (0.0, 1.0))
    with pytest.warns(UserWarning, match=r"one direction holds 1.00 of"):
        recipe.quadratic_target(np.diag([1.0, 0.0, 0.0]), (0.0, 1.0))
    assert Config().num_samples == 2000
