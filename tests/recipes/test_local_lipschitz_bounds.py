"""The certified constant covers every gradient, and is exact where it must be."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import bound_propagation
from jaxwm.measures.bound_propagation import Interval
from jaxwm.recipes import local_lipschitz_bounds as recipe
from jaxwm.recipes.local_lipschitz_bounds import (
    TINY,
    Config,
    clarke_gradient_bounds,
    local_lipschitz_bab,
    local_lipschitz_bounds,
    random_network,
)

X = jax.random.normal(jax.random.key(3), (6,))
C = jnp.array([1.0, 0.0, -0.5])
EPS = 0.3


@functools.cache
def network(*hidden, seed=0):
    return random_network(jax.random.key(seed), (6, *hidden, 3))


@functools.cache
def bounder(method, activation="relu"):
    options = {"method": method, "activation": activation}
    return jax.jit(
        lambda layers, x, eps: local_lipschitz_bounds(layers, x, eps, C, **options)
    )


def gradients(layers, eps, activation, num=4000):
    """l_1 norms at points of the box, half of them corners."""
    side = np.random.default_rng(0).uniform(-1, 1, (num, 6))
    side[::2] = np.sign(side[::2])
    points = jnp.asarray(X + eps * side, jnp.float32)
    function = lambda x: bound_propagation.apply(layers, x, activation) @ C
    return np.asarray(jax.jit(jax.vmap(jax.grad(function)))(points))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_it_covers_every_gradient_and_beats_its_rivals(activation):
    for seed in range(4):
        layers = network(8, 8, seed=seed)
        found = np.abs(gradients(layers, EPS, activation)).sum(1).max()
        linear, interval, global_ = (
            bounder(method, activation)(layers, X, EPS)
            for method in ("linear", "interval", "global")
        )
        assert found <= linear <= interval <= global_


def test_it_is_the_gradient_where_no_unit_is_unstable():
    layers = network(8, 8)
    gradient = jax.grad(lambda x: bound_propagation.apply(layers, x) @ C)(X)
    for method in ("linear", "interval"):
        np.testing.assert_allclose(
            bounder(method)(layers, X, 1e-7), jnp.sum(jnp.abs(gradient)), rtol=1e-4
        )


def test_input_gradients_lie_in_their_intervals_so_signs_certify_monotonicity():
    layers = network(8, 8)

    @jax.jit
    def bound(x):
        z = bound_propagation.crown_preactivation_bounds(layers, x - EPS, x + EPS)
        slopes = [bound_propagation.derivative_interval(z) for z in z]
        return clarke_gradient_bounds(layers, slopes, C)[0]

    g = bound(X)
    found = gradients(layers, EPS, "relu")
    assert np.all(found >= g.low - 1e-5)
    assert np.all(found <= g.high + 1e-5)
    is_monotone = (g.low >= 0) | (g.high <= 0)
    assert np.any(is_monotone)  # else the test says nothing
    signs = np.sign(found[:, is_monotone])
    assert np.all(signs == signs[0])


def test_the_lines_hold_every_product():
    rng = np.random.default_rng(0)
    low, d_low = rng.uniform(-2, 2, 200), rng.uniform(0, 0.6, 200)
    g = Interval(jnp.asarray(low), jnp.asarray(low + rng.uniform(0, 2, 200)))
    d = Interval(jnp.asarray(d_low), jnp.asarray(d_low + rng.uniform(0, 0.4, 200)))
    lines = recipe._product_lines(d, g)
    for at_d, at_g in itertools.product((0, 0.5, 1), repeat=2):
        x = g.low + at_g * (g.high - g.low)
        v = x * (d.low + at_d * (d.high - d.low))
        assert np.all(lines.low_slope * x + lines.low_shift <= v + 1e-6)
        assert np.all(lines.high_slope * x + lines.high_shift >= v - 1e-6)


def test_branching_to_the_end_equals_every_pattern_of_unstable_units():
    layers = network(8)
    hidden = bound_propagation.crown_preactivation_bounds(layers, X - EPS, X + EPS)[0]
    slope = bound_propagation.derivative_interval(hidden)
    unstable = np.flatnonzero(slope.high > slope.low)
    assert 2 <= unstable.size <= 7
    patterns = np.tile(slope.low, (2**unstable.size, 1))
    patterns[:, unstable] = list(itertools.product((0, 1), repeat=unstable.size))
    row = np.asarray(layers[1].weight @ C)
    exact = np.abs((patterns * row) @ np.asarray(layers[0].weight).T).sum(1).max()
    bound, history = jax.jit(
        lambda x: local_lipschitz_bab(layers, x, EPS, C, rounds=32, batch=4)
    )(X)
    np.testing.assert_allclose(bound, exact, rtol=1e-4)
    assert np.abs(gradients(layers, EPS, "relu")).sum(1).max() <= bound
    assert bound < 0.999 * bounder("linear")(layers, X, EPS)
    assert np.all(np.diff(history) <= 0)


def test_a_batch_of_boxes_equals_a_loop():
    layers = network(8, 8)
    x = jax.random.normal(jax.random.key(0), (16, 6))
    one = bounder("linear")
    batch = jax.jit(jax.vmap(lambda x: local_lipschitz_bounds(layers, x, EPS, C)))(x)
    np.testing.assert_allclose(batch, [one(layers, xi, EPS) for xi in x], rtol=1e-5)


def test_all_outputs_give_the_largest_of_them():
    layers = network(8)
    bound = jax.jit(lambda c: local_lipschitz_bounds(layers, X, EPS, c))
    each = [bound(row) for row in jnp.eye(3)]
    largest = jax.jit(lambda x: local_lipschitz_bounds(layers, x, EPS))(X)
    np.testing.assert_allclose(largest, max(each), rtol=1e-5)


@pytest.mark.slow
def test_the_experiment_measures_what_its_claim_reads(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["coverage"] >= 1
    assert metrics["linear/interval/worst"] <= 1
    assert metrics["branched/linear/worst"] <= 1


def test_what_cannot_be_bounded_is_refused():
    layers = network(8)
    with pytest.raises(ValueError, match="eps must be at least 0, got -1"):
        local_lipschitz_bounds(layers, X, -1.0, C)
    with pytest.raises(ValueError, match=r'method must be .* got "?\'exact\''):
        local_lipschitz_bounds(layers, X, EPS, C, method="exact")
    with pytest.raises(ValueError, match=r"c must have shape \(3,\)"):
        local_lipschitz_bounds(layers, X, EPS, jnp.ones(2))
    with pytest.raises(ValueError, match="must hold a hidden layer"):
        local_lipschitz_bounds(layers[:1], X, EPS)
    with pytest.raises(ValueError, match="must be piecewise linear"):
        local_lipschitz_bab(layers, X, EPS, C, activation="tanh")
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        Config(rounds=0)
    with pytest.raises(ValueError, match="networks must be pairs"):
        dataclasses.replace(TINY, networks=(((), (0.1,)),))
