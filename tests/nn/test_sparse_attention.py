"""Edges that are drawn, the paths they make, and what flows along them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn

N, S, E = 3, 2, 8


@functools.cache
def network(**options):
    """A small network with its parameters, compiled."""
    module = nn.SparseTransformer(hidden=8, **options)
    params = module.init(jax.random.key(0), jnp.zeros((N, E)), jnp.zeros((S, E)))
    return params, jax.jit(module.apply)


def tokens():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(N + S, E)).astype(np.float32)
    return x[:N], x[N:]


def test_an_edge_is_on_as_often_as_its_log_odds_say(key):
    logits = jnp.broadcast_to(jnp.array([-2.0, 0.0, 1.0]), (20_000, 3))[:, None]
    for temperature in (0.5, 1.0):
        key, draw_key = jax.random.split(key)
        edges = nn.sample_edges(draw_key, logits, temperature)
        # The straight-through form leaves rounding of 1e-7 on zeros and ones.
        np.testing.assert_allclose(edges, np.round(edges), atol=1e-6)
        share = jax.nn.sigmoid(logits[0, 0])
        np.testing.assert_allclose(edges.mean((0, 1)), share, atol=0.015)


def test_an_edge_has_the_slope_of_its_relaxation():
    logits = jnp.array([[-1.0, 0.5, 3.0]])
    slope = jax.grad(lambda e: jnp.sum(nn.sample_edges(None, e, 2.0)))(logits)
    p = jax.nn.sigmoid(logits / 2)
    np.testing.assert_allclose(slope, p * (1 - p) / 2, rtol=1e-5)
    np.testing.assert_allclose(nn.sample_edges(None, logits), [[0, 1, 1]], atol=1e-6)


def test_a_chain_over_two_layers_is_a_path_that_no_layer_has():
    """k -> j in the first layer and j -> i in the second make i depend on k."""
    i, j, k = 0, 1, 2
    edges = np.zeros((2, 3, 3), np.float32)
    edges[0, j, k] = edges[1, i, j] = 1
    paths = nn.path_matrix(jnp.asarray(edges))
    expected = np.eye(3)
    expected[j, k] = expected[i, j] = expected[i, k] = 1
    np.testing.assert_array_equal(paths, expected)
    # In the other order nothing arrives: j has passed on before it has heard.
    turned = nn.path_matrix(jnp.asarray(edges[::-1]))
    assert turned[i, k] == 0


def test_paths_are_the_product_of_the_layers_also_with_sources():
    draw = np.random.default_rng(1)
    edges = draw.integers(0, 2, (3, N, N + S)).astype(np.float32)
    square = np.zeros((3, N + S, N + S))
    square[:, :N] = edges
    product = np.eye(N + S)
    for layer in square:
        product = (layer + np.eye(N + S)) @ product
    np.testing.assert_array_equal(nn.path_matrix(jnp.asarray(edges)), product[:N])


def test_self_paths_are_free():
    paths = jnp.array([[5.0, 1.0, 0.0], [2.0, 7.0, 3.0]])
    np.testing.assert_allclose(nn.path_penalty(paths, lambda x: x), 6.0)
    np.testing.assert_allclose(nn.path_penalty(paths), np.log([2, 1, 3, 4]).sum(), 1e-5)
    np.testing.assert_allclose(nn.path_penalty(paths, lambda x: jnp.minimum(x, 1)), 3.0)


@pytest.mark.parametrize("heads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_where_no_path_leads_no_value_flows(heads):
    """Values of an edge that is off do not arrive; only scores are shared."""
    params, apply = network(num_heads=heads)
    targets, sources = tokens()
    # Every edge off: predictions are those of the targets alone.
    off, _ = network(num_heads=heads, bias=-1e4)[1](params, targets, sources)
    moved, edges = network(num_heads=heads, bias=-1e4)[1](
        params, targets, sources + 1.0
    )
    np.testing.assert_array_equal(off, moved)
    np.testing.assert_allclose(edges, 0, atol=1e-6)
    on, edges = apply(params, targets, sources)
    assert not np.allclose(on, off)
    assert edges.shape == (2, N, N + S)


def test_each_edge_probability_gets_a_gradient_from_the_prediction():
    """Masks filled into the scores would leave none where the edge is off."""
    params, apply = network()

    def out(params):
        return jnp.sum(apply(params, *tokens(), jax.random.key(1))[0] ** 2)

    grads = jax.grad(out)(params)["params"]
    for name in ("query_0", "key_0", "query_1", "key_1"):
        assert np.all(np.any(np.asarray(grads[name]["kernel"]) != 0, 0))


def test_absent_tokens_are_not_read():
    params, apply = network()
    targets, sources = tokens()
    present = jnp.array([True, False, True, True, False])
    out, edges = apply(params, targets, sources, None, present)
    other_targets = targets + np.array([0, 1, 0])[:, None]
    other, _ = apply(params, other_targets, sources + [[0], [2]], None, present)
    np.testing.assert_allclose(out[jnp.array([0, 2])], other[jnp.array([0, 2])])
    assert np.all(np.abs(edges[:, :, np.array([1, 4])]) < 1e-6)


def test_dense_weights_sum_to_one_and_keys_change_only_what_is_sampled():
    targets, sources = tokens()
    params, dense = network(sparse=False)
    _, weights = dense(params, targets, sources)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    _, apply = network()
    a, b = (apply(params, targets, sources, jax.random.key(i))[1] for i in range(2))
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(*(apply(params, targets, sources)[1] for _ in "ab"))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        nn.sample_edges(None, jnp.zeros((1, 1)), 0.0)
    with pytest.raises(ValueError, match="at least as many columns"):
        nn.path_matrix(jnp.zeros((1, 3, 2)))
    with pytest.raises(ValueError, match=r"num_heads must divide .* 8, got 3"):
        nn.SparseTransformer(num_heads=3).init(
            jax.random.key(0), jnp.zeros((N, E)), jnp.zeros((S, E))
        )
