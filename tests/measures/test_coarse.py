"""Coarse-graining against closed forms."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import measures
from jaxwm.measures import coarse


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@functools.partial(jax.jit, static_argnames=("mode", "stacked"))
def grain(params, tau, delta, mode="balanced", stacked=False):
    cache = measures.svd_cache(params, stacked=stacked)
    return measures.coarse_grain(params, cache, tau, delta, mode)


@pytest.fixture
def matrix(key):
    return jax.random.normal(key, (12, 9))


def low_rank(key, rank=2, shape=(20, 16)):
    a, b = jax.random.split(key)
    left = jax.random.normal(a, (shape[0], rank))
    return left @ jax.random.normal(b, (rank, shape[1]))


def test_dense_weights_lie_within_half_a_bin(matrix):
    got = grain({"w": matrix, "b": matrix[0]}, 1.0, 0.25)
    for name, original in (("w", matrix), ("b", matrix[0])):
        assert jnp.max(jnp.abs(got.params[name] - original)) <= 0.125 + 1e-6
        bins = got.params[name] / 0.25
        np.testing.assert_array_equal(bins, jnp.round(bins))
    assert bool(got.ok)


@pytest.mark.parametrize("mode", ["balanced", "reference"])
def test_a_matrix_of_rank_two_is_stored_as_two_factors(key, mode):
    w = low_rank(key)
    got = grain(w, 0.9999, 0.05, mode)
    assert got.ranks.tolist() == [2]
    # Half a bin of one factor, times the largest entry of the other, twice.
    assert bool(got.ok) and jnp.max(jnp.abs(got.params - w)) < 0.05 * 16
    # Noise on every direction: the same threshold now needs the whole matrix.
    noisy = w + 0.1 * jax.random.normal(jax.random.fold_in(key, 1), w.shape)
    dense = grain(noisy, 0.9999, 0.05, mode)
    assert dense.ranks.tolist() == [16]
    assert got.bits < 0.5 * dense.bits


def test_the_singular_value_that_reaches_tau_is_kept():
    s = jnp.array([4.0, 3.0, 2.0, 1.0])
    kept = [int(coarse.kept_rank(s, tau)) for tau in (0.0, 0.39, 0.41, 0.69, 0.71, 1.0)]
    assert kept == [1, 1, 2, 2, 3, 4]


def test_entropy_of_four_equal_symbols_is_two_bits_each():
    q = jnp.tile(jnp.array([-1, 0, 1, 2]), 64)
    bits, ok = coarse.entropy_bits(q, jnp.ones(256, bool))
    table = 4 * (math.log2(2 * 2 + 2) + math.log2(256))
    assert bits == pytest.approx(512 + table + 64, rel=1e-5)
    assert bool(ok)


def test_integers_outside_the_mask_cost_nothing():
    q = jnp.array([1, 1, 700, -3])
    bits, ok = coarse.entropy_bits(q, jnp.array([True, True, False, False]))
    assert bits == pytest.approx(1 * (math.log2(4) + math.log2(2)) + 64)
    assert bool(ok)


def test_integers_too_large_for_the_grid_are_marked(matrix):
    assert not bool(grain(matrix, 1.0, 1e-4).ok)
    assert not bool(grain(matrix[0], 1.0, 1e-4).ok)
    assert bool(grain(matrix, 1.0, 0.1).ok)


def test_a_zero_matrix_stays_zero_and_costs_next_to_nothing():
    got = grain(jnp.zeros((30, 20)), 0.5, 0.1)
    assert bool(got.ok) and not got.params.any()
    assert got.bits < 100 and jnp.isfinite(got.bits)


def test_a_kernel_of_a_convolution_is_one_matrix(key):
    kernel = jax.random.normal(key, (3, 3, 4, 8))
    got, flat = grain(kernel, 0.6, 0.1), grain(kernel.reshape(36, 8), 0.6, 0.1)
    np.testing.assert_array_equal(got.params.reshape(36, 8), flat.params)
    assert got.params.shape == kernel.shape
    assert got.bits == flat.bits and got.ranks == flat.ranks


def test_stacked_layers_are_matrices_of_their_own(key):
    layers = jax.vmap(low_rank)(jax.random.split(key, 3))
    params = {"layers": layers, "head": layers[0]}
    got = grain(params, 0.9, 0.05, stacked=lambda name: name == "layers")
    apart = [grain(layer, 0.9, 0.05) for layer in layers]
    for i, one in enumerate(apart):
        np.testing.assert_allclose(got.params["layers"][i], one.params, atol=1e-5)
    ranks = [int(one.ranks[0]) for one in apart]
    assert got.ranks.tolist() == [ranks[0], *ranks]
    bits = sum(one.bits for one in apart) + apart[0].bits
    assert got.bits == pytest.approx(float(bits), rel=1e-5)


@pytest.mark.slow
def test_other_leaves_are_kept_and_counted(matrix):
    plain = grain({"w": matrix}, 1.0, 0.1)
    steps = jnp.arange(5, dtype=jnp.int32)
    params = {"w": matrix, "steps": steps, "act": jax.nn.relu, "none": None}
    got = measures.coarse_grain(params, measures.svd_cache(params), 1.0, 0.1)
    assert got.params["act"] is jax.nn.relu
    np.testing.assert_array_equal(got.params["steps"], steps)
    assert got.bits == plain.bits + 5 * 32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_structure_and_types_stay(matrix, dtype):
    params = [Layer(matrix.astype(dtype), jnp.float32(0.7)), (matrix[0],)]
    got = grain(params, 0.9, 0.125).params
    assert jax.tree.structure(got) == jax.tree.structure(params)
    for new, old in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


def test_a_module_of_flax_nnx_is_a_tree_like_any_other():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    got = grain(state, 1.0, 0.01)
    assert jax.tree.structure(got.params) == jax.tree.structure(state)
    assert got.ranks.shape == (1,)


@pytest.mark.slow
def test_jit_and_vmap_change_nothing(key):
    stack = jax.random.normal(key, (3, 10, 8))

    def bits_and_params(w, delta):
        got = grain({"w": w}, 0.4, delta)
        return got.bits, got.params["w"]

    batched = jax.jit(jax.vmap(bits_and_params, (0, None)))(stack, 0.07)
    for i, w in enumerate(stack):
        with jax.disable_jit(i == 0):
            bits, new = bits_and_params(w, 0.07)
        assert batched[0][i] == pytest.approx(float(bits), rel=1e-5)
        np.testing.assert_allclose(batched[1][i], new, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 0.1), r"tau must lie in \[0, 1\], got -0.1"),
        ((1.5, 0.1), "tau"),
        ((float("nan"), 0.1), "tau"),
        ((0.5, 0.0), "delta must be above 0, got 0.0"),
        ((0.5, -1), "delta"),
        ((0.5, float("nan")), "delta"),
        ((0.5, 0.1, "other"), 'mode must be "balanced" or "reference"'),
    ],
)
def test_thresholds_and_bins_out_of_range_are_refused(matrix, arguments, message):
    with pytest.raises(ValueError, match=message):
        measures.coarse_grain(matrix, measures.svd_cache(matrix), *arguments)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_weights_that_are_not_finite_are_refused(matrix, value):
    with pytest.raises(ValueError, match=r"params\[a/w\] must be finite"):
        measures.svd_cache({"a": {"w": matrix.at[2, 3].set(value)}})


@pytest.mark.parametrize("params", [{}, None, {"n": np.arange(3)}, np.zeros((0, 4))])
def test_a_tree_without_weights_is_refused(params):
    with pytest.raises(ValueError, match="must hold floating-point arrays"):
        measures.svd_cache(params)


def test_a_cache_of_another_tree_is_refused(matrix):
    with pytest.raises(ValueError, match="cache must be svd_cache"):
        measures.coarse_grain({"w": matrix}, (None, None), 0.5, 0.1)
