"""The convolutional encoder."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn
from jaxwm.nn.conv import ConvEncoder, PatchConv


def test_features_of_an_image_do_not_depend_on_the_batch(key):
    image_key, net_key = jax.random.split(key)
    network = ConvEncoder((4, 6), (2, 1))
    images = jax.random.normal(image_key, (3, 8, 8, 1))
    params = network.init(net_key, images[0])
    one = network.apply(params, images[1])
    assert one.shape == (6,)
    np.testing.assert_allclose(network.apply(params, images)[1], one, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_patches_times_weights_are_a_convolution(key, size, stride):
    image = jax.random.normal(key, (2, size, size + 1, 3))
    ours = PatchConv(4, stride)
    params = ours.init(jax.random.key(0), image)
    reference = flax.linen.Conv(4, (3, 3), (stride, stride))
    np.testing.assert_allclose(
        ours.apply(params, image), reference.apply(params, image), atol=1e-5
    )


def test_without_a_stride_a_shifted_pattern_has_the_same_features(key):
    network = ConvEncoder((4, 4), (1, 1))
    image = jnp.zeros((12, 12, 1)).at[4:6, 4:6].set(1.0)
    params = network.init(key, image)
    moved = network.apply(params, jnp.roll(image, 2, 0))
    np.testing.assert_allclose(moved, network.apply(params, image), atol=1e-6)


def test_weights_start_with_the_variance_of_the_fan_out(key):
    params = ConvEncoder((64, 32), (1, 1)).init(key, jnp.zeros((4, 4, 1)))
    kernel = params["params"]["PatchConv_1"]["kernel"]
    np.testing.assert_allclose(jnp.var(kernel), 2 / (9 * 32), rtol=0.1)


def test_strides_must_match_the_layers(key):
    with pytest.raises(ValueError, match="strides must be one per layer"):
        nn.ConvEncoder((4, 4), (1,)).init(key, jnp.zeros((4, 4, 1)))
