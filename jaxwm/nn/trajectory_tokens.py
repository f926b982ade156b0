"""Transformers over the tokens of a trajectory, several tokens per step.

A step is P tokens, `[o_t, a_t^1 ... a_t^A]` or `[o_t^1 ... o_t^O, a_t^1 ... a_t^A]`;
each carries an embedding of what it is and of its step's place. All tokens are causal,
and what comes next is read from the last token of a step. With `caches` a trajectory
is read in pieces.

Source: one linear token per observation and one table of bins per action dimension
follow Kotb et al., "QT-TDM: Planning with Transformer Dynamics Model and Autoregressive
Q-Learning", 2024; one token per number follows Reed et al., "A Generalist Agent",
TMLR 2022.
Shapes: N steps of one call, C steps of a cache, P tokens of a step, O observation, A
action, K bins, E embedding.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxwm.nn.mlp import MLP
from jaxwm.nn.transformer import Cache, Transformer

_NORMAL = nn.initializers.normal(0.02)


def _ramp(key: Key[Array, ""], shape: tuple[int, int, int]) -> Float[Array, "A K E"]:
    """Neighbouring bins start as neighbours: along a random line, nearly."""
    line_key, noise_key = jax.random.split(key)
    size, bins, embed = shape
    line = 0.02 * jax.random.normal(line_key, (size, 1, embed))
    noise = 0.002 * jax.random.normal(noise_key, shape)
    return jnp.linspace(-1.7, 1.7, bins)[:, None] * line + noise  # of variance 1


class StepOutputs(NamedTuple):
    """What one step's tokens predict, from the last of them but for `action`."""

    delta: Float[Array, "N O"]  # change of the observation, in the caller's units
    reward: Float[Array, " N"]
    terminal: Float[Array, " N"]  # logit
    action: Float[Array, "N A K"]  # logits of a_t^i, read from the token before it


class Led(NamedTuple):
    """What led to each observation, where that is known."""

    change: Float[Array, "N O"]  # of the observation, normalised
    action: Int[Array, "N A"]  # bins of the action before
    known: Bool[Array, " N"]


class StepTokens(nn.Module):
    """One token per observation, one per action dimension.

    An observation's token also says what led to it, so that each token alone is a piece
    of evidence about the system: with bare observations the evidence is spread over
    three tokens, and the change is a small difference of large numbers.
    """

    context: int  # places of steps
    embed: int = 96
    blocks: int = 3
    heads: int = 4
    bins: int = 256  # K, of every action dimension
    head: tuple[int, ...] = (512, 512, 512)  # hidden units of the predictions' MLP

    @nn.compact
    def __call__(
        self,
        obs: Float[Array, "N O"],
        exists: Float[Array, " O"],
        action: Int[Array, "N A"],
        led: Led,
        place: Int[Array, " N"],
        present: Bool[Array, " C"],
        caches: list[Cache] | None = None,
    ) -> tuple[StepOutputs, list[Cache] | None]:
        """Predictions of every step, and the caches with these steps appended.

        Args:
            obs: normalised; dimensions that do not exist are not read.
            exists: 1 for dimensions that exist, else 0.
            action: bins.
            led: change and action before each observation.
            place: of each step, 0 ... context - 1; neighbours differ by 1.
            present: which steps may be read (of the call, or of the caches).
            caches: of `num_tokens` per step, or None for a whole trajectory.
        """
        (num, obs_size), size = obs.shape, action.shape[1]
        known = led.known[:, None].astype(obs.dtype)
        masks = jnp.broadcast_to(exists, obs.shape), known
        seen = [obs * exists, known * led.change * exists, *masks]
        table = self.param("action", _ramp, (size, self.bins, self.embed))
        table = jnp.asarray(table)  # restored weights may be numpy's
        dimensions = jnp.arange(size)
        dense = lambda name: nn.Dense(self.embed, kernel_init=_NORMAL, name=name)
        before = jnp.sum(table[dimensions, led.action], 1) * known / 0.02
        first = dense("obs")(jnp.concatenate(seen, -1)) + dense("before")(before)
        tokens = jnp.concatenate(
            [first[:, None], table[dimensions, action]], 1
        )  # [N, P, E]
        tokens = tokens + self.param("kind", _NORMAL, (size + 1, self.embed))
        position = self.param("place", _NORMAL, (self.context, self.embed))
        tokens = tokens + jnp.take(position, place, 0)[:, None]
        flat = tokens.reshape(-1, self.embed)
        mask = jnp.broadcast_to(
            jnp.repeat(present, size + 1), (len(flat), len(present) * (size + 1))
        )
        body = Transformer(self.blocks, self.heads, name="body")
        h, caches, _ = body(flat, caches, mask)
        h = nn.LayerNorm(name="norm")(h).reshape(num, size + 1, self.embed)
        out = MLP((*self.head, obs_size + 2), "silu", name="head")(h[:, -1])
        logits = nn.Dense(self.bins, kernel_init=_NORMAL, name="act")(h[:, :-1])
        outputs = StepOutputs(
            out[:, :obs_size], out[:, obs_size], out[:, obs_size + 1], logits
        )
        return outputs, caches


class ScalarOutputs(NamedTuple):
    """Logits, token by token."""

    next: Float[Array, "T K"]  # bins of the observation's number that follows
    reward: Float[Array, "T K"]  # read from the last token of a step
    terminal: Float[Array, " T"]


class ScalarTokens(nn.Module):
    """One token per number of an observation, one per action dimension.

    Tokens come one by one: `value` is a bin, `kind` what it is a bin of (0 ... O - 1
    the observation's numbers, O ... O + A - 1 the action's), `place` its step's place.
    """

    context: int
    num_kinds: int  # O + A
    embed: int = 96
    blocks: int = 3
    heads: int = 4
    bins: int = 1024  # K, shared by all tokens
    head: tuple[int, ...] = (512,)

    @nn.compact
    def __call__(
        self,
        value: Int[Array, " T"],
        kind: Int[Array, " T"],
        place: Int[Array, " T"],
        present: Bool[Array, " C"],
        caches: list[Cache] | None = None,
    ) -> tuple[ScalarOutputs, list[Cache] | None]:
        """Logits at every token, and the caches with these tokens appended.

        `present` marks the tokens (of the call, or of the caches) that may be read.
        """
        values = self.param("value", _NORMAL, (self.bins, self.embed))
        kinds = self.param("kind", _NORMAL, (self.num_kinds, self.embed))
        places = self.param("place", _NORMAL, (self.context, self.embed))
        each = (values, value), (kinds, kind), (places, place)
        tokens = sum(jnp.take(table, at, 0) for table, at in each)
        mask = jnp.broadcast_to(present, (len(value), len(present)))
        body = Transformer(self.blocks, self.heads, name="body")
        h, caches, _ = body(tokens, caches, mask)
        h = nn.LayerNorm(name="norm")(h)
        follow = MLP((*self.head, self.bins), "silu", name="next")(h)
        reward = MLP((*self.head, self.bins + 1), "silu", name="reward")(h)
        return ScalarOutputs(follow, reward[:, :-1], reward[:, -1]), caches
