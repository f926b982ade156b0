"""Lines, planes and masks on losses with closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import landscape


def bowl(params):
    return jnp.sum(params["w"] ** 2)


def wells(params):
    return jnp.sum((params["w"] ** 2 - 1) ** 2)


ONE, MINUS, ZERO = ({"w": jnp.array([value])} for value in (1.0, -1.0, 0.0))


def test_a_convex_loss_has_no_barrier_and_two_wells_have_theirs():
    assert landscape.mode_barrier(bowl, ONE, MINUS) == 0
    np.testing.assert_allclose(landscape.mode_barrier(wells, ONE, MINUS), 1, rtol=1e-5)


def test_the_plane_holds_its_three_networks():
    corner = [{"w": jnp.array(w)} for w in ([0.0, 0.0], [1.0, 0.0], [0.0, 2.0])]
    found = landscape.loss_plane(bowl, *corner, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(found, [[0, 4], [1, 5]])


def test_the_smallest_weights_of_all_arrays_are_masked():
    params = {"a": jnp.array([0.1, -5.0, 3.0]), "b": jnp.array([[-0.2, 4.0]])}
    mask = landscape.magnitude_mask(params, 0.4)
    np.testing.assert_array_equal(mask["a"], [0, 1, 1])
    np.testing.assert_array_equal(mask["b"], [[0, 1]])
    whole = landscape.magnitude_mask(params, 0.0)
    np.testing.assert_array_equal(whole["a"], 1)


def test_wrong_fractions_are_refused():
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\), got 1"):
        landscape.magnitude_mask(ONE, 1.0)
