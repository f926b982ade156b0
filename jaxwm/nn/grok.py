"""Networks that grok: an MLP on embedded operands, and a small transformer.

Source: the transformer is that of DeMoss et al., "The Complexity Dynamics of Grokking",
2024 (post-norm blocks, no causal mask); the MLP is the smallest network in which we saw
the same dynamics on two processor cores.
Shapes: I input symbols, V outputs. One example each; `vmap` adds the batch.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxwm.nn.transformer import SelfAttention, softmax_attention

# N(0, 1 / fan_in), also for embeddings, whose fan-in is the number of symbols.
_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

ACTIVATIONS: dict[str, Callable] = {"relu": nn.relu, "square": jnp.square}


class GrokMLP(nn.Module):
    """Embedded symbols side by side, dense layers, logits without a bias.

    `activation` "square" groks sooner, after a shorter plateau, than "relu". The
    published MLP has `embed` 128 and three hidden layers of 512.
    """

    num_symbols: int
    num_outputs: int
    embed: int = 64
    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Int[Array, " I"]) -> Float[Array, " V"]:
        """Logits of one example."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got "
                f"{self.activation!r}."
            )
        table = self.param("embed", _INIT, (self.num_symbols, self.embed))
        h = jnp.asarray(table)[x].reshape(-1)  # tables of numpy refuse traced x
        for i, size in enumerate(self.hidden):
            h = nn.Dense(size, kernel_init=_INIT, name=f"hidden_{i}")(h)
            h = ACTIVATIONS[self.activation](h)
        return nn.Dense(
            self.num_outputs, use_bias=False, kernel_init=_INIT, name="logits"
        )(h)


class GrokTransformer(nn.Module):
    """Tokens `[a, op, b, =]` through post-norm blocks; logits at the last token.

        x <- LN(x + attend(x));  x <- LN(x + MLP(x))

    Every token sees every other. Departs: queries, keys and values are one matrix, and
    positions are learnt for the I tokens there are (the published table has a row per
    symbol, of which all but I only decay).
    """

    num_symbols: int
    num_outputs: int
    embed: int = 128
    num_heads: int = 4
    num_blocks: int = 1
    width: int = 512

    @nn.compact
    def __call__(self, x: Int[Array, " I"]) -> Float[Array, " V"]:
        """Logits of one example."""
        num_tokens = x.shape[0]
        h = nn.Embed(self.num_symbols, self.embed, name="token")(x)
        normal = nn.initializers.normal(0.02)
        h = h + self.param("position", normal, (num_tokens, self.embed))
        mask = jnp.ones((num_tokens, num_tokens), bool)
        for i in range(self.num_blocks):
            out, _, _ = SelfAttention(
                self.num_heads, self.num_blocks, softmax_attention, name=f"attend_{i}"
            )(h, mask)
            h = nn.LayerNorm(name=f"norm_attend_{i}")(h + out)
            inner = nn.gelu(nn.Dense(self.width, name=f"up_{i}")(h))
            inner = nn.Dense(self.embed, name=f"down_{i}")(inner)
            h = nn.LayerNorm(name=f"norm_mlp_{i}")(h + inner)
        return nn.Dense(self.num_outputs, name="logits")(h[-1])
