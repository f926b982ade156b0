"""Many environments at once: automatic reset, the clock, factors and blow-ups.

Shapes: N environments, P rows of the pool of start states, A action. The step function
of one environment never resets; everything of that kind happens here.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxwm.core import loop, tree
from jaxwm.envs import factors as variation
from jaxwm.types import BatchEnv, BatchState, Box, Env, EnvState, PyTree

DIVERGED = "env/diverged"


def batch(
    env: Env,
    num_envs: int,
    *,
    reset: str = "pool",
    pool_size: int | None = None,
    refresh: bool = True,
    factors: str | Mapping | None = None,
) -> BatchEnv:
    """Runs `num_envs` copies of an environment that reset themselves.

    An episode ends where `discount` is 0 (a true terminal state) or `truncated` holds:
    `spec.time_limit` steps were made, or the simulation diverged. A step that leaves
    anything in physics, observation or reward not finite counts as not made: its reward
    is 0, its discount 1, `final_obs` repeats the observation before it, `truncated`
    holds, and the metric `env/diverged` is 1 for this environment and this step. No
    other environment notices.

    Args:
        env: the environment.
        num_envs: N.
        reset: `"pool"` starts episodes from a stored row, drawn per environment and
            episode; `"full"` computes N new starts at every step and uses those needed,
            which costs N resets per step but never repeats a start.
        pool_size: P; by default `max(64, num_envs)`.
        refresh: whether every step replaces one row of the pool by a new start (the
            row just used, if an episode began, otherwise any), so that starts do not
            repeat for ever. It costs one reset per step, whatever N is.
        factors: None keeps the defaults; `"range"` draws all factors over their ranges;
            `{name: (low, high)}` draws these. Drawn anew for every start state. `step`
            reads from the state only factors that are drawn; the others are constants
            of the compiled program, which makes it faster.

    Returns:
        A `BatchEnv`. `reset(key) -> BatchState`; `step(key, state, actions [N, A])
        -> (state, final_obs)`. Keys are folded with the index of the environment, so
        its draws do not depend on how many others there are. Nothing is modified in
        place, and structure and dtypes stay constant, so both can be scanned.

    Raises:
        ValueError: for sizes below 1, an unknown `reset`, factors that `env` does not
            have, and, from `step`, actions of the wrong shape.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    if reset not in ("pool", "full"):
        raise ValueError(f'reset must be "pool" or "full", got "{reset}".')
    size = max(64, num_envs) if pool_size is None else pool_size
    if size < 1:
        raise ValueError(f'pool_size must be at least 1, got {size}; or reset="full".')
    spec = env.spec
    ranges = variation.ranges(spec, factors)
    if isinstance(spec.action, Box):
        action_shape = (num_envs, spec.action.size)
    else:
        action_shape = (num_envs,)

    def start(key) -> EnvState:
        """One start state; all that resetting needs to know."""
        params_key, reset_key = jax.random.split(key)
        params = variation.sample(params_key, spec, ranges)
        state = env.reset(reset_key, params)
        return state._replace(metrics={**state.metrics, DIVERGED: jnp.zeros(())})

    # NumPy scalars are known while tracing, so an engine can drop what they multiply.
    constants = {
        f.name: np.float32(f.default) for f in spec.factors if f.name not in ranges
    }

    def advance(key, state: EnvState, action) -> EnvState:
        if not constants:
            return env.step(key, state, action)
        given = state._replace(params={**state.params, **constants})
        return env.step(key, given, action)._replace(params=state.params)

    def starts(key, num) -> EnvState:
        return jax.vmap(start)(loop.fold_in_each(key, num))

    def reset_all(key: Key[Array, ""]) -> BatchState:
        env_key, pool_key = jax.random.split(key)
        pool = starts(pool_key, size) if reset == "pool" else None
        return BatchState(starts(env_key, num_envs), pool)  # type: ignore

    def step(
        key: Key[Array, ""], state: BatchState, actions: Array
    ) -> tuple[BatchState, PyTree]:
        if jnp.shape(actions) != action_shape:
            raise ValueError(
                f"actions must have the shape {action_shape}, got "
                f"{jnp.shape(actions)}; one row per environment of {spec.name}."
            )
        step_key, start_key, pool_key = jax.random.split(key, 3)
        before, pool = state
        own = {k: v for k, v in before.metrics.items() if k != DIVERGED}
        after = jax.vmap(advance)(
            loop.fold_in_each(step_key, num_envs),
            before._replace(metrics=own),
            actions,
        )
        finite = jax.vmap(tree.all_finite)((after.physics, after.obs, after.reward))
        final_obs = tree.where(finite, after.obs, before.obs)
        reward = jnp.where(finite, after.reward, 0)
        discount = jnp.where(finite, after.discount, 1)
        metrics = tree.where(finite, after.metrics, own)
        truncated = after.truncated | (after.t >= spec.time_limit) | ~finite

        done = truncated | (discount == 0)
        if reset == "pool":
            # Row i's bits depend on i alone (threefry is partitionable), not on N.
            rows = jax.random.randint(start_key, (num_envs,), 0, size)
            fresh = jax.tree.map(lambda x: x[rows], pool)
            if refresh:
                used = rows[jnp.argmax(done)]  # the first's, if none is done
                pool = jax.tree.map(
                    lambda old, new: old.at[used].set(new), pool, start(pool_key)
                )
        else:
            fresh = starts(start_key, num_envs)
        following = tree.where(
            done,
            (fresh.physics, fresh.params, fresh.t, fresh.obs),
            (after.physics, after.params, after.t, after.obs),
        )
        diverged = jnp.asarray(~finite, before.metrics[DIVERGED].dtype)
        physics, params, t, obs = following
        metrics = {**metrics, DIVERGED: diverged}
        running = EnvState(
            physics, params, t, obs, reward, discount, truncated, metrics
        )
        return BatchState(running, pool), final_obs

    return BatchEnv(spec, num_envs, reset_all, step)
