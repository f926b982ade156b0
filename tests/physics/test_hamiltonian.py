"""Energies, their fields, and motions that keep them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import hamiltonian
from jaxwm.physics.hamiltonian import (
    HENON_HEILES,
    MASS_SPRING,
    PENDULUM,
    QUARTIC,
    field,
    n_body,
    pad,
    sample,
)

pytestmark = pytest.mark.slow  # compiles for long; nothing is built on it yet

SYSTEMS = (MASS_SPRING, PENDULUM, HENON_HEILES, QUARTIC, n_body(3))


def test_the_field_of_the_spring_turns_and_that_of_the_pendulum_pulls_back():
    q, p = jnp.array([[0.7]]), jnp.array([[-0.4]])
    dq, dp = field(MASS_SPRING.energy, q, p)
    np.testing.assert_allclose([dq[0, 0], dp[0, 0]], [-0.4, -0.7], rtol=1e-6)
    np.testing.assert_allclose(field(PENDULUM.energy, q, p)[1], -np.sin(q), rtol=1e-6)


def test_the_field_of_henon_and_heiles_is_the_published_one():
    (x, y), p = (0.2, -0.3), jnp.array([[0.1, 0.5]])
    dq, dp = field(HENON_HEILES.energy, jnp.array([[x, y]]), p)
    np.testing.assert_allclose(dq, p)
    np.testing.assert_allclose(dp[0], [-x - 2 * x * y, -y - x**2 + y**2], rtol=1e-5)


def test_bodies_attract_each_other_with_opposite_forces():
    q = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.3, 2.0]])
    _, dp = field(n_body(3).energy, q, jnp.zeros((3, 2)))
    np.testing.assert_allclose(dp.sum(0), 0, atol=1e-6)
    two = field(n_body(2, soft=0.0001).energy, q[:2], jnp.zeros((2, 2)))[1]
    np.testing.assert_allclose(two, [[1, 0], [-1, 0]], atol=1e-4)
    assert np.isfinite(field(n_body(2).energy, 0 * q[:2], 0 * q[:2])[1]).all()


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_a_field_is_divergence_free_and_keeps_the_energy(system):
    shape = (system.num_bodies, system.size)
    x = 0.4 * jax.random.normal(jax.random.key(0), (2, *shape))
    rate = lambda x: jnp.stack(field(system.energy, x[0], x[1]))
    size = x.size
    divergence = jnp.trace(jax.jacfwd(rate)(x).reshape(size, size))
    np.testing.assert_allclose(divergence, 0, atol=1e-5)
    slope = jax.grad(lambda x: system.energy(x[0], x[1]))(x)
    np.testing.assert_allclose(jnp.vdot(slope, rate(x)), 0, atol=1e-5)


def test_samples_lie_on_motions_with_their_exact_rates():
    data = jax.jit(lambda key: sample(key, HENON_HEILES, 60))(jax.random.key(1))
    assert data.q.shape == (60, 1, 2)
    energy = jax.vmap(HENON_HEILES.energy)(data.q, data.p)
    assert energy.max() < 1 / 6  # nothing escapes
    np.testing.assert_array_equal(data.dq, data.p)
    # Motions leave the square that they start in.
    assert np.abs(data.q).max() > HENON_HEILES.spread


def test_padding_masks_what_is_not_there():
    data = sample(jax.random.key(1), MASS_SPRING, 5, duration=1.0)
    padded = pad(data, 3, 2)
    assert padded.q.shape == (5, 3, 2)
    np.testing.assert_array_equal(padded.mask.sum((1, 2)), 1)
    np.testing.assert_array_equal(padded.dp[:, :1, :1], data.dp)
    energy = lambda q, p: jnp.sum(jnp.sin(q * p + q))
    dq, dp = field(energy, padded.q[0] + 1, padded.p[0] + 1, padded.mask[0])
    assert np.count_nonzero(dq) == np.count_nonzero(dp) == 1


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        field(MASS_SPRING.energy, jnp.ones((1, 1)), jnp.ones((1, 2)))
    data = sample(jax.random.key(1), n_body(2), 3, duration=0.2)
    with pytest.raises(ValueError, match="at most 1 bodies of 2 coordinates, got 2"):
        pad(data, 1, 2)
    with pytest.raises(ValueError, match="num_bodies must be at least 2"):
        hamiltonian.n_body(1)
