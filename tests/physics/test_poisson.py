"""The Poisson operator, its spectrum, and multigrid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics.poisson import (
    eigenvalues,
    interpolate,
    multigrid,
    poisson,
    restrict,
    sine_transform,
)

pytestmark = pytest.mark.slow  # compiles for long; nothing is built on it yet


def matrix(apply, shape):
    size = int(np.prod(shape))
    columns = jax.vmap(lambda e: apply(e.reshape(shape)).ravel())(jnp.eye(size))
    return np.asarray(columns.T)


def test_the_operator_on_a_line_is_the_known_matrix():
    expected = 2 * np.eye(4) - np.eye(4, k=1) - np.eye(4, k=-1)
    np.testing.assert_array_equal(matrix(poisson, (4,)), expected)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 4)])
def test_the_sine_transform_diagonalises_the_operator_and_inverts_itself(shape):
    u = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_allclose(sine_transform(sine_transform(u)), u, atol=1e-5)
    through = sine_transform(eigenvalues(shape) * sine_transform(u))
    np.testing.assert_allclose(through, poisson(u), atol=1e-5)


def test_walls_keep_the_operator_symmetric_and_positive():
    mask = jnp.ones((4, 4)).at[2:, 2:].set(0)
    a = matrix(lambda u: poisson(u, mask), (4, 4))
    np.testing.assert_array_equal(a, a.T)
    assert np.linalg.eigvalsh(a).min() > 0.1
    wall = np.flatnonzero(1 - np.asarray(mask).ravel())
    np.testing.assert_array_equal(a[wall], np.eye(16)[wall])


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_restriction_is_the_transpose_of_interpolation(shape):
    fine = tuple(2 * n for n in shape)
    up, down = matrix(interpolate, shape), matrix(restrict, fine)
    np.testing.assert_allclose(up, down.T, atol=1e-7)


@pytest.mark.parametrize("shape", [(16,), (8, 8), (4, 4, 4)])
def test_the_cycle_is_a_symmetric_positive_and_close_inverse(shape):
    with jax.enable_x64(True):
        m = matrix(multigrid, shape)
        a = matrix(poisson, shape)
        np.testing.assert_allclose(m, m.T, atol=1e-12)
        values = np.linalg.eigvals(m @ a).real
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_odd_sides_cannot_be_halved():
    with pytest.raises(ValueError, match=r"even sides to be halved, got \(3,\)"):
        restrict(jnp.ones(3))
