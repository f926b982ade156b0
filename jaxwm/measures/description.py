"""What a network is worth as a code of its data, and what that says about new data.

Lengths are in bits, losses in nats. Functions take numbers or arrays.

Source: total description length after DeMoss et al., "The Complexity Dynamics of
Grokking", 2024; prequential code of Blier and Ollivier, "The Description Length of
Deep Learning Models", NeurIPS 2018; the bound is the finite-hypothesis bound with the
prior 2^-K of a prefix-free code (Occam's razor bound).
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxwm.types import PyTree


class Bound(NamedTuple):
    """An upper bound of the error on new data."""

    value: Float[Array, "..."]  # not clipped
    vacuous: Bool[Array, "..."]  # whether it says nothing: 1 or above


class Prequential(NamedTuple):
    """Code length of a sequence of blocks."""

    bits: Float[Array, ""]
    block_bits: Float[Array, " B"]
    sizes: tuple[int, ...]  # examples of every block


def description_length(
    bits: Float[Array, "..."] | float, nll_sum: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """Bits of a network and of its data given the network: `C + NLL / ln 2`.

    Args:
        bits: size of the network, e.g. `complexity(...).bits`.
        nll_sum: summed negative log-likelihood of the data, nats, under the network
            that those bits describe (the coarse-grained one).
    """
    return jnp.asarray(bits) + jnp.asarray(nll_sum) / math.log(2)


def naive_length(num_examples: int, num_classes: int) -> float:
    """Bits of labels without any model, `n log2 p`.

    Raises:
        ValueError: for fewer than one class or a negative number of examples.
    """
    if num_classes < 1 or num_examples < 0:
        raise ValueError(
            "num_examples must be at least 0 and num_classes at least 1, got "
            f"{num_examples} and {num_classes}."
        )
    return num_examples * math.log2(num_classes)


def generalisation_bound(
    error: Float[Array, "..."] | float,
    bits: Float[Array, "..."] | float,
    num_examples: int,
    delta: float = 0.05,
) -> Bound:
    """Error on new data of a network that compresses to `bits`.

        R <= R^ + sqrt((K ln 2 + ln(1 / delta)) / (2 n)),   K = C + 2 log2 C

    with probability 1 - delta over the n training examples, where K is the length of a
    prefix-free code (C preceded by its own length).

    Args:
        error: of the compressed network on its training data, in [0, 1] (0-1 error).
        bits: C, at least 1.
        num_examples: n, drawn independently.
        delta: probability with which the bound may fail, in (0, 1).

    Returns:
        The bound, and whether it is vacuous. A small network of 23 kbit on 1392
        examples has 2.4 and more: most bounds of this kind are.

    Raises:
        ValueError: for `num_examples` below 1 or `delta` outside (0, 1).
    """
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}.")
    if not 0 < delta < 1:
        raise ValueError(
            f"delta must be in (0, 1), got {delta}; it is the probability of failure."
        )
    bits = jnp.maximum(jnp.asarray(bits, jnp.float32), 1.0)
    prefix_free = bits + 2 * jnp.log2(bits)
    nats = prefix_free * math.log(2) + math.log(1 / delta)
    value = jnp.asarray(error) + jnp.sqrt(nats / (2 * num_examples))
    return Bound(value, value >= 1)


def prequential_length(
    key: Key[Array, ""],
    fit: Callable,
    nll_sum: Callable,
    data: PyTree,
    *,
    num_classes: int,
    num_blocks: int = 7,
) -> Prequential:
    """Bits of labels when each block is coded by a network trained on all before it.

    The network itself is never sent: the receiver trains it too. Blocks end at
    n / 2^(B-1), ..., n / 4, n / 2, n; labels of the first cost log2 of the number of
    classes each.

    Args:
        key: folded with the block's index for `fit`.
        fit: `(key, examples) -> params`; trained anew on every prefix, whose sizes are
            Python numbers, so that each is its own compilation.
        nll_sum: `(params, examples) -> nats`, summed over the examples. A network too
            sure of itself makes this huge, which is what it costs.
        data: examples `[n, ...]` in the order they are coded in; shuffled beforehand.
        num_classes: of a label.
        num_blocks: B, at least 1; 7 starts from n / 64.

    Raises:
        ValueError: if the first block would be empty.
    """
    num = jax.tree.leaves(data)[0].shape[0]
    ends = [num >> i for i in reversed(range(num_blocks))]
    if num_blocks < 1 or ends[0] < 1:
        raise ValueError(
            f"num_blocks must be at least 1 and at most {num.bit_length()}, got "
            f"{num_blocks}: the first block of {num} examples would be empty."
        )
    sizes = [ends[0], *(b - a for a, b in itertools.pairwise(ends))]
    bits = [jnp.asarray(naive_length(sizes[0], num_classes), jnp.float32)]
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        before, block = (
            jax.tree.map(lambda x, part=part: x[part], data)
            for part in (slice(0, start), slice(start, end))
        )
        params = fit(jax.random.fold_in(key, i), before)
        bits.append(nll_sum(params, block) / math.log(2))
    block_bits = jnp.stack(bits)
    return Prequential(jnp.sum(block_bits), block_bits, tuple(sizes))
