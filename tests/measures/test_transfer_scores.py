"""Learning curves whose scores are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import transfer


def test_a_curve_is_read_by_hand():
    steps = jnp.array([0.0, 100.0, 400.0])
    read = transfer.curve(jnp.array([0.2, 0.8, 1.0]), steps)
    assert read.jump_start == pytest.approx(0.2)
    assert read.area == pytest.approx((100 * 0.5 + 300 * 0.9) / 400)
    assert read.time_to == 100 and read.asymptote == 1
    assert transfer.curve(jnp.array([0.2, 0.3, 0.7]), steps).time_to == jnp.inf


def test_points_that_lie_closer_weigh_less():
    """The same line, evaluated often in the beginning or not."""
    line = lambda steps: transfer.curve(steps / 4, steps).area
    np.testing.assert_allclose(line(jnp.array([0.0, 0.1, 0.3, 1.0, 4.0])), 0.5)


def test_gain_is_the_share_of_what_scratch_leaves():
    scratch = jnp.array([0.5, 0.5, 0.0])
    found = transfer.gain(jnp.array([0.75, 0.25, 0.0]), scratch)
    np.testing.assert_allclose(found, [0.5, -0.5, 0.0])


def test_the_gain_of_many_seeds_is_that_of_their_mean_areas(key):
    """So the seed whose scratch leaves next to nothing to gain does not rule it."""
    scratch = jnp.array([0.0, 0.2, 0.4, 0.1, 0.99])
    area = jnp.array([0.5, 0.6, 0.7, 0.55, 0.9])
    found, low, high = transfer.bootstrap_gain(key, area, scratch)
    lost = transfer.gain(jnp.mean(area), jnp.mean(scratch))
    np.testing.assert_allclose(found, lost, rtol=1e-6)
    assert low < found < high
    assert jnp.mean(transfer.gain(area, scratch)) < -1 < found


def test_seeds_that_agree_leave_no_doubt(key):
    even = transfer.bootstrap_gain(key, jnp.full(5, 0.75), jnp.full(5, 0.5))
    np.testing.assert_allclose(even, (0.5, 0.5, 0.5))


def test_the_interval_covers_a_gain_about_as_often_as_it_says(key):
    """Also with ten seeds and a scratch whose level varies from seed to seed."""

    def covers(key):
        level_key, noise_key, boot_key = jax.random.split(key, 3)
        scratch = 0.8 * jax.random.uniform(level_key, (10,))
        area = scratch + 0.2 * jax.random.normal(noise_key, (10,))  # gain 0
        _, low, high = transfer.bootstrap_gain(
            boot_key, area, scratch, level=0.9, resamples=300
        )
        return (low < 0) & (high > 0)

    share = jnp.mean(jax.jit(jax.vmap(covers))(jax.random.split(key, 800)))
    assert 0.86 < share < 0.94  # 0.9 with a deviation of 0.011


def test_what_says_nothing_is_refused(key):
    with pytest.raises(ValueError, match="score must hold at least 2 points, got 1"):
        transfer.curve(jnp.ones(1), jnp.zeros(1))
    with pytest.raises(ValueError, match="at least 5 seeds, got 4"):
        transfer.bootstrap_gain(key, jnp.zeros(4), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 1"):
        transfer.bootstrap_gain(key, jnp.zeros(5), jnp.zeros(5), level=1.0)
