"""Moments, normalising, interquartile mean and bootstrap."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.core import stats


def test_merging_batches_equals_moments_of_all_rows(key):
    rows = 5 + 3 * jax.random.normal(key, (60, 4))
    state = stats.moments(4)
    for part in (rows[:7], rows[7:8], rows[8:]):
        state = stats.update_moments(state, part)
    np.testing.assert_allclose(state.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.scale(state), rows.std(0), rtol=1e-4)


def test_rows_of_weight_zero_change_nothing(key):
    rows = jax.random.normal(key, (10, 2))
    weight = jnp.array([1.0] * 6 + [0.0] * 4)
    full = stats.update_moments(stats.moments(2), rows[:6])
    masked = stats.update_moments(stats.moments(2), rows, weight)
    for a, b in zip(full, masked, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    nothing = stats.update_moments(full, rows, jnp.zeros(10))
    for a, b in zip(full, nothing, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_unseen_moments_normalise_to_the_identity():
    x = jnp.array([3.0, -2.0])
    np.testing.assert_array_equal(stats.normalise(stats.moments(2), x), x)


def test_denormalise_inverts_normalise(key):
    rows = 100 + 0.1 * jax.random.normal(key, (50, 3))
    state = stats.update_moments(stats.moments(3), rows)
    back = stats.denormalise(state, stats.normalise(state, rows))
    np.testing.assert_allclose(back, rows, rtol=1e-6)


def test_a_constant_channel_is_inert_under_its_floor():
    state = stats.update_moments(stats.moments(1, floor=0.2), jnp.ones((20, 1)))
    assert float(stats.scale(state)[0]) == np.float32(0.2)


def test_interquartile_mean_of_eight_drops_two_at_each_end():
    x = np.array([100.0, 1, 2, 3, 4, -50, 5, 6])
    assert stats.interquartile_mean(x) == np.mean([2, 3, 4, 5])
    # Five values: the middle 2.5 of them.
    x = np.arange(5.0) ** 2
    assert np.isclose(stats.interquartile_mean(x), (0.75 * 1 + 4 + 0.75 * 9) / 2.5)


def test_bootstrap_interval_covers_the_mean_at_its_level():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(100):
        x = rng.normal(2.0, 1.0, 40)
        low, high = stats.bootstrap_interval(
            x, lambda a, axis: a.mean(axis), resamples=400, seed=trial
        )
        covered += bool(low <= 2.0 <= high)
    assert 85 <= covered <= 100
