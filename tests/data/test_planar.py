"""Toy data sets in the plane: radii, senses of rotation, gaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.data import planar


def test_moons_are_half_circles_that_interleave(key):
    draw = jax.jit(lambda key: planar.two_moons(key, 500, noise=0.0))
    x, lower = draw(key)
    centre = jnp.where(lower[:, None], jnp.array([1.0, 0.5]), 0.0)
    np.testing.assert_allclose(jnp.linalg.norm(x - centre, axis=1), 1, rtol=1e-5)
    assert (np.where(lower, 0.5 - x[:, 1], x[:, 1]) > -1e-6).all()
    assert 0.4 < lower.mean() < 0.6


def test_spirals_turn_as_labelled_and_have_gaps(key):
    ts, xs, clockwise = jax.jit(lambda key: planar.spirals(key, 200))(key)
    assert (np.diff(ts) > 0).all()
    np.testing.assert_allclose(ts[:, [0, -1]], [[0, 1]] * 200, atol=1e-6)
    gaps = np.isnan(xs).any(-1)
    assert not gaps[:, 0].any()
    share = gaps[:, 1:].mean(1)
    assert 0.45 < share.mean() < 0.55
    assert share.min() < 0.3 < 0.6 < share.max()
    # Where nothing is missing between two points the cross product has the sign.
    cross = xs[:, :-1, 0] * xs[:, 1:, 1] - xs[:, :-1, 1] * xs[:, 1:, 0]
    sense = np.sign(np.nansum(np.asarray(cross), 1))
    assert (sense == np.where(clockwise, -1, 1)).mean() > 0.95


def test_a_spiral_of_one_point_is_refused(key):
    with pytest.raises(ValueError, match="length must be at least 2 points, got 1"):
        planar.spirals(key, 3, length=1)
