"""Short-horizon actor-critic: policy gradients through a differentiable simulator.

    J = E[ sum_{t < H} gamma^t r_t + gamma^H V(x_H) ] / H

is differentiated through H steps of the environment itself; a critic that is fitted to
TD(lambda) targets stands for what comes later. Windows follow each other along the
episodes, the state being carried over and the gradient being cut. An episode that ends
inside a window ends its sum there (with the value of its true last observation at a
time limit, with nothing at a termination), and a new sum begins.

Without a critic this is analytic policy gradient, `apg`; with a window as long as the
episode, back-propagation through time, `bptt`.

Source: Xu et al., "Accelerated Policy Learning with Parallel Differentiable
Simulation", ICLR 2022; Freeman et al., "Brax", NeurIPS 2021 (`apg`).
Shapes: N environments, H steps of a window, O observation, A action.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jaxwm import rl
from jaxwm.core import checks, loop, optimise, stats, tree
from jaxwm.nn import Critic, SquashedActor
from jaxwm.types import (
    BatchEnv,
    BatchState,
    Learner,
    Metrics,
    ModelState,
    Params,
    PolicyLearner,
    PyTree,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings for 64 environments of the size of a cart-pole."""

    horizon: int = 32  # H
    bootstrap: bool = True  # a critic behind the window
    gamma: float = 0.99  # discount per step
    lambda_: float = 0.95  # mixing of the critic's targets
    actor_lr: float = 2e-3
    critic_lr: float = 2e-3
    decay_iterations: int | None = None  # over which both fall to 0; None: never
    max_grad_norm: float = 1.0  # of the actor
    critic_epochs: int = 16
    critic_minibatches: int = 4
    target_decay: float = 0.2  # of the slow critic, per iteration
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "elu"
    init_std: float = 0.4
    normalise: bool = True  # observations by their running statistics
    reward_scale: float = 1.0  # so that values are of the order of 1 to 10

    def __post_init__(self):
        checks.finite(self)
        checks.at_least(1, self, "horizon", "critic_epochs", "critic_minibatches")
        checks.fraction(self, "gamma", "lambda_", "target_decay")
        checks.positive(
            self, "actor_lr", "critic_lr", "max_grad_norm", "init_std", "reward_scale"
        )


TINY = Config(horizon=4, critic_epochs=1, critic_minibatches=1, hidden=(8,))


class SHACState(NamedTuple):
    """Everything a run needs to continue, but its seed and its iteration."""

    actor: ModelState
    critic: ModelState
    target: Params  # of the slow critic
    obs: stats.Moments  # normalises what both read; frozen within a window
    env: BatchState


def shac(env: BatchEnv, config: Config) -> PolicyLearner:
    """Builds the pure functions.

    Args:
        env: N environments whose step can be differentiated in reverse mode: pure JAX,
            or MuJoCo by `mjx` where nothing is constrained.
        config: settings.

    Raises:
        ValueError: if the critic's minibatches do not divide N H, and for observations
            or actions that are not flat vectors of numbers.
    """
    num_rows = env.num_envs * config.horizon
    if config.bootstrap and num_rows % config.critic_minibatches:
        raise ValueError(
            f"critic_minibatches must divide the {num_rows} steps of a window "
            f"({env.num_envs} environments x {config.horizon}), got "
            f"{config.critic_minibatches}."
        )
    obs_size, act_size = env.spec.flat_sizes("shac")
    low, high = jnp.asarray(env.spec.action.low), jnp.asarray(env.spec.action.high)
    middle, half = (high + low) / 2, (high - low) / 2
    actor = SquashedActor(
        act_size, config.hidden, config.activation, init_std=config.init_std
    )
    critic = Critic(config.hidden, config.activation)

    def adam(rate, *before, updates=1):
        if config.decay_iterations is not None:
            rate = optax.linear_schedule(rate, 0.0, config.decay_iterations * updates)
        return optax.chain(*before, optax.adam(rate, b1=0.7, b2=0.95))

    actor_optimiser = adam(
        config.actor_lr, optax.clip_by_global_norm(config.max_grad_norm)
    )
    critic_optimiser = adam(
        config.critic_lr,
        optax.clip_by_global_norm(config.max_grad_norm),
        updates=config.critic_epochs * config.critic_minibatches,
    )

    def init(key: Key[Array, ""]) -> SHACState:
        actor_key, critic_key, env_key = jax.random.split(key, 3)
        blank = jnp.zeros(obs_size)
        env_state = env.reset(env_key)
        critic_params = critic.init(critic_key, blank)
        state = SHACState(
            optimise.init_state(actor_optimiser, actor.init(actor_key, blank)),
            optimise.init_state(critic_optimiser, critic_params),
            critic_params,
            # Start states may not differ in some entries: nothing to divide by yet.
            stats.moments(obs_size),
            env_state,
        )
        return tree.strong(state)

    def value(params, normed):
        """Values `[...]` of normalised observations; 0 where one is not finite."""
        if not config.bootstrap:
            return jnp.zeros(normed.shape[:-1])
        usable = jnp.all(jnp.isfinite(normed) & (jnp.abs(normed) < 1e6), -1)
        safe = jnp.where(usable[..., None], normed, 0.0)
        return jnp.where(usable, critic.apply(params, safe), 0.0)

    def window(params, key, state: SHACState):
        """Minus the objective, and the steps `[N, H, ...]` that it was made of."""
        normalise = jax.vmap(lambda obs: stats.normalise(state.obs, obs))

        def act(key, carry):
            env_state, weight, total = carry
            act_key, env_key = jax.random.split(key)
            normed = normalise(env_state.env.obs)
            keys = loop.fold_in_each(act_key, env.num_envs)
            action = jax.vmap(lambda o, k: actor.apply(params, o).sample(k))(
                normed, keys
            )
            new, final_obs = env.step(env_key, env_state, middle + half * action)
            reached = normalise(final_obs)
            ended = (new.env.discount == 0) | new.env.truncated
            later = config.gamma * new.env.discount * value(state.target, reached)
            reward = config.reward_scale * new.env.reward
            total = total + weight * (reward + jnp.where(ended, later, 0.0))
            weight = jnp.where(ended, 1.0, config.gamma * weight)
            row = {
                "obs": normed,
                "raw": env_state.env.obs,
                "reached": reached,
                "reward": reward,
                "discount": new.env.discount,
                "truncated": new.env.truncated,
                "action": action,
            }
            return (new, weight, total), row

        blank = jnp.zeros(env.num_envs)
        start = jax.lax.stop_gradient(state.env)
        carry = (start, blank + 1, blank)
        (env_state, weight, total), rows = loop.unroll(key, carry, act, config.horizon)
        ended = (rows["discount"][:, -1] == 0) | rows["truncated"][:, -1]
        last = weight * value(state.target, rows["reached"][:, -1])
        total = total + jnp.where(ended, 0.0, last)
        return -jnp.mean(total) / config.horizon, (env_state, rows)

    def improve_actor(key, state: SHACState):
        (loss, (env_state, rows)), grads = jax.value_and_grad(window, has_aux=True)(
            state.actor.params, key, state
        )
        norm = optax.tree.norm(grads)
        updates, opt_state = actor_optimiser.update(
            grads, state.actor.opt_state, state.actor.params
        )
        new = ModelState(
            optax.apply_updates(state.actor.params, updates), (), opt_state
        )
        # One exploded window is skipped, and counted, instead of ending the run.
        finite = jnp.isfinite(norm)
        new = tree.where(finite, new, state.actor)
        metrics = {
            "actor/loss": loss,
            "actor/grad_norm": jnp.where(finite, norm, 0.0),
            "actor/skipped": 1.0 - finite,
            "actor/saturated": jnp.mean(jnp.abs(rows["action"]) > 0.99),
            "actor/no_gradient": jnp.where(norm == 0, 1.0, 0.0),
        }
        return new, env_state, jax.lax.stop_gradient(rows), metrics

    def improve_critic(key, state: SHACState, rows):
        def targets(row):
            values = value(state.target, row["reached"])
            mixing = config.lambda_ * ~row["truncated"]
            discount = config.gamma * row["discount"]
            return rl.lambda_returns(row["reward"], discount, values, mixing)

        target = jax.vmap(targets)(rows)
        flat = rows["obs"].reshape(num_rows, obs_size), target.reshape(num_rows)

        def loss(params, obs, target):
            return jnp.mean(rl.value_loss(critic.apply(params, obs), target))

        def epoch(model, i):
            order = jax.random.permutation(jax.random.fold_in(key, i), num_rows)

            def update(model, index):
                batch = jax.tree.map(lambda x: x[index], flat)
                return optimise.gradient_step(loss, critic_optimiser, model, *batch)

            return jax.lax.scan(
                update, model, order.reshape(config.critic_minibatches, -1)
            )

        epochs = jnp.arange(config.critic_epochs)
        model, metrics = jax.lax.scan(epoch, state.critic, epochs)
        metrics = stats.mean_metrics(metrics)
        slow = tree.ema(state.target, model.params, config.target_decay)
        return model, slow, {f"critic/{name}": x for name, x in metrics.items()}

    def step(
        key: Key[Array, ""], state: SHACState, iteration: Int[Array, ""]
    ) -> tuple[SHACState, Metrics]:
        del iteration  # the optimisers count for themselves
        window_key, critic_key = jax.random.split(key)
        new_actor, env_state, rows, metrics = improve_actor(window_key, state)
        new_critic, slow = state.critic, state.target
        if config.bootstrap:
            new_critic, slow, more = improve_critic(critic_key, state, rows)
            metrics |= more
        metrics["collect/reward"] = jnp.mean(rows["reward"]) / config.reward_scale
        moments = state.obs
        if config.normalise:
            raw = rows["raw"].reshape(num_rows, obs_size)
            moments = stats.update_moments(moments, raw)
        return SHACState(new_actor, new_critic, slow, moments, env_state), metrics

    def act(key, state: SHACState, obs: PyTree, explore) -> Array:
        dist = actor.apply(state.actor.params, stats.normalise(state.obs, obs))
        action = jnp.where(explore, dist.sample(key), dist.mean)
        return middle + half * action

    def axes(state: SHACState) -> SHACState:
        return tree.fill(state, -1)._replace(env=state.env.axes())

    return PolicyLearner(Learner(init, step, axes), act)


def apg(env: BatchEnv, config: Config) -> PolicyLearner:
    """Analytic policy gradient: mean reward of short windows, nothing behind them.

        J = E[ sum_{t < H} r_t ] / H

    Args:
        env: as for `shac`.
        config: as for `shac`; `bootstrap` and `gamma` are set to False and 1.
    """
    return shac(env, dataclasses.replace(config, bootstrap=False, gamma=1.0))


def bptt(env: BatchEnv, config: Config) -> PolicyLearner:
    """Back-propagation through time: the gradient of whole episodes, without a critic.

        J = E[ sum_{t < T} gamma^t r_t ] / T,   T = the time limit

    Nothing cuts the gradient between the first step of an episode and its last.

    Args:
        env: as for `shac`.
        config: as for `shac`; `bootstrap` is set to False and `horizon` to T. An
            iteration takes N T steps: ask for fewer of them than of `shac`.
    """
    whole = env.spec.time_limit
    return shac(env, dataclasses.replace(config, bootstrap=False, horizon=whole))
