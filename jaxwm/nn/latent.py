"""Pieces of latent world models: categorical codes, a recurrent transition, a decoder.

The state of a recurrent state-space model is a carry `(h, z)`: h is deterministic, z a
one-hot code of G groups with C classes each. Distributions over z are kept as
log-probabilities `[G, C]` in which every class has at least `uniform / C`.

    h_t = GRU(h_{t-1}, Dense([z_{t-1}, a_{t-1}])),   prior p(z_t | h_t),
    posterior q(z_t | h_t, embedding of o_t)

Source: Hafner et al., "Mastering Atari with Discrete World Models" (DreamerV2), ICLR
2021: codes, straight-through gradients and the balanced divergence; the mixture with
the uniform distribution is DreamerV3's (2023).
Shapes: H deterministic size, G groups, C classes, A action, E embedding, F = H + G C.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.nn.conv import PatchConv
from jaxwm.nn.mlp import MLP


class Latent(NamedTuple):
    """The carry."""

    h: Float[Array, "*B H"]
    z: Float[Array, "*B G C"]

    @property
    def feature(self) -> Float[Array, "*B F"]:
        """H and the flattened z, what heads, actors and critics read."""
        flat = self.z.reshape(*self.z.shape[:-2], self.z.shape[-2] * self.z.shape[-1])
        return jnp.concatenate([self.h, flat], -1)


class LatentTransition(nn.Module):
    """Action in, next h and the prior over the next code out.

    The cell is a gated recurrent unit whose three gates come from one normalised
    product; its update gate starts at sigmoid(-1), so that young carries remember.
    """

    deter: int  # H
    groups: int  # G
    classes: int  # C
    hidden: int = 64
    uniform: float = 0.01

    @nn.compact
    def __call__(
        self, latent: Latent, action: Float[Array, "*B A"]
    ) -> tuple[Float[Array, "*B H"], Float[Array, "*B G C"]]:
        """Returns `(h, log p(z | h))`."""
        flat = latent.feature[..., self.deter :]
        x = nn.Dense(self.hidden, name="input")(jnp.concatenate([flat, action], -1))
        x = nn.silu(nn.LayerNorm(epsilon=1e-3, name="input_norm")(x))
        gates = nn.Dense(3 * self.deter, use_bias=False, name="gates")(
            jnp.concatenate([x, latent.h], -1)
        )
        gates = nn.LayerNorm(epsilon=1e-3, name="gates_norm")(gates)
        reset, candidate, update = jnp.split(gates, 3, -1)
        candidate = jnp.tanh(nn.sigmoid(reset) * candidate)
        update = nn.sigmoid(update - 1)
        h = update * candidate + (1 - update) * latent.h
        out = MLP((self.hidden, self.groups * self.classes), "silu", True, name="prior")
        logits = out(h).reshape(*h.shape[:-1], self.groups, self.classes)
        return h, mixed_log_probs(logits, self.uniform)


class LatentPosterior(nn.Module):
    """What an observation says about the code: `log q(z | h, embedding)`."""

    groups: int  # G
    classes: int  # C
    hidden: int = 64
    uniform: float = 0.01

    @nn.compact
    def __call__(
        self, h: Float[Array, "*B H"], embedding: Float[Array, "*B E"]
    ) -> Float[Array, "*B G C"]:
        """Log-probabilities of the code."""
        out = MLP((self.hidden, self.groups * self.classes), "silu", True)
        logits = out(jnp.concatenate([h, embedding], -1))
        logits = logits.reshape(*h.shape[:-1], self.groups, self.classes)
        return mixed_log_probs(logits, self.uniform)


class ConvDecoder(nn.Module):
    """Feature to image: a small map, then 3 x 3 convolutions that double its sides.

    Each convolution gives four times the channels, which become 2 x 2 pixels.

    Raises:
        ValueError: if the image's sides cannot be halved once per layer.
    """

    shape: tuple[int, ...]  # of the image, [height, width, channels]
    channels: tuple[int, ...]  # of the maps from small to large

    @nn.compact
    def __call__(self, feature: Float[Array, "*B F"]) -> Float[Array, "*B h w c"]:
        """The image's mean, in the units it was trained on."""
        height, width, colours = self.shape
        times = 2 ** len(self.channels)
        if height % times or width % times:
            raise ValueError(
                f"image sides must be multiples of {times} for {len(self.channels)} "
                f"layers, got {height} x {width}; use fewer layers or pad the image."
            )
        small = (height // times, width // times, self.channels[0])
        x = nn.Dense(math.prod(small))(feature)
        x = x.reshape(*feature.shape[:-1], *small)
        for size in (*self.channels[1:], colours):
            x = _doubled(PatchConv(4 * size)(nn.silu(x)))
        return x


def _doubled(x: Float[Array, "*B h w f"]) -> Float[Array, "*B H W c"]:
    """Four channels become 2 x 2 pixels."""
    *batch, h, w, f = x.shape
    x = x.reshape(*batch, h, w, 2, 2, f // 4)
    return jnp.moveaxis(x, -3, -4).reshape(*batch, 2 * h, 2 * w, f // 4)


def mixed_log_probs(
    logits: Float[Array, "*B G C"], uniform: float
) -> Float[Array, "*B G C"]:
    """`log((1 - u) softmax(logits) + u / C)`: divergences stay finite."""
    if not 0 <= uniform < 1:
        raise ValueError(f"uniform must be in [0, 1), got {uniform}.")
    p = jax.nn.softmax(logits)
    return jnp.log((1 - uniform) * p + uniform / logits.shape[-1])


def draw_code(
    key: Key[Array, ""], log_p: Float[Array, "*B G C"]
) -> Float[Array, "*B G C"]:
    """A one-hot sample per group; its gradient is that of the probabilities.

    The straight-through estimator: `onehot + p - stop_gradient(p)`.
    """
    index = jax.random.categorical(key, log_p)
    p = jnp.exp(log_p)
    return jax.nn.one_hot(index, log_p.shape[-1]) + p - jax.lax.stop_gradient(p)


def code_kl(
    log_p: Float[Array, "*B G C"], log_q: Float[Array, "*B G C"]
) -> Float[Array, "*B"]:
    """`KL(p || q)` in nats, summed over the groups."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), (-2, -1))


def balanced_kl(
    posterior: Float[Array, "*B G C"],
    prior: Float[Array, "*B G C"],
    *,
    balance: float = 0.8,
    free_nats: float = 1.0,
) -> Float[Array, "*B"]:
    """The prior is drawn to the posterior more than the posterior to the prior.

        balance max(KL(sg q || p), free) + (1 - balance) max(KL(q || sg p), free)

    Below `free_nats` (per step) there is no gradient.
    """
    stop = jax.lax.stop_gradient
    to_prior = jnp.maximum(code_kl(stop(posterior), prior), free_nats)
    to_posterior = jnp.maximum(code_kl(posterior, stop(prior)), free_nats)
    return balance * to_prior + (1 - balance) * to_posterior
