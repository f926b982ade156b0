"""Curves in the plane that string a few closed primitives together at random.

A primitive k is an ellipse through the origin that leans in its own direction; every
`period` steps a Markov chain picks the next one. What follows within a primitive is
certain, what follows it is not: a model has to tell the two apart.

Source: ours, after the switching movement patterns of Ahmadi and Tani, Neural
Computation 2019. Shapes: B curves, T steps, K primitives.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# K = 3: seldom the one before, often the one after, never the same again.
CHAIN = ((0.0, 0.7, 0.3), (0.3, 0.0, 0.7), (0.7, 0.3, 0.0))
_WIDTH = 0.35  # half the small axis of an ellipse; the large axis is 1


def primitive_curves(
    key: Key[Array, ""],
    num: int,
    length: int,
    *,
    period: int = 12,
    noise: float = 0.02,
    phase: tuple[float, float] = (0.0, 1.0),
    chain: tuple[tuple[float, ...], ...] = CHAIN,
) -> tuple[Float[Array, "B T 2"], Int[Array, "B T"]]:
    """Noisy curves and the primitive at each step.

        x = R_k [(1 - cos 2πs) / 2, 0.35 sin 2πs] + noise eps

    s runs from 0 to 1 along a primitive, R_k turns by 2πk/K.

    Args:
        key: draws first primitives, phases, switches and noise.
        num: B.
        length: T.
        period: steps of one primitive.
        noise: standard deviation of each coordinate.
        phase: range of s at the first step, uniform in whole steps.
        chain: row k is the distribution of what follows primitive k.

    Raises:
        ValueError: for a period below 4 steps, a phase range outside [0, 1], or rows of
            the chain that are no distributions over the K primitives.
    """
    if period < 4:
        raise ValueError(f"period must be at least 4 steps, got {period}.")
    if not 0 <= phase[0] < phase[1] <= 1:
        raise ValueError(
            f"phase must be a range within [0, 1], got {phase}; (0, 1) starts anywhere."
        )
    kinds = len(chain)
    for row in chain:
        if len(row) != kinds or min(row) < 0 or abs(sum(row) - 1) > 1e-6:
            raise ValueError(
                f"chain must have {kinds} rows of {kinds} probabilities that sum to 1, "
                f"got {row}."
            )
    first_key, phase_key, chain_key, noise_key = jax.random.split(key, 4)
    first = jax.random.randint(first_key, (num,), 0, kinds)
    low, high = round(phase[0] * period), round(phase[1] * period)
    start = jax.random.randint(phase_key, (num,), low, max(high, low + 1))
    log_p = jnp.log(jnp.asarray(chain))

    def switch(kind, i):
        return jax.random.categorical(
            jax.random.fold_in(chain_key, i), log_p[kind]
        ), kind

    count = (length + 2 * period - 1) // period  # the first one may be nearly over
    kinds_in_turn = jax.lax.scan(switch, first, jnp.arange(count))[1]  # [count, B]
    t = start[:, None] + jnp.arange(length)  # [B, T]
    kind = jnp.take_along_axis(kinds_in_turn.T, t // period, 1)
    x = _ellipse((t % period) / period, 2 * jnp.pi * kind / kinds)
    return x + noise * jax.random.normal(noise_key, x.shape), kind


def switches(x: Float[Array, "T 2"], kinds: int = 3) -> Float[Array, "{kinds} {kinds}"]:
    """How often a curve went from one primitive to another: counts `[from, to]`.

    A visit is a local maximum of |x| (among two steps to either side) above 1/2; it
    belongs to the primitive that leans that way. Curves under 5 steps have none.
    """
    radius = jnp.linalg.norm(x, axis=-1)
    far = jnp.max(jnp.stack([jnp.roll(radius, k) for k in (-2, -1, 1, 2)]), 0)
    t = jnp.arange(len(x))
    inside = (t >= 2) & (t < len(x) - 2)
    peak = inside & (radius > 0.5) & (radius >= far)
    turn = jnp.arctan2(x[:, 1], x[:, 0]) * kinds / (2 * jnp.pi)
    label = jnp.round(turn).astype(jnp.int32) % kinds

    def count(carry, row):
        last, counts = carry
        peak, label = row
        known = peak & (last >= 0)
        counts = counts.at[last, label].add(known.astype(counts.dtype))
        return (jnp.where(peak, label, last), counts), None

    start = (jnp.int32(-1), jnp.zeros((kinds, kinds)))
    return jax.lax.scan(count, start, (peak, label))[0][1]


def chain_distance(
    counts: Float[Array, "K K"],
    chain: tuple[tuple[float, ...], ...] = CHAIN,
) -> Float[Array, ""]:
    """Total variation between counted and true switches, mean over primitives.

    0 is the true chain, 1 the farthest from it; a primitive never left counts as 1.
    """
    total = jnp.sum(counts, 1, keepdims=True)
    p = counts / jnp.maximum(total, 1)
    distance = jnp.sum(jnp.abs(p - jnp.asarray(chain)), 1) / 2
    return jnp.mean(jnp.where(total[:, 0] > 0, distance, 1.0))


def _ellipse(s: Float[Array, "*B"], angle: Float[Array, "*B"]) -> Float[Array, "*B 2"]:
    along = (1 - jnp.cos(2 * jnp.pi * s)) / 2
    across = _WIDTH * jnp.sin(2 * jnp.pi * s)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cos * along - sin * across, sin * along + cos * across], -1)
