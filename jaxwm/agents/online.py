"""The online loop: collect with many environments, store, and let an agent learn.

Shapes: N environments, T steps of each per iteration, O observation, A action.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxwm.core import checks, loop, shard, tree
from jaxwm.types import (
    Agent,
    BatchEnv,
    BatchState,
    Learner,
    Metrics,
    PyTree,
    Transition,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How much is collected, stored and learnt per iteration."""

    steps: int = 25  # T, steps of each environment per iteration
    random_iterations: int = 2  # iterations of uniform random actions, no learning
    pretrain: int = 2000  # model updates when those are over
    rounds: int = 4  # agent steps per iteration

    def __post_init__(self):
        checks.finite(self)
        for name, least in (
            ("steps", 1),
            ("random_iterations", 1),
            ("pretrain", 0),
            ("rounds", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")


class OnlineState(NamedTuple):
    """Everything a run needs to continue, but its seed and its iteration."""

    agent: PyTree
    env: BatchState
    memory: PyTree  # of the acting agent, [N, ...]
    is_first: Array  # [N] whether the next observation starts an episode
    buffer: PyTree  # replay


def online(agent: Agent, env: BatchEnv, replay, config: Config) -> Learner:
    """Builds the pure loop.

    Args:
        agent: learns from windows of the replay and acts.
        env: N environments with automatic reset.
        replay: `init(example)`, `add(buffer, index, transitions)` and
            `sample(key, buffer, index, batch_size)`; `data.replay` makes one.
        config: amounts.

    Returns:
        A learner whose `step` is one iteration: N x T environment steps, then
        `rounds` agent steps. `iteration` counts from 0 and must not be batched.
    """
    num_envs, spec = env.num_envs, env.spec
    low, high = jnp.asarray(spec.action.low), jnp.asarray(spec.action.high)

    def init(key: Key[Array, ""]) -> OnlineState:
        agent_key, env_key = jax.random.split(key)
        agent_state = agent.init(agent_key)
        env_state = env.reset(env_key)
        memory = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))),
            agent.begin(agent_state),
        )
        one = jax.tree.map(lambda x: x[0], env_state.env)
        example = record(one, jnp.zeros_like(low), one, one.obs)
        is_first = jnp.ones(num_envs, bool)
        state = OnlineState(
            agent_state, env_state, memory, is_first, replay.init(example)
        )
        return tree.strong(state)

    def record(before, action, after, final_obs) -> Transition:
        return Transition(
            before.obs,
            action,
            after.reward,
            after.discount,
            after.truncated,
            final_obs,
            jnp.ones_like(after.reward),
            {"physics": before.physics, "params": before.params},
        )

    def collect(key, state: OnlineState, explore_uniformly):
        def act(key, carry):
            env_state, memory, is_first = carry
            act_key, uniform_key, env_key = jax.random.split(key, 3)
            keys = loop.fold_in_each(act_key, num_envs)
            action, memory = jax.vmap(agent.act, (0, None, 0, 0, 0, None))(
                keys, state.agent, memory, env_state.env.obs, is_first, True
            )
            uniform = jax.vmap(lambda k: jax.random.uniform(k, low.shape))(
                loop.fold_in_each(uniform_key, num_envs)
            )
            action = jnp.where(explore_uniformly, low + uniform * (high - low), action)
            new, final_obs = env.step(env_key, env_state, action)
            ended = (new.env.discount == 0) | new.env.truncated
            row = record(env_state.env, action, new.env, final_obs)
            return (new, memory, ended), row

        carry = (state.env, state.memory, state.is_first)
        return loop.unroll(key, carry, act, config.steps)

    def step(
        key: Key[Array, ""], state: OnlineState, iteration: Int[Array, ""]
    ) -> tuple[OnlineState, Metrics]:
        collect_key, step_key = jax.random.split(key)
        (env_state, memory, is_first), rows = collect(
            collect_key, state, iteration < config.random_iterations
        )
        buffer = replay.add(state.buffer, iteration * config.steps, rows)
        index = (iteration + 1) * config.steps
        flat = jax.tree.map(
            lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), rows
        )
        agent_state = agent.adapt(state.agent, flat)

        def sample(key, batch_size):
            return shard.split(replay.sample(key, buffer, index, batch_size))

        # Trip counts depend on the shared counter alone: real loops, also when seeds
        # are vmapped, and the replay is read in place.
        ready = config.random_iterations - 1
        rounds = jnp.where(iteration >= ready, config.rounds, 0)

        def one_round(i, agent_state):
            pretrain = jnp.where((iteration == ready) & (i == 0), config.pretrain, 0)
            key = jax.random.fold_in(step_key, i)
            return agent.step(key, agent_state, sample, pretrain)

        shapes = jax.eval_shape(one_round, jnp.zeros((), jnp.int32), agent_state)[1]
        metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def improve(i, carry):
            agent_state, total = carry
            agent_state, metrics = one_round(i, agent_state)
            return agent_state, jax.tree.map(jnp.add, total, metrics)

        agent_state, metrics = jax.lax.fori_loop(
            0, rounds, improve, (agent_state, metrics)
        )
        metrics = {
            # Flags hold while nothing was learnt yet.
            name: jnp.where(rounds > 0, total / jnp.maximum(rounds, 1), 1.0)
            if name.endswith("finite")
            else total / jnp.maximum(rounds, 1)
            for name, total in metrics.items()
        }
        ended = (rows.discount == 0) | rows.truncated
        metrics |= {
            "collect/reward": jnp.mean(rows.reward),
            "collect/episodes": jnp.sum(ended).astype(jnp.float32),
            "collect/finite": tree.all_finite(rows.reward).astype(jnp.float32),
        }
        new = OnlineState(agent_state, env_state, memory, is_first, buffer)
        return new, metrics

    def axes(state: OnlineState) -> OnlineState:
        return OnlineState(
            agent=tree.fill(state.agent, -1),
            env=state.env.axes(),
            memory=tree.fill(state.memory, 0),
            is_first=tree.fill(state.is_first, 0),
            buffer=tree.fill(state.buffer, 0),
        )

    return Learner(init, step, axes)
