"""The piecewise-linear cell: its pieces, its bound, its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn

M, H = 3, 7


def cell_and_params(clipped=True):
    cell = nn.PiecewiseLinearCell(H, clipped=clipped)
    return cell, cell.init(jax.random.key(3), jnp.zeros(M))


@pytest.mark.slow
@pytest.mark.parametrize("clipped", [True, False])
def test_the_jacobian_is_that_of_the_linear_piece(clipped):
    cell, params = cell_and_params(clipped)
    p = params["params"]
    z = jax.random.normal(jax.random.key(0), (M,))
    pattern = 1.0 * (p["W2"] @ z > -p["h2"])
    if clipped:
        pattern -= 1.0 * (p["W2"] @ z > 0)
    expected = jnp.diag(p["A"]) + p["W1"] @ jnp.diag(pattern) @ p["W2"]
    jacobian = jax.jacfwd(lambda z: cell.apply(params, z))(z)
    np.testing.assert_allclose(jacobian, expected, atol=1e-6)


def test_a_clipped_cell_is_within_a_fixed_distance_of_its_linear_part():
    cell, params = cell_and_params()
    p = params["params"]
    far = 1e4 * jax.random.normal(jax.random.key(1), (50, M))
    drive = jax.vmap(lambda z: cell.apply(params, z))(far) - far * p["A"]
    bound = np.abs(p["W1"]) @ np.abs(p["h2"])
    assert (np.abs(drive - p["h1"]) <= bound + 1e-2).all()


def test_the_start_contracts_and_keeps_to_its_ranges():
    _, params = cell_and_params()
    p = params["params"]
    assert (p["A"] > 0).all()
    assert (p["A"] <= 1).all()
    assert np.abs(p["W1"]).max() <= H**-0.5
    assert np.abs(p["W2"]).max() <= M**-0.5
    np.testing.assert_array_equal(p["h1"], 0)
