"""Hermite polynomials against their closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import hermite


def test_the_first_polynomials_are_the_textbooks():
    z = jnp.linspace(-2, 2, 9)
    for degree, expected in enumerate(
        (jnp.ones(9), z, (z**2 - 1) / np.sqrt(2), (z**3 - 3 * z) / np.sqrt(6))
    ):
        found = hermite.hermite(degree, z)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_polynomials_are_orthonormal_under_the_normal():
    for k in range(6):
        found = hermite.hermite_coefficients(lambda z, k=k: hermite.hermite(k, z), 6)
        np.testing.assert_allclose(found, np.eye(7)[k], atol=2e-5)


def test_quadrature_is_exact_for_moments():
    nodes, weights = hermite.gauss_hermite(12)
    moments = [np.sum(weights * nodes**k) for k in (0, 2, 4, 6, 8)]
    np.testing.assert_allclose(moments, [1, 1, 3, 15, 105], rtol=1e-12)


def test_a_series_has_its_coefficients():
    c = (0.5, 0.0, -2.0, 1.0)
    found = hermite.hermite_coefficients(lambda z: hermite.hermite_series(c, z), 3)
    np.testing.assert_allclose(found, c, atol=1e-5)


def test_relu_has_its_known_coefficients():
    # E relu = 1/sqrt(2 pi), E relu z = 1/2, E relu h_2 = 1/sqrt(2 pi)/sqrt(2)
    found = hermite.hermite_coefficients(lambda z: jnp.maximum(z, 0), 2, num_nodes=180)
    root = 1 / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(found, [root, 0.5, root / np.sqrt(2)], atol=2e-3)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="degree must be at least 0, got -1"):
        hermite.hermite(-1, jnp.ones(2))
    with pytest.raises(ValueError, match=r"num_nodes must be in 1 ... 180, got 0"):
        hermite.gauss_hermite(0)
