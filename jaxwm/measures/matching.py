"""How well found groups stand for true ones when their names mean nothing.

Shapes: B samples, K found groups, C true groups.
"""

import itertools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_MOST_MATCHINGS = 50_000


def counts(
    found: Int[Array, " B"],
    truth: Int[Array, " B"],
    num_found: int,
    num_true: int,
    weight: Float[Array, " B"] | None = None,
) -> Float[Array, "C K"]:
    """Number of samples, or their summed weights, by (true group, found group)."""
    weight = jnp.ones(found.shape) if weight is None else weight
    cell = truth * num_found + found
    total = jnp.zeros(num_true * num_found).at[cell].add(weight)
    return total.reshape(num_true, num_found)


def matched_accuracy(table: Float[Array, "C K"]) -> Float[Array, ""]:
    """Share of samples in their group under the best one-to-one naming.

        max over injective maps π of  sum_c table[c, π(c)] / sum table

    All maps are tried; where there are more true groups than found ones, some true
    groups stay unnamed. Of an empty table it is 0.

    Args:
        table: of `counts`.

    Raises:
        ValueError: for so many groups that there are more than 50 000 maps.
    """
    if table.shape[0] > table.shape[1]:
        table = table.T
    few, many = table.shape
    number = int(np.prod(np.arange(many - few + 1, many + 1, dtype=float)))
    if number > _MOST_MATCHINGS:
        raise ValueError(
            f"table must have few groups, {few} x {many} have {number} matchings; "
            "merge groups first."
        )
    maps = np.array(list(itertools.permutations(range(many), few)))  # [P, few]
    hits = jnp.sum(table[np.arange(few), maps], 1)
    return jnp.max(hits) / jnp.maximum(jnp.sum(table), 1e-12)


def normalised_mutual_information(table: Float[Array, "C K"]) -> Float[Array, ""]:
    """`2 I(found; true) / (H(found) + H(true))`, in [0, 1]; 0 where both are constant.

    Unlike the matched accuracy it forgives a true group split among several found ones.

    Args:
        table: of `counts`.
    """
    joint = table / jnp.maximum(jnp.sum(table), 1e-12)

    def entropy(p):
        return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))

    rows, columns = entropy(joint.sum(1)), entropy(joint.sum(0))
    mutual = rows + columns - entropy(joint)
    return 2 * mutual / jnp.maximum(rows + columns, 1e-12)
