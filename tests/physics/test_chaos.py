"""Chaotic flows: known equations, order of the scheme, and exponents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import chaos


def test_lorenz63_contracts_volumes_at_its_known_rate():
    jacobian = jax.jacfwd(chaos.lorenz63_rate)(jnp.array([1.0, -2.0, 20.0]))
    np.testing.assert_allclose(jnp.trace(jacobian), -(10 + 1 + 8 / 3), rtol=1e-6)


def test_lorenz63_rests_at_the_centres_of_its_wings():
    root = np.sqrt(8 / 3 * 27)
    centre = jnp.array([root, root, 27.0])
    np.testing.assert_allclose(chaos.lorenz63_rate(centre), 0, atol=1e-4)


def test_lorenz96_rests_where_all_sites_are_forced_alike_and_keeps_energy_otherwise():
    np.testing.assert_allclose(chaos.lorenz96_rate(jnp.full(7, 8.0)), 0, atol=1e-5)
    x = jnp.array([0.3, -1.0, 2.0, 0.5, 1.5])
    # The quadratic part does no work: x . rate = -|x|² + F sum(x).
    power = x @ chaos.lorenz96_rate(x, forcing=3.0)
    np.testing.assert_allclose(power, -x @ x + 3 * x.sum(), rtol=1e-5)


def test_the_error_of_the_flow_falls_with_the_fourth_power_of_the_step():
    turn = lambda x: jnp.stack([x[1], -x[0]])
    with jax.enable_x64(True):

        def error(num):
            step = chaos.flow(turn, 1.0 / num)
            end = chaos.orbit(step, jnp.array([1.0, 0.0]), num + 1)[-1]
            return np.linalg.norm(end - np.array([np.cos(1), -np.sin(1)]))

        assert 3.9 < np.log2(error(10) / error(20)) < 4.1


def test_an_orbit_begins_at_its_start():
    x = chaos.orbit(lambda x: 2 * x, jnp.ones(2), 4)
    np.testing.assert_array_equal(x[:, 0], [1, 2, 4, 8])


def test_orbits_lie_on_the_attractor_and_depend_on_the_key():
    run = jax.jit(lambda key: chaos.lorenz63(key, 2000))
    one, two = run(jax.random.key(0)), run(jax.random.key(1))
    assert one.shape == (2000, 3)
    assert np.abs(one[:, 0]).max() < 21
    assert one[:, 2].min() > 0
    assert one[:, 2].max() < 50
    assert not np.allclose(one, two)
    ring = jax.jit(lambda key: chaos.lorenz96(key, 500, size=6))(jax.random.key(2))
    assert ring.shape == (500, 6)
    assert ring.std() > 2


def test_a_ring_of_three_sites_is_refused():
    with pytest.raises(ValueError, match="at least 4 sites, got 3"):
        chaos.lorenz96_rate(jnp.ones(3))
