"""How far an estimated directed graph is from the true one.

A graph is a boolean matrix, [i, j] true where j influences i. Columns beyond the rows
are sources that nothing influences (an action, an environment). Self edges never count:
the state of an object always influences its own next state.
Shapes: B graphs in front, N targets, M >= N tokens that may be parents.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class EdgeScores(NamedTuple):
    """Over all graphs and edges together, in [0, 1]; nothing found or true gives 1."""

    precision: Float[Array, ""]  # share of the found edges that are true
    recall: Float[Array, ""]  # share of the true edges that are found
    f1: Float[Array, ""]  # harmonic mean of both


def structural_hamming_distance(graph: Array, truth: Array) -> Float[Array, "*B"]:
    """Number of edges that differ, missing and superfluous ones, per graph.

    Args:
        graph: estimated, `[..., N, M]` bool.
        truth: of the same shape.

    Raises:
        ValueError: for matrices that are not boolean or whose shapes differ.
    """
    _check(graph, truth)
    return jnp.sum((graph != truth) & _other(truth), (-2, -1)).astype(jnp.float32)


def edge_scores(
    graph: Array, truth: Array, where: Bool[Array, "..."] | None = None
) -> EdgeScores:
    """Precision, recall and F1 of the edges that are neither self edges nor masked.

    Edges are rare, so a share of right entries would flatter the empty graph.

    Args:
        graph: estimated, `[..., N, M]` bool.
        truth: of the same shape.
        where: entries that count, broadcast against them; None: all.

    Raises:
        ValueError: for matrices that are not boolean or whose shapes differ.
    """
    _check(graph, truth)
    counts = _other(truth) if where is None else _other(truth) & where
    both, found, real = (
        jnp.sum(x & counts).astype(jnp.float32) for x in (graph & truth, graph, truth)
    )
    precision = jnp.where(found > 0, both / jnp.maximum(found, 1), 1.0)
    recall = jnp.where(real > 0, both / jnp.maximum(real, 1), 1.0)
    f1 = jnp.where(found + real > 0, 2 * both / jnp.maximum(found + real, 1), 1.0)
    return EdgeScores(precision, recall, f1)


def _other(truth: Array) -> Bool[Array, "N M"]:
    """Entries that are no self edges."""
    return ~jnp.eye(*truth.shape[-2:], dtype=bool)


def _check(graph: Array, truth: Array) -> None:
    for name, value in (("graph", graph), ("truth", truth)):
        if value.dtype != bool:
            raise ValueError(
                f"{name} must be a boolean matrix, got {value.dtype}; compare weights "
                "with a threshold first, as in `weights > 0.5`."
            )
    if graph.shape != truth.shape or graph.ndim < 2:
        raise ValueError(
            f"graph and truth must be matrices of one shape, got {graph.shape} and "
            f"{truth.shape}."
        )
