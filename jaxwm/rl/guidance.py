"""Keeping imagined actions as spread out as the policy that they should come from.

Source: Rigter et al., "World Models via Policy-Guided Trajectory Diffusion", TMLR 2024.
Shapes: B trajectories, T steps, A action dimensions.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Number = float | int | Float[Array, ""]


def action_spread(z: Float[Array, "B T A"]) -> Float[Array, ""]:
    """Standard deviation of `z = (a - mean(s)) / stddev(s)`, mean over dimensions.

    1 where actions are on-policy; above, guidance is too weak, below too strong.
    """
    return jnp.mean(jnp.std(z, (0, 1)))


def update_guidance(
    log_scale: Float[Array, ""],
    spread: Float[Array, ""],
    rate: Number,
    *,
    low: Number = 0.0,
    high: Number = float("inf"),
) -> Float[Array, ""]:
    """One step of the controller `log λ + rate (spread - 1)`, λ kept in [low, high].

    Moving actions by `λ (mean - a) / stddev^2` is stable only below `2 stddev^2`, and
    `stddev^2` is already the whole way to the mean: give it as `high`, anew whenever
    the policy has changed.

    Args:
        log_scale: log of the guidance scale λ, in squared action units.
        spread: of imagined actions, see `action_spread`.
        rate: step size; 3e-3 beside reinforcement learning, 3e-2 without.
        low: smallest λ.
        high: largest λ.
    """
    log_scale = log_scale + rate * (spread - 1)
    return jnp.clip(log_scale, jnp.log(low), jnp.log(high))
