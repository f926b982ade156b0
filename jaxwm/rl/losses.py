"""What actor and critic are trained on, element by element.

A gain is maximised, a loss minimised; means and weights over steps are the caller's:
`actor_loss` is the usual combination. Advantages and targets are constants: no
gradient flows into them. Log-probabilities and entropies are in nats.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Number = float | int | Float[Array, ""]


def policy_gain(
    log_prob: Float[Array, "..."], advantage: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Score-function surrogate `log π(a|s) A`; its gradient is the policy gradient.

    Source: Sutton et al., "Policy Gradient Methods for Reinforcement Learning with
    Function Approximation", NeurIPS 1999.
    """
    return log_prob * jax.lax.stop_gradient(advantage)


def clipped_gain(
    log_ratio: Float[Array, "..."], advantage: Float[Array, "..."], clip: Number
) -> Float[Array, "..."]:
    """PPO's surrogate `min(ρ A, clamp(ρ, 1 - clip, 1 + clip) A)`, ρ = exp(log_ratio).

    Its gradient is zero where the ratio has left the band in the direction that the
    advantage asks for.

    Args:
        log_ratio: log-probability now minus that of the policy that acted.
        advantage: of the action taken.
        clip: half width of the band, positive; 0.2 is usual.

    Raises:
        ValueError: if `clip` is not positive.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017, eq. 7.
    """
    _require_positive("clip", clip)
    advantage = jax.lax.stop_gradient(advantage)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.minimum(ratio * advantage, clipped * advantage)


def actor_loss(
    gain: Float[Array, "..."],
    entropy: Float[Array, "..."],
    weight: Float[Array, "..."],
    entropy_scale: Number,
) -> Float[Array, ""]:
    """`-mean w (gain + entropy_scale * entropy)` over all steps.

    Divides by the number of steps, not by the sum of weights, as the imagination
    agent of Rigter et al. (TMLR 2024) does.
    """
    return -jnp.mean(weight * (gain + entropy_scale * entropy))


def value_loss(
    value: Float[Array, "..."], target: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Half the squared error, `0.5 (v - target)^2`."""
    return 0.5 * (value - jax.lax.stop_gradient(target)) ** 2


def clipped_value_loss(
    value: Float[Array, "..."],
    old_value: Float[Array, "..."],
    target: Float[Array, "..."],
    clip: Number,
) -> Float[Array, "..."]:
    """The larger of the losses of `value` and of `value` kept within `clip` of the old.

    Args:
        value: now.
        old_value: when the data were collected; same units as `clip`.
        target: what it should become.
        clip: largest useful change, positive.

    Raises:
        ValueError: if `clip` is not positive.
    """
    _require_positive("clip", clip)
    old_value = jax.lax.stop_gradient(old_value)
    near = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(value_loss(value, target), value_loss(near, target))


def normalise_advantage(
    advantage: Float[Array, "..."],
    weight: Float[Array, "..."] | None = None,
    *,
    epsilon: Number = 1e-8,
) -> Float[Array, "..."]:
    """`(A - mean) / (std + epsilon)` over every axis.

    Args:
        advantage: of a whole batch.
        weight: of each step in mean and deviation; None counts all alike and divides
            the variance by N - 1, as PyTorch's `std` does.
        epsilon: added to the deviation, in the advantage's units.
    """
    if weight is None:
        return (advantage - advantage.mean()) / (advantage.std(ddof=1) + epsilon)
    total = jnp.maximum(jnp.sum(weight), 1e-12)
    mean = jnp.sum(weight * advantage) / total
    variance = jnp.sum(weight * (advantage - mean) ** 2) / total
    return (advantage - mean) / (jnp.sqrt(variance) + epsilon)


def _require_positive(name, value):
    if isinstance(value, int | float) and value <= 0:
        raise ValueError(f"{name} must be positive, got {value}; 0.2 is usual.")
