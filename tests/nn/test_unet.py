"""The U-shaped network: scale, size, dimension, and its convolution."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn
from jaxwm.nn.unet import Filter

pytestmark = pytest.mark.slow  # compiles for long; nothing is built on it yet


def test_scaling_the_input_scales_the_output():
    network = nn.ResidualUNet(4, 2)
    x = jax.random.normal(jax.random.key(1), (8, 8))
    params = network.init(jax.random.key(0), x)
    out = network.apply(params, x)
    np.testing.assert_allclose(network.apply(params, 3 * x), 3 * out, rtol=1e-4)
    np.testing.assert_array_equal(network.apply(params, 0 * x), 0)


def test_weights_of_one_grid_serve_another():
    network = nn.ResidualUNet(4, 2)
    params = network.init(jax.random.key(0), jnp.zeros((4, 4)))
    assert network.apply(params, jnp.ones((8, 16))).shape == (8, 16)
    space = network.init(jax.random.key(0), jnp.zeros((4, 4, 4)))
    assert network.apply(space, jnp.ones((4, 8, 4))).shape == (4, 8, 4)


def test_the_filter_is_the_convolution_of_flax():
    x = jax.random.normal(jax.random.key(1), (6, 5, 2))
    layer = Filter(3)
    params = layer.init(jax.random.key(0), x)
    kernel = params["params"]["kernel"].reshape(3, 3, 2, 3)
    conv = flax.linen.Conv(3, (3, 3), use_bias=False)
    expected = conv.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(layer.apply(params, x), expected, atol=1e-5)


def test_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"divisible by 8, got \(12, 12\)"):
        nn.ResidualUNet(4, 4).init(jax.random.key(0), jnp.zeros((12, 12)))
