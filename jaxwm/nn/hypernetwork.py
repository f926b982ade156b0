"""Networks whose weights another network makes, all at once or in chunks.

    W = S * H_theta(e)                                 whole: one output per weight
    W = S * [H_theta(e, c_1), H_theta(e, c_2), ...]    chunked: c_i learnt, for all e

H is a multi-layer perceptron, e the embedding of a task, S a fixed scale per weight: a
kernel of fan-in n gets 1 / sqrt(n), everything else 0.1, so that with outputs of order
one the network that is made starts like one drawn at random. Layers that read
hyperparameters, but own their weights, are in `nn.hyper`.

Source: Ha, Dai and Le, "HyperNetworks", ICLR 2017; chunks and embeddings of tasks: von
Oswald et al., "Continual Learning with Hypernetworks", ICLR 2020.
Shapes: E embedding, W weights of the network that is made, C chunk.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxwm.nn.mlp import MLP
from jaxwm.types import Params, PyTree

_CHUNK_EMBEDDING = 8


class Hypernetwork(NamedTuple):
    """Pure functions of a hypernetwork.

    init:     (key) -> theta
    flat:     (theta, e [E]) -> weights [W], in the order of `jax.tree.leaves`
    generate: (theta, e [E]) -> weights as the tree that was asked for
    """

    num_weights: int  # W
    init: Callable
    flat: Callable
    generate: Callable


def hypernetwork(
    target: PyTree,
    embedding_size: int,
    hidden: tuple[int, ...] = (50, 50),
    *,
    activation: str | Callable = "elu",
    chunk: int | None = None,
) -> Hypernetwork:
    """Builds the hypernetwork of a tree of weights.

    Args:
        target: arrays or `jax.ShapeDtypeStruct`s, as of `network.init`; only shapes and
            types are read.
        embedding_size: E.
        hidden: units of H's hidden layers.
        activation: of H.
        chunk: C, weights made in one piece; None makes all in one piece.

    Raises:
        ValueError: for a target without weights, or sizes below 1.
    """
    leaves, structure = jax.tree.flatten(target)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    total = sum(sizes)
    if not total:
        raise ValueError(
            "target must hold at least one weight, got none; give the tree that "
            "`network.init` returns."
        )
    if embedding_size < 1:
        raise ValueError(f"embedding_size must be at least 1, got {embedding_size}.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 weight or None, got {chunk}.")
    scale = np.concatenate(
        [
            np.full(size, _scale(leaf.shape))
            for leaf, size in zip(leaves, sizes, strict=True)
        ]
    ).astype(np.float32)
    num_chunks = 1 if chunk is None else math.ceil(total / chunk)
    network = MLP(
        (*hidden, total if chunk is None else chunk),
        activation,
        last_init=nn.initializers.lecun_normal(),
    )

    def init(key: Key[Array, ""]) -> Params:
        network_key, chunk_key = jax.random.split(key)
        if chunk is None:
            return {"network": network.init(network_key, jnp.zeros(embedding_size))}
        chunks = jax.random.normal(chunk_key, (num_chunks, _CHUNK_EMBEDDING))
        example = jnp.zeros(embedding_size + _CHUNK_EMBEDDING)
        return {"network": network.init(network_key, example), "chunks": chunks}

    def flat(theta: Params, embedding: Float[Array, " E"]) -> Float[Array, " W"]:
        if embedding.shape != (embedding_size,):
            raise ValueError(
                f"embedding must have shape ({embedding_size},), got "
                f"{embedding.shape}; `jax.vmap` adds the tasks."
            )
        if chunk is None:
            raw = network.apply(theta["network"], embedding)
        else:
            inputs = jax.vmap(lambda c: jnp.concatenate([embedding, c]))(
                theta["chunks"]
            )
            raw = network.apply(theta["network"], inputs).reshape(-1)[:total]
        return scale * raw

    def generate(theta: Params, embedding: Float[Array, " E"]) -> PyTree:
        return unflatten(flat(theta, embedding))

    def unflatten(weights: Float[Array, " W"]) -> PyTree:
        pieces = jnp.split(weights, np.cumsum(sizes)[:-1])
        shaped = [
            piece.reshape(leaf.shape).astype(leaf.dtype)
            for piece, leaf in zip(pieces, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, shaped)

    return Hypernetwork(total, init, flat, generate)


def _scale(shape: tuple[int, ...]) -> float:
    return 1 / math.sqrt(math.prod(shape[:-1])) if len(shape) > 1 else 0.1
