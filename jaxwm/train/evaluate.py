"""How well a policy does: returns of whole episodes, scores, and tables over seeds.

Shapes: E episodes, S seeds, T steps of one episode. `returns` and `record` are pure and
may be jitted and vmapped over seeds; `score` and `over_seeds` are host arithmetic on
their results. `trajectory_error`, `replay` and `on_policy`, which judge
the world model instead of the policy, live in `fidelity` and are reachable from here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxwm.core import loop, stats, tree
from jaxwm.train.fidelity import on_policy, replay, trajectory_error
from jaxwm.types import Agent, Box, Env, EnvSpec, EnvState, PyTree

__all__ = [
    "Episodes",
    "Numbers",
    "OverSeeds",
    "act_of",
    "on_policy",
    "over_seeds",
    "record",
    "replay",
    "returns",
    "score",
    "trajectory_error",
    "uniform",
]

Numbers = Any  # an array, a number, or lists of numbers


class Episodes(NamedTuple):
    """Results of E episodes, each from a fresh start to its end."""

    returns: Array  # [E] undiscounted sums of rewards
    lengths: Array  # [E] int32, steps taken
    terminated: Array  # [E] bool: a terminal state; else the time limit


class OverSeeds(NamedTuple):
    """What S seeds say together; numpy float64."""

    per_seed: np.ndarray  # [S] mean over the seed's episodes
    iqm: float  # interquartile mean over seeds
    low: float  # ends of the bootstrap interval of `iqm`; NaN with fewer than 2 seeds
    high: float
    mean: float
    std: float  # over seeds, N - 1; NaN with fewer than 2 seeds


def act_of(agent: Agent, state: PyTree, *, explore: bool = False):
    """An agent's policy as `(act, memory)` for `returns` and `record`.

    Args:
        agent: the bundle.
        state: what it has learnt, of one seed.
        explore: False for the deterministic action, True for a sampled one.

    Returns:
        `act(key, memory, obs, is_first) -> (action, memory)` and the memory before an
        episode's first observation.
    """

    def act(key, memory, obs, is_first):
        return agent.act(key, state, memory, obs, is_first, explore)

    return act, agent.begin(state)


def uniform(spec: EnvSpec) -> Callable:
    """The random policy: actions uniform within the bounds, as `act` of `returns`.

    Raises:
        ValueError: for a Box without finite bounds.
    """
    action = spec.action
    if isinstance(action, Box) and not np.all(np.isfinite((action.low, action.high))):
        raise ValueError(
            f"uniform actions need finite bounds, {spec.name} has {action}; "
            "give a task with bounded actions or an `act` of your own."
        )

    def act(key, memory, obs, is_first):
        del obs, is_first  # looks at nothing
        if isinstance(action, Box):
            low, high = jnp.asarray(action.low), jnp.asarray(action.high)
            return jax.random.uniform(key, low.shape, minval=low, maxval=high), memory
        return jax.random.randint(key, (), 0, action.num), memory

    return act


def returns(
    key: Key[Array, ""],
    env: Env,
    act: Callable,
    num_episodes: int,
    *,
    memory: PyTree = (),
    params: PyTree = None,
) -> Episodes:
    """Undiscounted returns of full episodes from fresh starts, run side by side.

    An episode ends at a true termination (`discount` 0), where the environment says
    `truncated`, or after `spec.time_limit` steps; the reward of its last step counts.
    The loop stops when the last episode has ended, so early falls cost no time.

    Args:
        key: starts and steps; episode e's draws do not depend on `num_episodes`.
        env: one environment.
        act: `(key, memory, obs, is_first) -> (action, memory)` for one episode;
            deterministic for an evaluation (see `act_of`).
        num_episodes: E, a Python int.
        memory: what `act` reads at the first step.
        params: factors of variation for all episodes; None for the defaults.

    Returns:
        `Episodes` of E. No gradient flows (the loop is a `while_loop`).

    Raises:
        ValueError: if `num_episodes` is below 1.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, got {num_episodes}.")
    reset_key, run_key = jax.random.split(key)
    reset_keys = loop.fold_in_each(reset_key, num_episodes)
    states = jax.vmap(lambda k: env.reset(k, params))(reset_keys)

    def step(carry):
        i, states, memories, result, running = carry
        keys = loop.fold_in_each(jax.random.fold_in(run_key, i), num_episodes)
        new, memories = jax.vmap(
            lambda k, state, m: _advance(k, env, act, state, m, i == 0)
        )(keys, states, memories)
        result = Episodes(
            result.returns + jnp.where(running, new.reward, 0.0),
            result.lengths + running,
            result.terminated | (running & (new.discount == 0)),
        )
        running = running & ~_ended(new) & (i + 1 < env.spec.time_limit)
        # A finished episode stays where it is: stepping on could blow up.
        return i + 1, tree.where(running, new, states), memories, result, running

    empty = Episodes(
        jnp.zeros(num_episodes),
        jnp.zeros(num_episodes, jnp.int32),
        jnp.zeros(num_episodes, bool),
    )
    memories = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_episodes, *jnp.shape(x))), memory
    )
    carry = (jnp.int32(0), states, memories, empty, jnp.ones(num_episodes, bool))
    return jax.lax.while_loop(lambda carry: jnp.any(carry[-1]), step, carry)[3]


def record(
    key: Key[Array, ""],
    env: Env,
    act: Callable,
    *,
    memory: PyTree = (),
    params: PyTree = None,
    num_steps: int | None = None,
) -> tuple[EnvState, Array]:
    """One episode as states, to be drawn by the environment's `render`.

    Args:
        key: start and steps.
        env: one environment.
        act: as in `returns`.
        memory: what `act` reads at the first step.
        params: factors of variation; None for the defaults.
        num_steps: T, at most this many steps; None for the time limit.

    Returns:
        `states [T + 1, ...]`, the start included, and the number L of steps taken;
        behind row L the last state is repeated.
    """
    num_steps = env.spec.time_limit if num_steps is None else num_steps
    reset_key, run_key = jax.random.split(key)
    start = env.reset(reset_key, params)

    def step(carry, i):
        state, memory, running = carry
        key = jax.random.fold_in(run_key, i)
        new, memory = _advance(key, env, act, state, memory, i == 0)
        new = tree.where(running, new, state)
        return (new, memory, running & ~_ended(new)), (new, running)

    carry = (start, jax.tree.map(jnp.asarray, memory), jnp.array(True))
    _, (states, running) = jax.lax.scan(step, carry, jnp.arange(num_steps))
    states = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]), start, states
    )
    return states, jnp.sum(running.astype(jnp.int32))


def score(
    value: Numbers, random_return: float | None, best_return: float | None
) -> np.ndarray:
    """Normalised score: 0 is the random policy, 1 the best known return.

        score = (R - R_random) / (R_best - R_random)

    Args:
        value: returns of any shape.
        random_return: mean return of uniform actions.
        best_return: best known return.

    Raises:
        ValueError: if one of the two ends is unknown or they are not in order.
    """
    if random_return is None or best_return is None:
        raise ValueError(
            f"a score needs both ends, got random_return={random_return} and "
            f"best_return={best_return}; measure them and store them in the EnvSpec."
        )
    if not best_return > random_return:
        raise ValueError(
            f"best_return must be above random_return, got {best_return} and "
            f"{random_return}."
        )
    value = np.asarray(value, np.float64)
    return np.asarray((value - random_return) / (best_return - random_return))


def over_seeds(
    values: Numbers, *, level: float = 0.95, resamples: int = 2000
) -> OverSeeds:
    """Interquartile mean over seeds with its bootstrap interval.

    Args:
        values: `[S]`, or `[S, E]` with E episodes a seed, averaged first: the seed, not
            the episode, is what is resampled.
        level: coverage of the interval, in (0, 1).
        resamples: bootstrap draws.

    Raises:
        ValueError: for another number of axes, no seed, or a level outside (0, 1).

    Source: Agarwal et al., "Deep RL at the Edge of the Statistical Precipice", 2021.
    """
    table = np.asarray(values, np.float64)
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(
            f"values must be [S] or [S, E] with at least one entry, got {table.shape}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")
    per_seed = table.reshape(table.shape[0], -1).mean(1)
    iqm = float(stats.interquartile_mean(per_seed))
    if per_seed.shape[0] < 2:  # resampling one seed would claim certainty
        nan = float("nan")
        return OverSeeds(per_seed, iqm, nan, nan, iqm, nan)
    low, high = stats.bootstrap_interval(per_seed, level=level, resamples=resamples)
    return OverSeeds(
        per_seed,
        iqm,
        float(low),
        float(high),
        float(per_seed.mean()),
        float(per_seed.std(ddof=1)),
    )


def _advance(key, env: Env, act: Callable, state: EnvState, memory, is_first):
    """Acts once and steps once."""
    act_key, env_key = jax.random.split(key)
    action, memory = act(act_key, memory, state.obs, is_first)
    return env.step(env_key, state, action), memory


def _ended(state: EnvState) -> Array:
    return (state.discount == 0) | state.truncated
