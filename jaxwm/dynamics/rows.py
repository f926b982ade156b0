"""What one-step models learn from: the transitions of a window, and their statistics.

Networks see normalised observations and actions and predict, in normalised units, the
change of the observation and the reward; everyone else sees raw units.

Shapes: T rows of a window, N transitions, O observation, A action.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.core import stats
from jaxwm.types import Box, Discrete, PyTree, Trajectory, Transition


class Transitions(NamedTuple):
    """The steps that a window holds, and which of them are real."""

    obs: PyTree  # [N, ...]
    action: Array  # [N, A]
    reward: Float[Array, " N"]
    discount: Float[Array, " N"]
    next_obs: PyTree  # [N, ...]
    valid: Float[Array, " N"]  # 1 where the step happened, else 0


def transitions_of(window: Trajectory) -> Transitions:
    """The transitions of a window.

    With `extras["next_obs"]` every row is one, N = T. Without it the next row's
    observation is taken, N = T - 1; a row before padding then counts only if it ended
    in a true termination, because behind a time limit the next row is made up.

    Raises:
        ValueError: for a window of one row without `extras["next_obs"]`.
    """
    if "next_obs" in window.extras:
        return Transitions(
            window.obs,
            window.action,
            window.reward,
            window.discount,
            window.extras["next_obs"],
            window.mask,
        )
    rows = window.reward.shape[0]
    if rows < 2:
        raise ValueError(
            f"window must have at least 2 rows to hold a transition, got {rows}; give "
            'longer windows or store extras["next_obs"].'
        )
    reached = jnp.maximum(window.mask[1:], 1 - window.discount[:-1])
    return Transitions(
        jax.tree.map(lambda x: x[:-1], window.obs),
        window.action[:-1],
        window.reward[:-1],
        window.discount[:-1],
        jax.tree.map(lambda x: x[1:], window.obs),
        window.mask[:-1] * reached,
    )


def merged(data: Trajectory) -> Transition:
    """All rows of recordings as one batch; no row counts as truncated.

    Args:
        data: `[N, T, ...]` or with more leading axes, as many as its rewards have; with
            `extras["next_obs"]`.
    """
    axes, num = data.reward.ndim, data.reward.size
    obs, action, reward, discount, mask, next_obs = jax.tree.map(
        # Actions of no numbers do not let reshape count the rows.
        lambda x: x.reshape(num, *x.shape[axes:]),
        (*data[:4], data.mask, data.extras["next_obs"]),
    )
    never = jnp.zeros(num, bool)
    return Transition(obs, action, reward, discount, never, next_obs, mask, {})


def clip_action(space: Box | Discrete, action: Array) -> Array:
    """The action as the environment applies it: inside the bounds of a `Box`.

    Policies may propose more than the bounds allow, and rollouts report the proposal;
    a network that saw the proposal would have to learn the clipping.
    """
    if isinstance(space, Discrete):
        return action
    return jnp.clip(action, jnp.asarray(space.low), jnp.asarray(space.high))


class Statistics(NamedTuple):
    """Moments of what goes in and of what is predicted."""

    obs: stats.Moments  # [O]
    action: stats.Moments  # [A]
    target: stats.Moments  # [O + 1]: change of obs, reward


def no_statistics(obs_size: int, action_size: int) -> Statistics:
    """Statistics before any data: normalising is the identity."""
    return Statistics(
        stats.moments(obs_size, floor=1e-3),
        stats.moments(action_size, floor=1e-3),
        stats.moments(obs_size + 1),  # a short control period makes changes small
    )


def update_statistics(
    statistics: Statistics, data: Transition, space: Box
) -> Statistics:
    """Takes in transitions `[B, ...]`; padding (mask 0) does not count."""
    action = clip_action(space, data.action)
    return Statistics(
        stats.update_moments(statistics.obs, data.obs, data.mask),
        stats.update_moments(statistics.action, action, data.mask),
        stats.update_moments(statistics.target, _target(data), data.mask),
    )


def encode(
    statistics: Statistics,
    obs: Float[Array, "... O"],
    action: Float[Array, "... A"],
    space: Box,
) -> Float[Array, "... O+A"]:
    """What a network reads about one step, or several."""
    action = clip_action(space, action)
    return jnp.concatenate(
        [
            stats.normalise(statistics.obs, obs),
            stats.normalise(statistics.action, action),
        ],
        -1,
    )


def encode_target(statistics: Statistics, data: Transitions) -> Float[Array, "N P"]:
    """What a network shall predict: change of obs and reward, normalised."""
    return stats.normalise(statistics.target, _target(data))


def decode_target(
    statistics: Statistics, obs: Float[Array, "... O"], y: Float[Array, "... O+1"]
) -> tuple[Float[Array, "... O"], Float[Array, "..."]]:
    """Next observation and reward in raw units."""
    y = stats.denormalise(statistics.target, y)
    return obs + y[..., :-1], y[..., -1]


def _target(data: Transition | Transitions) -> Float[Array, "N P"]:
    return jnp.concatenate([data.next_obs - data.obs, data.reward[:, None]], -1)
