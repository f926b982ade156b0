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


def test_the_interval_covers_a_mean_about_as_often_as_it_says(key):
    def covers(key):
        data_key, boot_key = jax.random.split(key)
        low, high = transfer.bootstrap_mean(
            boot_key, jax.random.normal(data_key, (40,)), level=0.8, resamples=200
        )
        return (low < 0) & (high > 0)

    share = jnp.mean(jax.jit(jax.vmap(covers))(jax.random.split(key, 400)))
    assert 0.7 < share < 0.87


def test_what_says_nothing_is_refused(key):
    with pytest.raises(ValueError, match="score must hold at least 2 points, got 1"):
        transfer.curve(jnp.ones(1), jnp.zeros(1))
    with pytest.raises(ValueError, match="at least 3 seeds, got 2"):
        transfer.bootstrap_mean(key, jnp.ones(2))
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 1"):
        transfer.bootstrap_mean(key, jnp.ones(3), level=1.0)
