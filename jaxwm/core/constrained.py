"""Constrained losses: an objective is made small while an error stays below a limit.

    minimise E[objective]   subject to   E[error] <= limit

Gradient descent on `error - limit + objective / λ`, where the multiplier λ rises while
the error is above its limit (the network learns to predict, the objective hardly
counts) and falls while it is below (the objective is pressed down). The multiplier is
data: it lives in a model's buffers and moves once per update, without a gradient.

Source: Rezende and Viola, "Taming VAEs" (GECO), 2018. The form divided by λ is that of
Lei, Schölkopf and Posner, "SPARTAN", NeurIPS 2025: its scale is that of the error at
every λ, so one learning rate serves.
Departs: the gap is measured in units of the limit, so that `rate` has no scale.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Multiplier(NamedTuple):
    """The controller's state."""

    value: Float[Array, ""]  # λ
    gap: Float[Array, ""]  # running mean of error - limit


def start(value: float = 100.0) -> Multiplier:
    """A multiplier before the first update; large: first fit, then press.

    Raises:
        ValueError: if `value` is not positive.
    """
    if value <= 0:
        raise ValueError(f"value must be positive, got {value}; 100 fits first.")
    return Multiplier(jnp.float32(value), jnp.zeros(()))


def constrained_loss(
    objective: Float[Array, ""] | float,
    error: Float[Array, ""] | float,
    limit: Float[Array, ""] | float,
    multiplier: Multiplier,
) -> Float[Array, ""]:
    """`error - limit + objective / λ`; no gradient reaches λ or the limit.

    Args:
        objective: to be made small.
        error: to stay below the limit.
        limit: in the error's units.
        multiplier: the controller's state.
    """
    value, limit = jax.lax.stop_gradient((multiplier.value, limit))
    return error - limit + objective / value


def update(
    multiplier: Multiplier,
    error: Float[Array, ""] | float,
    limit: Float[Array, ""] | float,
    *,
    rate: float = 0.01,
    decay: float = 0.99,
    low: float = 1e-3,
    high: float = 1e3,
) -> Multiplier:
    """One step of the controller.

        gap <- decay gap + (1 - decay) (error - limit)
        λ   <- clip(λ exp(rate clip(gap / limit, -1, 1)), low, high)

    Args:
        multiplier: the state before.
        error: of this update's batch, averaged.
        limit: positive, in the error's units.
        rate: largest change of log λ in one step.
        decay: of the running gap; batches are noisy.
        low: smallest λ.
        high: largest λ. Where it is reached for long the limit is out of reach (see
            `saturated`), and a higher bound would only take longer to come down from.

    Raises:
        ValueError: for a Python number `limit` that is not positive, a decay outside
            [0, 1), a rate that is not positive, or bounds out of order.
    """
    if isinstance(limit, float | int) and limit <= 0:
        raise ValueError(
            f"limit must be positive, got {limit}; it is an error that can be reached."
        )
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}.")
    if rate <= 0:
        raise ValueError(f"rate must be positive, got {rate}.")
    if not 0 < low < high:
        raise ValueError(f"low and high must be 0 < low < high, got {low}, {high}.")
    gap = decay * multiplier.gap + (1 - decay) * (error - limit)
    step = jnp.exp(rate * jnp.clip(gap / limit, -1.0, 1.0))
    value = jnp.clip(multiplier.value * step, low, high)
    return Multiplier(*jax.lax.stop_gradient((value, gap)))


def saturated(multiplier: Multiplier, high: float = 1e3) -> Float[Array, ""]:
    """1 where λ has reached its upper bound: the limit may be out of reach."""
    return (multiplier.value >= high).astype(jnp.float32)
