"""Message passing: equivariance, padding, edges."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn

N, F = 4, 3


def network_and_params():
    network = nn.MessagePassing(8, 2)
    nodes = jnp.zeros((N, F))
    params = network.init(jax.random.key(0), nodes, jnp.ones((N, N)), jnp.ones(N))
    # Biases start at zero; with them a wrong mask would show.
    bias = lambda path, x: x + 0.3 if "bias" in jax.tree_util.keystr(path) else x
    return network, jax.tree_util.tree_map_with_path(bias, params)


def test_permuting_nodes_permutes_the_output():
    network, params = network_and_params()
    nodes = jax.random.normal(jax.random.key(1), (N, F))
    edges = jax.random.uniform(jax.random.key(2), (N, N))
    order = jnp.array([2, 0, 3, 1])
    out = network.apply(params, nodes, edges, jnp.ones(N))
    moved = network.apply(params, nodes[order], edges[order][:, order], jnp.ones(N))
    np.testing.assert_allclose(moved, out[order], atol=1e-5)


def test_padding_changes_nothing_and_comes_out_as_zero():
    network, params = network_and_params()
    nodes = jax.random.normal(jax.random.key(1), (2, F))
    small = network.apply(params, nodes, jnp.ones((2, 2)), jnp.ones(2))
    junk = jnp.concatenate([nodes, jnp.full((2, F), 7.0)])
    mask = jnp.array([1.0, 1.0, 0.0, 0.0])
    padded = network.apply(params, junk, jnp.ones((N, N)), mask)
    np.testing.assert_allclose(padded[:2], small, atol=1e-5)
    np.testing.assert_array_equal(padded[2:], 0)


@pytest.mark.slow
def test_a_node_sees_its_neighbours_alone():
    network, params = network_and_params()
    nodes = jax.random.normal(jax.random.key(1), (N, F))
    edges = jnp.eye(N).at[0, 1].set(1.0)  # from 1 to 0

    def first(nodes):
        return network.apply(params, nodes, edges, jnp.ones(N))[0].sum()

    reach = np.abs(jax.grad(first)(nodes)).sum(1)
    assert (reach[:2] > 0).all()
    np.testing.assert_array_equal(reach[2:], 0)


def test_it_is_a_flax_module():
    assert issubclass(nn.MessagePassing, flax.linen.Module)
