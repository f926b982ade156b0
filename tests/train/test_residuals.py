"""Statistics of process noise against closed forms and planted faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.train import fidelity, residuals
from tests.train import walk

# --- process noise


def test_residuals_are_zero_without_noise_and_the_noise_with_it(key):
    action = jnp.full((5, 1), 0.5)
    mean_step = lambda obs, a: obs + jnp.array([1.0, 2.0]) * a
    row = fidelity.replay(key, walk.make(end=99.0), jnp.float32(0.0), None, action)
    left = residuals.residuals(mean_step, row.obs, action)
    assert left.shape == (4, 2)
    np.testing.assert_allclose(left, 0, atol=1e-6)


def test_autocorrelation_of_white_and_of_smooth_noise(key):
    white = jax.random.normal(key, (4000, 9, 1))
    np.testing.assert_allclose(residuals.autocorrelation(white), 0, atol=0.02)
    # A moving average of two has 1/2 at lag one, a difference of two has -1/2.
    for sign in (1, -1):
        pairs = white[:, 1:] + sign * white[:, :-1]
        np.testing.assert_allclose(
            residuals.autocorrelation(pairs), 0.5 * sign, atol=0.02
        )


def test_unexplained_finds_the_part_the_driver_does_not_carry(key):
    drive, other = jax.random.normal(key, (2, 5000))
    true = jnp.stack([drive, 3 * drive], -1)
    np.testing.assert_allclose(residuals.unexplained(true, true, 0), 0, atol=1e-5)
    wrong = jnp.stack([drive, 3 * drive + 1.5 * other], -1)
    np.testing.assert_allclose(
        residuals.unexplained(wrong, true, 0), [0, 0.5], atol=0.02
    )


def test_crps_equals_the_closed_forms(key):
    # One certain forecast scores its distance; a standard normal forecast of 0 scores
    # (sqrt(2) - 1) / sqrt(pi) = 0.2337.
    assert residuals.crps(jnp.full(5, 2.0), jnp.array([3.5])) == 1.5
    normal = jax.random.normal(key, (3000,))
    score = residuals.crps(normal, jnp.zeros(1))
    np.testing.assert_allclose(score, (2**0.5 - 1) / np.pi**0.5, atol=0.01)


def test_energy_distance_tells_a_shift_from_equality(key):
    x, y = jax.random.normal(key, (2, 400, 2))
    assert abs(float(residuals.energy_distance(x, y))) < 0.05
    far = residuals.energy_distance(x, y + 10.0)
    np.testing.assert_allclose(far, 2 * 200**0.5 - 2 * np.pi**0.5, rtol=0.02)


def noisy_walk(key, obs, action, noise):
    """The walk itself as a world model, with another size of noise."""

    def step(obs, row):
        i, a = row
        move = a[0] + noise * jax.random.normal(jax.random.fold_in(key, i))
        return obs + jnp.array([1.0, 2.0]) * move, obs

    return jax.lax.scan(step, obs, (jnp.arange(action.shape[0]), action))[1]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_compare_measures_the_noise_a_model_keeps(key, share):
    found = jax.jit(
        lambda k: residuals.compare(
            k,
            walk.make(noise=0.4, end=1e9),
            lambda k, obs, action: noisy_walk(k, obs, action, share * 0.4),
            lambda obs, a: obs + jnp.array([1.0, 2.0]) * a,
            jnp.zeros(16),
            None,
            jnp.full((16, 6, 1), 0.2),
            num_samples=48,
        )
    )(key)
    # 16 x 48 x 5 residuals: two standard errors of the ratio are about 0.03.
    np.testing.assert_allclose(found.ratio, share, atol=0.04)
    np.testing.assert_allclose(found.autocorrelation, 0, atol=0.05)
    np.testing.assert_allclose(found.true_autocorrelation, 0, atol=0.05)
    if share == 1.0:
        np.testing.assert_allclose(found.crps_ratio, 1, atol=0.02)
        assert abs(found.energy_distance) < 0.03
    else:
        # Centred normals of spread s against 1: 2 sqrt((1 + s^2) / 2) - s = 1.081.
        np.testing.assert_allclose(found.crps_ratio, 2 * 0.625**0.5 - 0.5, atol=0.04)
        assert found.energy_distance > 0.1


def test_compare_refuses_one_sample(key):
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        residuals.compare(
            key,
            walk.make(),
            noisy_walk,
            lambda obs, a: obs,
            jnp.zeros(1),
            None,
            jnp.zeros((1, 3, 1)),
            num_samples=1,
        )
