"""Measures of an attractor against known distributions, spectra and exponents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import attractor
from jaxwm.physics import chaos


def uniform(seed, num, size, **options):
    return jax.random.uniform(jax.random.key(seed), (num, size), **options)


@pytest.mark.slow
def test_the_divergence_of_an_orbit_from_itself_is_zero_and_otherwise_positive():
    x, y = uniform(0, 5000, 2), uniform(1, 5000, 2)
    measure = lambda x, y: attractor.state_space_divergence(x, y, bins=5)
    assert measure(x, x) == 0
    assert 0 < measure(x, y) < 0.05


@pytest.mark.slow
def test_the_divergence_is_the_logarithm_of_how_much_smaller_the_support_is():
    """Uniform on [0, 1] against uniform on [0, 2]: half of that is outside."""
    x = uniform(0, 100_000, 1)
    y = uniform(1, 100_000, 1, maxval=2.0)
    found = attractor.state_space_divergence(x, y, bins=4)
    # The box reaches 0.1 sd beyond 1; what y has there costs nothing, x has none.
    np.testing.assert_allclose(found, np.log(2), atol=0.04)


@pytest.mark.slow
def test_an_orbit_outside_the_box_or_not_finite_is_far_away_and_finite():
    x = uniform(0, 20_000, 3)
    for y in (x + 10.0, jnp.full_like(x, jnp.nan), jnp.full_like(x, jnp.inf)):
        assert 10 < attractor.state_space_divergence(x, y, bins=20) < 25


def test_too_many_dimensions_are_refused():
    with pytest.raises(ValueError, match="at most 5 dimensions, got 6"):
        attractor.state_space_divergence(jnp.ones((4, 6)), jnp.ones((4, 6)))
    with pytest.raises(ValueError, match="must have 2 dimensions"):
        attractor.state_space_divergence(jnp.ones((4, 2)), jnp.ones((4, 3)))


@pytest.mark.slow
def test_spectra_of_the_same_tone_agree_and_of_far_tones_do_not():
    t = jnp.arange(4000.0)
    tone = lambda period, phase: jnp.sin(2 * jnp.pi * t / period + phase)[:, None]
    measure = attractor.power_spectrum_error
    assert measure(tone(20, 0.0), 3 * tone(20, 1.0) + 5) < 0.02
    assert measure(tone(20, 0.0), tone(5, 0.0)) > 0.95
    assert measure(tone(20, 0.0), jnp.full((4000, 1), jnp.nan)) == 1


def test_exponents_of_a_linear_map_are_the_logarithms_of_its_eigenvalues():
    matrix = jnp.array([[2.0, 1.0], [0.0, 0.5]])
    found = attractor.lyapunov_exponents(
        lambda x: matrix @ x, jnp.zeros(2), 50, dt=0.1, transient=20
    )
    np.testing.assert_allclose(found, np.log([2.0, 0.5]) / 0.1, rtol=1e-4)


def test_exponents_of_lorenz63_are_the_published_ones():
    step = chaos.flow(chaos.lorenz63_rate, 0.01)
    run = jax.jit(
        lambda: attractor.lyapunov_exponents(
            step, jnp.array([1.0, 2.0, 25.0]), 20_000, dt=0.01, transient=1000
        )
    )
    found = run()
    np.testing.assert_allclose(found, [0.906, 0.0, -14.572], atol=0.06)
    # The volume contracts by -(σ + 1 + β) everywhere.
    np.testing.assert_allclose(found.sum(), -41 / 3, rtol=2e-3)
