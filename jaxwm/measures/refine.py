"""Rate-distortion rounding: choosing, within a bin, the integers that cost least.

Rounding to the nearest integer ignores what the loss feels. Here integers q stand for
weights z = x/δ, and both are moved by gradient steps on

    Σ bits(q) + μ L(q δ),   |z - x/δ| <= w

with the loss's gradient taken at the rounded point and passed straight through, and μ
raised while the loss exceeds its limit and lowered while it does not. The bits are
those of geometric magnitudes with the mean h of their row and of their column:

    h -> (1 + h) log2(1 + h) - h log2 h + h / (1 + h)      per entry

Every integer stays within w + 1/2 bins of the weight it stands for, so the result still
describes these weights and no others. Shapes: m rows, n columns, k components.

Source: rate-distortion optimised quantisation as in video coding; straight-through
gradients, Bengio et al., 2013; rounding by gradient, Nagel et al., "Up or Down?", 2020.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_GAIN, _START = 0.15, 0.1  # of the controller of μ
_SMOOTH = 1e-2  # the magnitude's corner at 0, in bins
_MOMENTUM, _SQUARES = 0.8, 0.95

Pair = tuple[Array, Array | None]


class Refined(NamedTuple):
    """The cheapest integers found within the limit."""

    integers: list[Pair]  # like the starts
    bits: Float[Array, ""]  # by the formula above
    loss: Float[Array, ""]
    feasible: Bool[Array, ""]


def refine(
    starts: list[Pair],
    loss_of: Callable,
    limit: Float[Array, ""],
    epsilon: Float[Array, ""],
    *,
    num_steps: int,
    step_size: float = 0.1,
    window: float = 1.0,
) -> Refined:
    """Searches for cheaper integers from the nearest ones on.

    Args:
        starts: weights in units of their bin; per matrix `([m, n], None)`, or two
            factors `([m, k], [n, k])` whose unused components are zero.
        loss_of: `(list of integers, as in Refined) -> scalar`.
        limit: loss that must not be exceeded, nats.
        epsilon: scale of the controller of μ, nats.
        num_steps: gradient steps.
        step_size: of the first step, in bins; falls to 0.
        window: w, in bins.
    """
    origin = list(starts)
    alive = jax.tree.map(lambda x: x != 0, origin)
    first = jax.tree.map(jnp.round, origin)

    def body(carry, i):
        z, mean, square, log_mu, best = carry
        q = jax.tree.map(jnp.round, z)
        value, slope = jax.value_and_grad(loss_of)(q)
        bits = rate(q)
        best = _keep(best, Refined(q, bits, value, value <= limit))
        pull = jax.grad(rate)(z)
        g = jax.tree.map(lambda a, b: jnp.exp(log_mu) * a + b, slope, pull)
        mean = jax.tree.map(lambda m, a: m + (1 - _MOMENTUM) * (a - m), mean, g)
        square = jax.tree.map(lambda m, a: m + (1 - _SQUARES) * (a * a - m), square, g)
        mean_bias, square_bias = 1 - _MOMENTUM ** (i + 1), 1 - _SQUARES ** (i + 1)
        size = step_size * (1 - i / num_steps) ** 0.7

        def move(z, m, s, x, alive):
            step = m / mean_bias / (jnp.sqrt(s / square_bias) + 1e-6)
            z = jnp.clip(z - size * step, x - window, x + window)
            return jnp.where(alive, z, 0.0)

        z = jax.tree.map(move, z, mean, square, origin, alive)
        log_mu += _GAIN * jnp.tanh((value - limit) / (0.2 * epsilon))
        return (z, mean, square, log_mu, best), None

    zeros = jax.tree.map(jnp.zeros_like, origin)
    nothing = Refined(
        first, jnp.float32(jnp.inf), jnp.float32(jnp.inf), jnp.array(False)
    )
    # A tenth of the bits per ε: about the slope of rate over distortion at the end.
    log_mu = jnp.log(_START * rate(first) / epsilon + 1e-6)
    carry = (origin, zeros, zeros, log_mu, nothing)
    carry, _ = jax.lax.scan(body, carry, jnp.arange(num_steps))
    return carry[-1]


def rate(integers: list[Pair]) -> Float[Array, ""]:
    """Bits of all integers; differentiable in their relaxation."""
    total = jnp.float32(0)
    for left, right in integers:
        both = left if right is None else jnp.concatenate([left, right])
        magnitude = jnp.sqrt(both**2 + _SMOOTH**2) - _SMOOTH
        for axis in (-1, -2):
            per_entry = _geometric_bits(jnp.mean(magnitude, axis))
            total += 0.5 * jnp.sum(per_entry) * both.shape[axis]
    return total


def _geometric_bits(mean):
    mean = mean + 1e-6
    digits = (1 + mean) * jnp.log2(1 + mean) - mean * jnp.log2(mean)
    return digits + mean / (1 + mean)


def _keep(best: Refined, new: Refined) -> Refined:
    better = new.feasible & (new.bits < best.bits)
    return jax.tree.map(functools.partial(jnp.where, better), new, best)
