"""Message passing on graphs padded to a fixed number of nodes."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.nn.mlp import activation_function


class MessagePassing(nn.Module):
    """Layers that read every node's neighbours; permuting nodes permutes the output.

        m_ij = σ(W_r h_i + W_s h_j),   h_i <- σ(W_h h_i + W_m mean_j A_ij m_ij)

    A dense adjacency: right for graphs of tens of nodes. The first layer lifts the
    features to `width`; from the second on h is added to what comes out. What is beyond
    the mask neither sends nor counts, and comes out as zero.

    Source: after Gilmer et al., "Neural Message Passing for Quantum Chemistry", 2017.
    """

    width: int
    layers: int = 2
    activation: str | Callable = "softplus"

    @nn.compact
    def __call__(
        self,
        nodes: Float[Array, "N F"],
        adjacency: Float[Array, "N N"],
        mask: Float[Array, " N"],
    ) -> Float[Array, "N {self.width}"]:
        """Embeds the nodes.

        Args:
            nodes: features; rows beyond the mask may hold anything finite.
            adjacency: weight of the edge from j to i at [i, j]; self-loops if wanted.
            mask: 1 where a node exists.
        """
        activation = activation_function(self.activation)
        edges = adjacency * mask[:, None] * mask[None, :]
        degree = jnp.maximum(edges.sum(1, keepdims=True), 1e-12)
        h = nodes * mask[:, None]
        for layer in range(self.layers):
            to, by = nn.Dense(self.width)(h), nn.Dense(self.width, use_bias=False)(h)
            messages = activation(to[:, None] + by[None, :])  # [N, N, width]
            mean = jnp.einsum("ij,ijd->id", edges, messages) / degree
            update = nn.Dense(self.width)(h) + nn.Dense(self.width, use_bias=False)(
                mean
            )
            update = activation(update) * mask[:, None]
            h = update if layer == 0 else h + update
        return h
