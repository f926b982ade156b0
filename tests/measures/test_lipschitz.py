"""Bounds on what a network computes, and on how fast it can change."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import bound_propagation, lipschitz
from jaxwm.measures.bound_propagation import Interval, Layer
from jaxwm.nn import MLP


@functools.cache
def network(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        Layer(
            jnp.asarray(rng.normal(size=(i, o)) / i**0.5, jnp.float32),
            jnp.asarray(rng.normal(size=o) * 0.1, jnp.float32),
        )
        for i, o in itertools.pairwise(sizes)
    )


def hidden(layers, x, activation):
    """Pre-activations of a batch, in float64."""
    act = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}
    act["leaky_relu"] = lambda z: np.where(z > 0, z, 0.01 * z)
    found = []
    for layer in layers[:-1]:
        z = x @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias)
        found.append(z)
        x = act[activation](z)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_preactivations_of_every_sample_lie_in_their_intervals(activation):
    layers = network(4, 8, 8, 2)
    centre, eps = jnp.array([0.3, -1.0, 0.5, 0.0]), 0.4
    bounds = bound_propagation.crown_preactivation_bounds(
        layers, centre - eps, centre + eps, activation=activation
    )
    rng = np.random.default_rng(1)
    side = rng.uniform(-1, 1, (4000, 4))
    side[:2000] = np.sign(side[:2000])
    x = np.asarray(centre) + eps * side
    for z, bound in zip(hidden(layers, x, activation), bounds, strict=True):
        assert np.all(z >= bound.low)
        assert np.all(z <= bound.high)
    # The first layer is affine: its ends are reached.
    first = hidden(layers, x, activation)[0]
    np.testing.assert_allclose(first.max(0), bounds[0].high, rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_optimised_slopes_narrow_the_intervals_and_stay_sound():
    layers = network(4, 16, 16, 2)
    box = (-0.5 * jnp.ones(4), 0.5 * jnp.ones(4))
    plain, tight = (
        bound_propagation.crown_preactivation_bounds(layers, *box, slope_steps=steps)[1]
        for steps in (0, 20)
    )
    width = lambda z: float(jnp.sum(z.high - z.low))
    assert width(tight) < 0.98 * width(plain)
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 4))
    z = hidden(layers, x, "relu")[1]
    assert np.all((z >= tight.low) & (z <= tight.high))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.5, 2.0), (-2.0, -0.1)])
def test_the_chord_lies_above_relu_and_touches_its_ends(low, high):
    slope, shift = bound_propagation.chord(
        Interval(jnp.float32(low), jnp.float32(high))
    )
    z = np.linspace(low, high, 50)
    assert np.all(slope * z + shift >= np.maximum(z, 0) - 1e-6)
    for end in (low, high):
        np.testing.assert_allclose(slope * end + shift, max(end, 0), atol=1e-6)


def test_both_branches_are_allowed_at_the_kink():
    zero = Interval(jnp.zeros(1), jnp.zeros(1))
    slopes = bound_propagation.derivative_interval(zero, "relu")
    assert (slopes.low, slopes.high) == (0, 1)


def test_a_convolution_becomes_a_dense_layer():
    conv = nn.Conv(3, (3,), strides=(2,))
    params = conv.init(jax.random.key(0), jnp.zeros((8, 2)))
    params = jax.tree.map(lambda p: p + 0.1, params)
    apply = lambda x: conv.apply(params, x)
    layer = bound_propagation.affine_layer(apply, (8, 2))
    x = jax.random.normal(jax.random.key(1), (8, 2))
    np.testing.assert_allclose(
        x.ravel() @ layer.weight + layer.bias, apply(x).ravel(), rtol=1e-5, atol=1e-6
    )


def test_flax_networks_are_read_in_order_and_computed_alike():
    module = MLP((5, 4, 3))
    params = module.init(jax.random.key(0), jnp.zeros(2))
    layers = bound_propagation.dense_layers(params)
    x = jnp.array([0.3, -0.7])
    np.testing.assert_allclose(
        bound_propagation.apply(layers, x), module.apply(params, x), rtol=1e-5
    )


@pytest.mark.slow
def test_bounds_order_themselves_and_a_linear_map_meets_them():
    layers = network(4, 8, 8, 3)
    c = jnp.array([1.0, -0.5, 0.2])
    function = lambda x: bound_propagation.apply(layers, x) @ c
    few, many = (
        lipschitz.sampled_lipschitz(
            jax.random.key(0),
            function,
            jnp.ones(4),
            1.0,
            num_samples=64,
            ascent_steps=steps,
        )
        for steps in (0, 50)
    )
    assert 0 < few <= many <= lipschitz.global_lipschitz(layers, c)
    weight = jnp.array([[1.0, 2.0], [-3.0, 0.5]])
    positive = (Layer(jnp.abs(weight), jnp.zeros(2)),)
    np.testing.assert_allclose(
        lipschitz.global_lipschitz(positive, jnp.array([1.0, 1.0])), 6.5
    )


def test_the_spectral_product_covers_every_slope_and_power_iteration_stays_below():
    layers = network(4, 8, 3)
    x, y = np.random.default_rng(0).normal(size=(2, 500, 4)).astype(np.float32)
    apply = jax.vmap(lambda x: bound_propagation.apply(layers, x))
    slopes = np.linalg.norm(apply(x) - apply(y), axis=1) / np.linalg.norm(x - y, axis=1)
    assert slopes.max() <= lipschitz.spectral_lipschitz(layers) * (1 + 1e-5)
    weight, vector = layers[0].weight, jnp.ones(8)
    exact = lipschitz.spectral_norm(weight)
    np.testing.assert_allclose(exact, np.linalg.svd(weight)[1].max(), rtol=1e-5)
    estimates = []
    for _ in range(4):
        estimate, vector = lipschitz.power_iteration(weight, vector, 5)
        estimates.append(float(estimate))
    assert np.all(np.diff(estimates) > -1e-5)
    assert estimates[-1] <= exact * (1 + 1e-5)
    np.testing.assert_allclose(estimates[-1], exact, rtol=1e-2)


def test_networks_and_boxes_that_cannot_be_bounded_are_refused():
    layers = network(4, 8, 2)
    bounds = bound_propagation.crown_preactivation_bounds
    with pytest.raises(ValueError, match="low must not exceed high"):
        bounds(layers, jnp.ones(4), -jnp.ones(4))
    with pytest.raises(ValueError, match=r"must have shape \(4,\)"):
        bounds(layers, -jnp.ones(3), jnp.ones(3))
    with pytest.raises(NotImplementedError, match=r"activation must .*'gelu'"):
        bounds(layers, -jnp.ones(4), jnp.ones(4), activation="gelu")
    normalised = MLP((5, 3), layer_norm=True).init(jax.random.key(0), jnp.zeros(2))
    with pytest.raises(NotImplementedError, match="'LayerNorm_0'"):
        bound_propagation.dense_layers(normalised)
    with pytest.raises(ValueError, match="layer 0 holds NaN"):
        bound_propagation.check_layers([Layer(jnp.full((2, 2), jnp.nan), jnp.ones(2))])
    with pytest.raises(ValueError, match="layer 1 must read 8 values"):
        bound_propagation.check_layers([layers[0], layers[0]])
