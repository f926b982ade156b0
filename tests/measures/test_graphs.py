"""Distances and scores of graphs, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import graphs

TRUTH = jnp.array([[1, 1, 0], [0, 1, 1]], bool)  # 1 -> 0, and a source -> 1


def test_the_distance_counts_missing_and_superfluous_edges_but_no_self_edges():
    found = jnp.array([[0, 0, 1], [0, 0, 1]], bool)  # one missing, one too many
    assert graphs.structural_hamming_distance(found, TRUTH) == 2
    assert graphs.structural_hamming_distance(TRUTH, TRUTH) == 0
    both = jnp.stack([found, TRUTH])
    truth = jnp.stack([TRUTH, TRUTH])
    np.testing.assert_array_equal(
        graphs.structural_hamming_distance(both, truth), [2, 0]
    )


def test_precision_recall_and_f1_by_hand():
    found = jnp.array([[1, 1, 1], [1, 1, 0]], bool)  # right 1, wrong 2, missing 1
    scores = graphs.edge_scores(found, TRUTH)
    np.testing.assert_allclose(scores, [1 / 3, 1 / 2, 2 / 5], rtol=1e-6)
    sources = graphs.edge_scores(found, TRUTH, jnp.array([False, False, True]))
    np.testing.assert_allclose(sources, [0, 0, 0])
    objects = graphs.edge_scores(found, TRUTH, jnp.array([True, True, False]))
    np.testing.assert_allclose(objects, [1 / 2, 1, 2 / 3], rtol=1e-6)


def test_the_empty_graph_is_precise_and_finds_nothing():
    scores = graphs.edge_scores(jnp.zeros_like(TRUTH), TRUTH)
    np.testing.assert_array_equal(scores, [1, 0, 0])
    nothing = jnp.zeros((2, 3), bool)
    np.testing.assert_array_equal(graphs.edge_scores(nothing, nothing), [1, 1, 1])


def test_weights_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="graph must be a boolean matrix, got float32"):
        graphs.structural_hamming_distance(jnp.ones((2, 3)), TRUTH)
    with pytest.raises(ValueError, match="truth must be a boolean matrix, got int32"):
        graphs.edge_scores(TRUTH, TRUTH.astype(jnp.int32))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(3, 2\)"):
        graphs.structural_hamming_distance(TRUTH, TRUTH.T)
