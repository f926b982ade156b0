"""Attention over sampled 0/1 edges, and the algebra of the paths they make.

    e_ij = q_i . k_j / sqrt(K) + bias,   A_ij ~ Bernoulli(sigmoid(e_ij))
    h_i <- h_i + sum_j softmax_j(e_ij) A_ij v_j,   then a residual MLP

The edges multiply the softmax after it is taken and nothing is normalised anew: filling
scores with -inf instead would cut the edges' probabilities off from the prediction's
gradient. An edge that is off passes no value, but the score of its token still counts
in the normalisation.

Source: Lei, Schölkopf and Posner, "SPARTAN: A Sparse Transformer World Model Attending
to What Matters", NeurIPS 2025.
Departs: besides the tokens that are predicted (targets) there may be tokens that are
only read (sources: an action, an environment); nothing in a step can change those.
Shapes: N targets, S sources, M = N + S, E embedding, K head size, L layers.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key


def sample_edges(
    key: Key[Array, ""] | None,
    logits: Float[Array, "*B N M"],
    temperature: float = 1.0,
) -> Float[Array, "*B N M"]:
    """Edges 0 or 1 with the gradient of a relaxation (straight-through).

        y = sigmoid((e + log u - log(1 - u)) / temperature),   A = 1[y > 1/2]

    and dA/de = dy/de. Without a key the likelier value, A = 1[e > 0], is read out.

    Args:
        key: of the uniform numbers u; None draws nothing.
        logits: log-odds e of the edges.
        temperature: of the relaxation; the probability of an edge does not depend on
            it.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    if key is None:
        noise = jnp.zeros_like(logits)
    else:
        u = jax.random.uniform(key, logits.shape, logits.dtype, 1e-6, 1 - 1e-6)
        noise = jnp.log(u) - jnp.log1p(-u)
    soft = jax.nn.sigmoid((logits + noise) / temperature)
    hard = (logits + noise > 0).astype(logits.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)


def path_matrix(edges: Float[Array, "L N M"]) -> Float[Array, "N M"]:
    """Number of routes from token j before the first layer to target i after the last.

        P = (A_L + I) ... (A_1 + I)

    with rows of zeros in A for sources. Token j can influence prediction i only where
    P_ij >= 1. Polynomial in the edges, so gradients flow; counts grow like (M + 1)^L.

    Args:
        edges: A of every layer, [i, j] from j to i; square, or with sources behind.

    Raises:
        ValueError: for fewer columns than rows.
    """
    num, width = edges.shape[-2:]
    if width < num:
        raise ValueError(
            f"edges must have at least as many columns (tokens read) as rows "
            f"(targets), got {num} x {width}."
        )
    paths = jnp.eye(num, width, dtype=edges.dtype)
    sources = jnp.eye(width, dtype=edges.dtype)[num:]
    for layer in edges:
        paths = paths + layer @ jnp.concatenate([paths, sources])
    return paths


def path_penalty(
    paths: Float[Array, "N M"], count: Callable = jnp.log1p
) -> Float[Array, ""]:
    """`sum_{i, j != i} g(P_ij)`; the residual always carries a token to itself.

    Args:
        paths: numbers of routes.
        count: g. The identity is the published |A|; `log1p` prunes smoothly where
            there are many routes; `min(., 1)` has no gradient above one route.
    """
    other = 1 - jnp.eye(*paths.shape, dtype=paths.dtype)
    return jnp.sum(other * count(paths))


class SparseTransformer(nn.Module):
    """Pre-norm blocks that attend to what their sampled edges let through."""

    num_blocks: int = 2
    num_heads: int = 1  # an edge exists where any head has it
    hidden: int = 64  # units of the MLP of a block
    depth: int = 1  # hidden layers of that MLP
    bias: float = 2.0  # of the edges' log-odds: at first nearly all are on
    temperature: float = 1.0
    sparse: bool = True  # False: plain softmax attention

    @nn.compact
    def __call__(
        self,
        targets: Float[Array, "N E"],
        sources: Float[Array, "S E"],
        key: Key[Array, ""] | None = None,
        present: Bool[Array, " M"] | None = None,
    ) -> tuple[Float[Array, "N E"], Float[Array, "L N M"]]:
        """Embedded targets after the last block, and every block's edges.

        Args:
            targets: embedded tokens that are predicted.
            sources: embedded tokens that are only read; may be none.
            key: of the edges; None takes the likelier value of each.
            present: tokens that may be read; None: all.

        Returns:
            The targets, and the edges: 0 or 1 (the union of the heads), or with
            `sparse=False` the attention weights (their maximum over the heads).
        """
        embed = targets.shape[-1]
        if embed % self.num_heads:
            raise ValueError(
                f"num_heads must divide the embedding size {embed}, got "
                f"{self.num_heads}."
            )
        every = []
        for i in range(self.num_blocks):
            layer_key = None if key is None else jax.random.fold_in(key, i)
            read = jnp.concatenate([targets, sources])
            read = nn.LayerNorm(epsilon=1e-5, name=f"norm_attend_{i}")(read)
            query = self._heads(f"query_{i}", read[: targets.shape[0]], embed)
            keys, values = (
                self._heads(f"{name}_{i}", read, embed) for name in ("key", "value")
            )
            logits = jnp.einsum("nhk,mhk->hnm", query, keys)
            logits = logits / math.sqrt(query.shape[-1]) + self.bias
            if present is not None:
                logits = jnp.where(present, logits, -1e9)
            weights = jax.nn.softmax(logits)
            if self.sparse:
                edges = sample_edges(layer_key, logits, self.temperature)
                weights = weights * edges
                every.append(1 - jnp.prod(1 - edges, 0))
            else:
                every.append(jnp.max(weights, 0))
            update = jnp.einsum("hnm,mhk->nhk", weights, values)
            targets = targets + update.reshape(targets.shape)
            inner = nn.LayerNorm(epsilon=1e-5, name=f"norm_mlp_{i}")(targets)
            for j in range(self.depth):
                inner = nn.relu(nn.Dense(self.hidden, name=f"up_{i}_{j}")(inner))
            targets = targets + nn.Dense(embed, name=f"down_{i}")(inner)
        return targets, jnp.stack(every)

    def _heads(self, name: str, x: Float[Array, "M E"], embed: int):
        """A linear map split into heads, `[M, heads, K]`."""
        return nn.Dense(embed, name=name)(x).reshape(x.shape[0], self.num_heads, -1)
