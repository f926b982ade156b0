"""Causal transformer over one sequence, and the trajectory denoiser made of it.

Source: pre-norm GPT-2 blocks (Radford et al., 2019) with the initialisation and the
token plan of the transformer denoiser of Rigter et al., TMLR 2024. As there, no layer
norm stands before the output head.
Shapes: T tokens, E embedding, N heads, C cached positions, D channels, A action size.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxwm.nn.denoiser import TimeEmbedding
from jaxwm.types import PyTree

_UNROLLED = 64  # longest axis that is summed term by term


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, for one block.

    Places are the last axis of the keys and the first of the values: a query's scores
    and its output are then sums of rows that lie in one piece.
    """

    keys: Float[Array, "N K C"]
    values: Float[Array, "C N K"]
    length: Int[Array, ""]  # tokens stored; the next one goes to this place


def empty_cache(size: int, num_heads: int, embed: int, num_blocks: int) -> list[Cache]:
    """One cache of nothing per block, for `size` tokens."""
    values = jnp.zeros((size, num_heads, embed // num_heads))
    keys, length = jnp.moveaxis(values, 0, -1), jnp.zeros((), jnp.int32)
    return [Cache(keys, values, length) for _ in range(num_blocks)]


def softmax_attention(
    query: Float[Array, "T N K"],
    key: Float[Array, "C N K"],
    value: Float[Array, "C N K"],
    mask: Bool[Array, "T C"],
) -> tuple[Float[Array, "T N K"], Float[Array, "N T C"]]:
    """Scaled dot-product attention; returns its output and its weights.

    A query whose mask is empty attends to everything equally rather than giving NaN.
    """
    scale = 1 / math.sqrt(query.shape[-1])
    if query.shape[0] == 1 and max(key.shape[0], key.shape[2]) <= _UNROLLED:
        return _attend_once(scale * query[0], key, value, mask[0])
    scores = scale * jnp.einsum("tnk,cnk->ntc", query, key)
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    return jnp.einsum("ntc,cnk->tnk", weights, value), weights


def _attend_once(
    query: Float[Array, "N K"],
    key: Float[Array, "C N K"],
    value: Float[Array, "C N K"],
    mask: Bool[Array, " C"],
) -> tuple[Float[Array, "1 N K"], Float[Array, "N 1 C"]]:
    """Attention of one token, as when a cache is read step by step.

    Neither products of matrices with a single row nor XLA's reductions over short axes
    use a CPU's vector units; sums written out term by term do, and are several times
    faster.
    """
    keys = jnp.moveaxis(key, 0, -1)  # [N, K, C], as the cache holds them
    scores = sum(query[:, k, None] * keys[:, k] for k in range(keys.shape[1]))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))  # [N, C]
    out = sum(weights[:, c, None] * value[c] for c in range(value.shape[0]))
    return out[None], weights[:, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention with replaceable `attend`."""

    num_heads: int
    num_blocks: int  # of the whole network: scales the residual initialisation
    attend: Callable = softmax_attention

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T E"],
        mask: Bool[Array, "T C"],
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "T E"], Cache | None, PyTree]:
        """Output, the cache with these tokens appended, and what `attend` returned."""
        num_tokens, embed = x.shape
        if embed % self.num_heads:
            raise ValueError(
                f"num_heads must divide the embedding size {embed}, got "
                f"{self.num_heads}."
            )
        normal = nn.initializers.normal(0.02)
        qkv = nn.Dense(3 * embed, kernel_init=normal, name="qkv")(x)
        query, key, value = (
            y.reshape(num_tokens, self.num_heads, -1) for y in jnp.split(qkv, 3, -1)
        )
        if cache is not None:
            at = cache.length
            new = jnp.moveaxis(key, 0, -1)
            keys = jax.lax.dynamic_update_slice(cache.keys, new, (0, 0, at))
            value = jax.lax.dynamic_update_slice(cache.values, value, (at, 0, 0))
            cache = Cache(keys, value, at + num_tokens)
            key = jnp.moveaxis(keys, -1, 0)
        out, weights = self.attend(query, key, value, mask)
        residual = nn.initializers.normal(0.02 / math.sqrt(2 * self.num_blocks))
        out = nn.Dense(embed, kernel_init=residual, name="out")(
            out.reshape(num_tokens, embed)
        )
        return out, cache, weights


class Transformer(nn.Module):
    """Pre-norm causal blocks over embedded tokens.

    Give `cache` (from `empty_cache`) to read a sequence in pieces; the tokens of one
    call then follow those stored. The caller keeps count: at most C tokens fit.
    """

    num_blocks: int = 6
    num_heads: int = 4
    attend: Callable = softmax_attention

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T E"],
        cache: list[Cache] | None = None,
        mask: Bool[Array, "T C"] | None = None,
    ) -> tuple[Float[Array, "T E"], list[Cache] | None, list[Array]]:
        """Outputs, caches, and per block what `attend` returned (attention weights).

        Args:
            x: embedded tokens.
            cache: one per block, or None for a whole sequence at once.
            mask: who may be attended to, beside causality.
        """
        num_tokens, embed = x.shape
        if cache is None:
            first, size = 0, num_tokens
        else:
            first, size = cache[0].length, cache[0].keys.shape[-1]
        causal = jnp.arange(size) <= first + jnp.arange(num_tokens)[:, None]
        mask = causal if mask is None else causal & mask
        normal = nn.initializers.normal(0.02)
        residual = nn.initializers.normal(0.02 / math.sqrt(2 * self.num_blocks))
        caches, attention = [], []
        for i in range(self.num_blocks):
            inner = nn.LayerNorm(epsilon=1e-5, name=f"norm_attend_{i}")(x)
            out, new_cache, weights = SelfAttention(
                self.num_heads, self.num_blocks, self.attend, name=f"attend_{i}"
            )(inner, mask, None if cache is None else cache[i])
            x = x + out
            inner = nn.LayerNorm(epsilon=1e-5, name=f"norm_mlp_{i}")(x)
            inner = nn.Dense(4 * embed, kernel_init=normal, name=f"up_{i}")(inner)
            # As jax.nn.gelu, which takes erfc, at half of its price.
            inner = 0.5 * inner * (1 + jax.lax.erf(inner / math.sqrt(2)))
            x = x + nn.Dense(embed, kernel_init=residual, name=f"down_{i}")(inner)
            caches.append(new_cache)
            attention.append(weights)
        return x, None if cache is None else caches, attention


class SinusoidalTime(nn.Module):
    """`[sin(t f), cos(t f)]` with f from 1 down to 1/10000, `num` features in all."""

    num: int

    @nn.compact
    def __call__(self, time: Float[Array, ""]) -> Float[Array, " K"]:
        """Features of one scalar."""
        half = self.num // 2
        rate = jnp.exp(-math.log(10000) / (half - 1) * jnp.arange(half))
        return jnp.concatenate([jnp.sin(time * rate), jnp.cos(time * rate)])


class TransformerDenoiser(nn.Module):
    """One token per step of a noisy trajectory: (row, action), causal over steps.

    Call it without `time` for a next-step regressor.
    """

    embed: int = 312
    num_blocks: int = 6
    num_heads: int = 4
    time_features: nn.Module | None = None  # None: sinusoids of the raw level index
    max_length: int | None = None  # positions to learn; None: T of the first call

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T D"],
        action: Float[Array, "T A"],
        time: Float[Array, ""] | None = None,
    ) -> Float[Array, "T D"]:
        """Predicts for each step; step t reads steps up to t."""
        normal = nn.initializers.normal(0.02)
        tokens = jnp.concatenate([x, action], -1)
        h = nn.Dense(self.embed, kernel_init=normal, name="token")(tokens)
        length = self.max_length or x.shape[0]
        position = self.param("position", normal, (length, self.embed))
        h = h + position[: x.shape[0]]
        if time is not None:
            features = self.time_features or SinusoidalTime(self.embed)
            h = h + TimeEmbedding(self.embed, features, name="time")(time)
        h, _, _ = Transformer(self.num_blocks, self.num_heads, name="body")(h)
        return nn.Dense(x.shape[-1], kernel_init=normal, name="leave")(h)
