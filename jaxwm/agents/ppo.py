"""Proximal policy optimisation, on any batch of environments.

    collect N x T steps with the policy pi_old, then, over `epochs` passes in
    minibatches, ascend   min(rho A, clamp(rho, 1 - c, 1 + c) A),  rho = pi / pi_old
    and descend           (V - target)² / 2

A are generalised advantage estimates. Where an episode ends by its time limit, the
value of the true last observation is bootstrapped; where it terminates, nothing is.

Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017.
Shapes: N environments, T steps of each per iteration, O observation, A action.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxwm import rl
from jaxwm.core import checks, loop, optimise, shard, stats, tree
from jaxwm.nn import Actor, Critic
from jaxwm.types import (
    BatchEnv,
    BatchState,
    Learner,
    Metrics,
    ModelState,
    PolicyLearner,
    PyTree,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Usual settings for a few dozen environments."""

    steps: int = 32  # T
    epochs: int = 10  # passes over what was collected
    minibatches: int = 8  # gradient steps per pass; must divide N T
    gamma: float = 0.99  # discount per step
    lambda_: float = 0.95  # mixing of the advantages; 1 is Monte Carlo
    clip: float = 0.2  # of the probability ratio
    entropy: float = 0.0  # weight of the policy's entropy, per nat
    value_weight: float = 0.5
    learning_rate: float = 1e-3
    decay_iterations: int | None = None  # over which the rate falls to 0; None: never
    max_grad_norm: float = 0.5
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    min_std: float = 1e-3  # smallest standard deviation of the policy
    init_std: float = 0.6
    scale_rewards: bool = True  # divide them by the spread of discounted returns

    def __post_init__(self):
        checks.finite(self)
        checks.at_least(1, self, "steps", "epochs", "minibatches")
        checks.fraction(self, "gamma", "lambda_")
        checks.positive(self, "clip", "learning_rate", "max_grad_norm")


TINY = Config(steps=4, epochs=2, minibatches=2, hidden=(8,))


class PPOState(NamedTuple):
    """Everything a run needs to continue, but its seed and its iteration."""

    model: ModelState  # params of "actor" and "critic"
    obs: stats.Moments  # normalises what both read
    returns: stats.Moments  # of discounted returns, whose spread divides rewards
    running: Float[Array, " N"]  # discounted return of each environment so far
    env: BatchState


def ppo(
    env: BatchEnv,
    config: Config,
    *,
    actor: nn.Module | None = None,
    critic: nn.Module | None = None,
    auxiliary: Callable | None = None,
    critic_obs: Callable = lambda obs: obs,
) -> PolicyLearner:
    """Builds the pure functions.

    Args:
        env: N environments with automatic reset.
        config: settings.
        actor: maps normalised observations to a distribution of actions in units where
            the bounds are -1 and 1; None is `nn.Actor`.
        critic: maps normalised observations to a value; None is `nn.Critic`.
        auxiliary: `(params, normalised obs [B, O]) -> scalar`, added to the loss.
        critic_obs: what the critic reads of an observation (normalised), for critics
            that know more, or less, than the actor.

    Raises:
        ValueError: if the minibatches do not divide N T, and for observations or
            actions that are not flat vectors of numbers.
    """
    num_rows = env.num_envs * config.steps
    if num_rows % config.minibatches:
        raise ValueError(
            f"minibatches must divide the {num_rows} steps of an iteration "
            f"({env.num_envs} environments x {config.steps}), got "
            f"{config.minibatches}."
        )
    obs_size, act_size = env.spec.flat_sizes("ppo")
    low, high = jnp.asarray(env.spec.action.low), jnp.asarray(env.spec.action.high)
    middle, half = (high + low) / 2, (high - low) / 2
    actor = actor or Actor(
        act_size,
        config.hidden,
        config.activation,
        min_std=config.min_std,
        init_std=config.init_std,
    )
    critic = critic or Critic(config.hidden, config.activation)
    rate = config.learning_rate
    if config.decay_iterations is not None:
        updates = config.decay_iterations * config.epochs * config.minibatches
        rate = optax.linear_schedule(rate, 0.0, updates)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate, eps=1e-5)
    )

    def init(key: Key[Array, ""]) -> PPOState:
        actor_key, critic_key, env_key = jax.random.split(key, 3)
        blank = jnp.zeros(obs_size)
        params = {
            "actor": actor.init(actor_key, blank),
            "critic": critic.init(critic_key, critic_obs(blank)),
        }
        env_state = env.reset(env_key)
        return tree.strong(
            PPOState(
                optimise.init_state(optimiser, params),
                # Start states may not differ in some entries: nothing to divide by yet.
                stats.moments(obs_size),
                stats.moments(1),
                jnp.zeros(env.num_envs),
                env_state,
            )
        )

    def value(params, obs):
        return critic.apply(params["critic"], critic_obs(obs))

    def collect(key, state: PPOState):
        def act(key, env_state):
            act_key, env_key = jax.random.split(key)
            obs = jax.vmap(lambda o: stats.normalise(state.obs, o))(env_state.env.obs)
            dist = jax.vmap(lambda o: actor.apply(state.model.params["actor"], o))(obs)
            keys = loop.fold_in_each(act_key, env.num_envs)
            action = jax.vmap(lambda d, k: d.sample(k))(dist, keys)
            log_prob = jax.vmap(lambda d, a: d.log_prob(a))(dist, action)
            clipped = middle + half * jnp.clip(action, -1, 1)
            new, final_obs = env.step(env_key, env_state, clipped)
            row = {
                "raw": env_state.env.obs,
                "obs": obs,
                "action": action,
                "log_prob": log_prob,
                "reward": new.env.reward,
                "discount": new.env.discount,
                "truncated": new.env.truncated,
                "next_obs": jax.vmap(lambda o: stats.normalise(state.obs, o))(
                    final_obs
                ),
            }
            return new, row

        return loop.unroll(key, state.env, act, config.steps)

    def scaled(state: PPOState, rows):
        """Rewards over the spread of discounted returns, and its statistics."""
        if not config.scale_rewards:
            return rows["reward"], state.returns, state.running

        def accumulate(running, row):
            reward, goes_on = row
            running = config.gamma * running + reward
            return running * goes_on, running

        goes_on = rows["discount"] * ~rows["truncated"]
        running, seen = jax.lax.scan(
            accumulate, state.running, (rows["reward"].T, goes_on.T)
        )
        moments = stats.update_moments(state.returns, seen.reshape(-1, 1))
        return rows["reward"] / stats.scale(moments)[0], moments, running

    def advantages(params, reward, row):
        """Advantage and target of one environment's steps `[T]`."""
        before = jax.vmap(lambda o: value(params, o))(row["obs"])
        after = jax.vmap(lambda o: value(params, o))(row["next_obs"])
        mixing = config.lambda_ * ~row["truncated"]
        discount = config.gamma * row["discount"]
        advantage = rl.gae(reward, discount, before, after, mixing)
        return advantage, advantage + before, before

    def loss(params, batch):
        dist = jax.vmap(lambda o: actor.apply(params["actor"], o))(batch["obs"])
        log_prob = jax.vmap(lambda d, a: d.log_prob(a))(dist, batch["action"])
        gain = rl.clipped_gain(
            log_prob - batch["log_prob"],
            rl.normalise_advantage(batch["advantage"]),
            config.clip,
        )
        entropy = jax.vmap(lambda d: d.entropy())(dist)
        critic_loss = jnp.mean(
            rl.value_loss(
                jax.vmap(lambda o: value(params, o))(batch["obs"]), batch["target"]
            )
        )
        actor_loss = rl.actor_loss(gain, entropy, jnp.ones_like(gain), config.entropy)
        total = actor_loss + config.value_weight * critic_loss
        if auxiliary is not None:
            total = total + auxiliary(params, batch["obs"])
        metrics = {
            "actor/loss": actor_loss,
            "actor/entropy": jnp.mean(entropy),
            "actor/kl": jnp.mean(batch["log_prob"] - log_prob),
            "critic/loss": critic_loss,
        }
        return total, ((), metrics)

    def step(
        key: Key[Array, ""], state: PPOState, iteration: Int[Array, ""]
    ) -> tuple[PPOState, Metrics]:
        del iteration  # the optimiser counts for itself
        collect_key, shuffle_key = jax.random.split(key)
        env_state, rows = collect(collect_key, state)
        reward, returns, running = scaled(state, rows)
        advantage, target, old = jax.vmap(advantages, (None, 0, 0))(
            state.model.params, reward, rows
        )
        learnt = {k: rows[k] for k in ("obs", "action", "log_prob")}
        flat = jax.tree.map(
            lambda x: x.reshape(num_rows, *x.shape[2:]),
            {**learnt, "advantage": advantage, "target": target},
        )

        def epoch(model, i):
            order = jax.random.permutation(jax.random.fold_in(shuffle_key, i), num_rows)
            order = order.reshape(config.minibatches, -1)

            def update(model, index):
                batch = shard.split(jax.tree.map(lambda x: x[index], flat))
                return optimise.gradient_step(
                    loss, optimiser, model, batch, has_aux=True
                )

            return jax.lax.scan(update, model, order)

        model, metrics = jax.lax.scan(epoch, state.model, jnp.arange(config.epochs))
        metrics = stats.mean_metrics(metrics)
        explained = jnp.var(target - old) / jnp.maximum(jnp.var(target), 1e-8)
        metrics |= {
            "critic/explained": 1 - explained,
            "collect/reward": jnp.mean(rows["reward"]),
            "collect/finite": tree.all_finite(rows["reward"]).astype(jnp.float32),
        }
        raw = rows["raw"].reshape(num_rows, obs_size)
        new = PPOState(
            model, stats.update_moments(state.obs, raw), returns, running, env_state
        )
        return new, metrics

    def act(key, state: PPOState, obs: PyTree, explore) -> Array:
        normed = stats.normalise(state.obs, obs)
        dist = actor.apply(state.model.params["actor"], normed)
        action = jnp.where(explore, dist.sample(key), dist.mean)
        return middle + half * jnp.clip(action, -1, 1)

    def axes(state: PPOState) -> PPOState:
        return tree.fill(state, -1)._replace(running=0, env=state.env.axes())

    return PolicyLearner(Learner(init, step, axes), act)
