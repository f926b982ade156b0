"""How true a world model is: imagined trajectories against the simulator's replay.

Shapes: B trajectories, H rows of each, A action, F feature, D entries of one flattened
observation. All in raw units. Row k of a rollout holds the observation after k steps,
the action taken there and that action's reward, so row 0 shows the start itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.core import loop, tree
from jaxwm.types import Box, Env, Metrics, Policy, PyTree, Rollout

_STILL = 1e-12  # variance below which an observation entry counts as constant


class Replay(NamedTuple):
    """What the simulator does under given actions, H rows."""

    obs: PyTree  # [H, ...]
    reward: Array  # [H]
    discount: Array  # [H]
    mask: Array  # [H] 1 up to the row whose action terminates, 0 behind it


class TrajectoryError(NamedTuple):
    """Errors by imagined step k = 0 ... H - 1, each `[H]`.

    A row's error is the mean over the D entries of the squared difference. Means and
    standard deviations go over the trajectories still alive in that row; where none is,
    they are NaN and `count` is 0. `normalised` divides each entry by its variance
    first. Persistence repeats the true first observation.
    """

    mse: Array
    std: Array
    normalised: Array
    normalised_std: Array
    persistence: Array
    persistence_normalised: Array
    reward_mse: Array
    count: Array

    def metrics(self) -> Metrics:
        """Scalars: means over k >= 1 of live rows, and the ratio to persistence."""
        alive = (jnp.arange(self.count.shape[0]) > 0) & (self.count > 0)

        def mean(row):
            total = jnp.sum(jnp.where(alive, row, 0.0))
            return total / jnp.maximum(jnp.sum(alive), 1)

        model, copy = mean(self.normalised), mean(self.persistence_normalised)
        return {
            "error/mse": mean(self.mse),
            "error/normalised": model,
            "error/persistence": copy,
            "error/ratio": model / jnp.maximum(copy, _STILL),
            "error/reward": jnp.where(self.count[0] > 0, self.reward_mse[0], 0.0),
        }


class OnPolicy(NamedTuple):
    """Mean and standard deviation of z per action dimension, `[A]`; ideally 0 and 1."""

    mean: Array
    std: Array


def replay(
    key: Key[Array, ""],
    env: Env,
    physics: PyTree,
    params: PyTree,
    action: Float[Array, "H *A"],
) -> Replay:
    """Replays actions open-loop in the simulator from a stored state.

    Args:
        key: the simulator's own noise, where it has any.
        env: one environment; its clock does not matter here (`truncated` is ignored).
        physics: stored state to start from.
        params: factors of variation, or None for the defaults.
        action: H actions; continuous ones are clipped to the bounds first.

    Returns:
        H rows; behind a true termination the last live observation is repeated and
        the mask is 0.
    """
    bounds = env.spec.action
    if isinstance(bounds, Box):
        action = jnp.clip(action, jnp.asarray(bounds.low), jnp.asarray(bounds.high))

    def step(carry, row):
        state, alive = carry
        i, action = row
        new = env.step(jax.random.fold_in(key, i), state, action)
        out = Replay(state.obs, new.reward, new.discount, alive.astype(jnp.float32))
        alive = alive & (new.discount > 0)
        return (tree.where(alive, new, state), alive), out

    carry = (env.reset_to(physics, params), jnp.array(True))
    return jax.lax.scan(step, carry, (jnp.arange(action.shape[0]), action))[1]


def trajectory_error(
    key: Key[Array, ""],
    env: Env,
    rollouts: Rollout,
    physics: PyTree,
    params: PyTree = None,
    *,
    variance: Float[Array, " D"] | None = None,
) -> TrajectoryError:
    """Error of imagined trajectories by horizon, against replay in the simulator.

    The simulator is put into the stored state each trajectory was imagined from and
    takes the imagined actions (clipped to the bounds) open-loop.

        e_k = mean_d (imagined[k, d] - true[k, d])^2

    Args:
        key: the simulator's own noise, where it has any; one key per trajectory.
        env: one environment, the truth.
        rollouts: B imagined trajectories, `[B, H, ...]`.
        physics: their stored start states, `[B, ...]`.
        params: their factors of variation, `[B, ...]`, or None for the defaults.
        variance: per flattened observation entry, from the training data; None takes
            that of the replayed rows. An entry that does not vary stays in raw units.

    Returns:
        `TrajectoryError`, `[H]` each. In a stochastic environment even a perfect model
        has twice the noise's variance here; use `residuals` there.

    Raises:
        ValueError: if the model imagines no observations, or the batches differ.

    Source: Rigter et al., "World Models via Policy-Guided Trajectory Diffusion", TMLR
    2024, section 5 (metric: reference code, utils/errors.py).
    """
    if rollouts.obs is None:
        raise ValueError(
            "rollouts.obs is None: this world model imagines features only; decode "
            "them first (`world_model.decode`)."
        )
    batch = rollouts.action.shape[0]
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves((physics, params))}
    if {shape[:1] for shape in shapes} - {(batch,)}:
        raise ValueError(
            f"physics and params must hold one row for each of {batch} rollouts, got "
            f"leaves of shape {sorted(shapes)}; take them at the rollouts' starts."
        )
    real = jax.vmap(lambda *one: replay(one[0], env, *one[1:]))(
        loop.fold_in_each(key, batch), physics, params, rollouts.action
    )
    imagined_obs, true_obs = _flat(rollouts.obs), _flat(real.obs)  # [B, H, D]
    if variance is None:
        variance = _masked_variance(true_obs, real.mask)
    scale = jnp.where(variance > _STILL, variance, 1.0)
    error = (imagined_obs - true_obs) ** 2
    copy = (true_obs[:, :1] - true_obs) ** 2
    mse, std = _over_batch(jnp.mean(error, -1), real.mask)
    normalised, normalised_std = _over_batch(jnp.mean(error / scale, -1), real.mask)
    return TrajectoryError(
        mse=mse,
        std=std,
        normalised=normalised,
        normalised_std=normalised_std,
        persistence=_over_batch(jnp.mean(copy, -1), real.mask)[0],
        persistence_normalised=_over_batch(jnp.mean(copy / scale, -1), real.mask)[0],
        reward_mse=_over_batch((rollouts.reward - real.reward) ** 2, real.mask)[0],
        count=jnp.sum(real.mask, 0),
    )


def on_policy(rollouts: Rollout, policy: Policy) -> OnPolicy:
    """Whether imagined actions look drawn from the policy.

        z = (a - mu(s)) / sigma(s)

    Args:
        rollouts: B imagined trajectories, `[B, H, ...]`.
        policy: feature `[F]` to a distribution with `mean` and `stddev`.

    Returns:
        Mean and standard deviation of z per action dimension, over trajectories and
        all but the last step (whose action no later state follows).

    Raises:
        ValueError: for fewer than two steps, or a distribution without `stddev`.
    """
    horizon = rollouts.action.shape[1]
    if horizon < 2:
        raise ValueError(
            f"on_policy needs rollouts of at least 2 steps, got {horizon}."
        )

    def standardise(feature: Array, action: Array) -> Array:
        dist = policy(feature)
        if not hasattr(dist, "stddev"):
            raise ValueError(
                f"on_policy needs continuous actions, the policy gives "
                f"{type(dist).__name__} without `stddev`."
            )
        return (action - dist.mean) / dist.stddev

    z = jax.vmap(jax.vmap(standardise))(
        rollouts.feature[:, :-1], rollouts.action[:, :-1]
    )
    return OnPolicy(jnp.mean(z, (0, 1)), jnp.std(z, (0, 1)))


def _flat(obs: PyTree) -> Array:
    """All leaves of a `[B, H, ...]` observation side by side, `[B, H, D]` float32."""
    return jnp.concatenate(
        [
            leaf.astype(jnp.float32).reshape(*leaf.shape[:2], -1)
            for leaf in jax.tree.leaves(obs)
        ],
        -1,
    )


def _masked_variance(x: Array, mask: Array) -> Array:
    """Variance per entry over the live rows, `[D]`."""
    weight = mask[..., None] / jnp.maximum(jnp.sum(mask), 1.0)
    mean = jnp.sum(weight * x, (0, 1))
    return jnp.sum(weight * (x - mean) ** 2, (0, 1))


def _over_batch(rows: Array, mask: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of `[B, H]` over the live trajectories of each row.

    Dead rows are dropped by `where`, so what the model says behind a termination, NaN
    included, cannot leak in.
    """
    count = jnp.sum(mask, 0)
    mean = jnp.sum(jnp.where(mask > 0, rows, 0.0), 0) / count
    spread = jnp.sum(jnp.where(mask > 0, (rows - mean) ** 2, 0.0), 0) / count
    return mean, jnp.sqrt(spread)
