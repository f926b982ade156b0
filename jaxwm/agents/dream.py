"""Actor-critic that learns inside a world model's imagination.

One round fits the model to replayed windows, imagines a batch of trajectories from
replayed states under the current policy, and improves critic and actor on them.

Source: advantage actor-critic on imagined on-policy trajectories as in Rigter et al.,
"World Models via Policy-Guided Trajectory Diffusion", TMLR 2024, section 4; the clipped
ratio is Schulman et al., "Proximal Policy Optimization Algorithms", 2017.
Shapes: B imagined trajectories, H steps each, F feature, A action.
Departs: the paper limits the actor's step by a line search on the change of its
log-probabilities (`actor_step="trust_region"`); the default takes several clipped
steps on each imagined batch, which needs fewer imagined batches.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxwm import nn, rl
from jaxwm.core import checks, optimise, stats, tree
from jaxwm.types import Agent, Metrics, ModelState, PyTree, Rollout, WorldModel

Count = int | Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults of the reduced setting; `PAPER` is the published one."""

    horizon: int = 10  # H, steps per imagined trajectory
    fits: int = 16  # model updates per round
    fit_batch: int = 256  # windows per model update
    imagine_batch: int = 256  # B, imagined trajectories per round
    epochs: int = 4  # gradient steps on each imagined batch
    gamma: float = 0.97  # discount per step
    lambda_: float = 0.9  # mixing of the returns; 1 is Monte Carlo
    entropy: float = 1e-3  # weight of the policy's entropy, per nat
    actor_step: Literal["clip", "trust_region"] = "clip"
    clip_ratio: float = 0.2  # of the probability ratio ("clip")
    target_update: float = 0.01  # mean |change of log-probability| ("trust_region")
    actor_lr: float = 3e-4
    critic_lr: float = 1e-3
    # Rounds over which both rates fall to a tenth; None: never. -1 stands for the
    # whole run, which `presets.sized` puts in.
    decay_rounds: int | None = None
    weight_decay: float = 0.0
    max_grad_norm: float = 0.5
    target_decay: float = 0.95  # of the slow critic that bootstraps, per round
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    layer_norm: bool = False
    min_std: float = 0.1  # smallest standard deviation of the policy
    init_std: float = 0.6
    normalise: bool = True  # features for actor and critic, rewards for the critic

    def __post_init__(self):
        checks.finite(self)
        if self.horizon < 2:
            raise ValueError(
                f"horizon must be at least 2 steps, got {self.horizon}; advantages "
                "compare two steps."
            )
        if self.actor_step not in ("clip", "trust_region"):
            raise ValueError(
                f'actor_step must be "clip" or "trust_region", got {self.actor_step!r}.'
            )
        if self.decay_rounds is not None and self.actor_step == "trust_region":
            raise ValueError(
                f"decay_rounds must be None, got {self.decay_rounds}: the trust region "
                "adapts the actor's rate itself."
            )
        for name in ("gamma", "lambda_", "target_decay"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}.")
        for name in ("fits", "fit_batch", "imagine_batch", "epochs"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in ("actor_lr", "critic_lr", "max_grad_norm", "min_std", "init_std"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")


PAPER = Config(
    fits=4,
    imagine_batch=1024,
    epochs=1,
    gamma=0.99,
    entropy=1e-5,
    actor_step="trust_region",
    actor_lr=3e-5,
    critic_lr=3e-4,
    weight_decay=0.01,
    max_grad_norm=0.1,
    target_decay=0.995,
    hidden=(256, 256),
    activation="elu",
    layer_norm=True,
    init_std=1.0,
    normalise=False,
)
TINY = Config(horizon=4, fits=1, fit_batch=8, imagine_batch=8, epochs=1, hidden=(8,))


class DreamState(NamedTuple):
    """Everything the agent has learnt."""

    model: ModelState
    actor: ModelState  # buffers: the adapted learning rate of "trust_region"
    critic: ModelState  # buffers: the slow copy that bootstraps
    features: stats.Moments  # of real features
    rewards: stats.Moments  # of real rewards


class Batch(NamedTuple):
    """What an imagined batch asks of actor and critic; N = B (H - 1) steps."""

    feature: Float[Array, "N F"]  # normalised
    action: Float[Array, "N A"]
    log_prob: Float[Array, " N"]  # under the policy that acted
    advantage: Float[Array, " N"]  # normalised over the batch
    target: Float[Array, " N"]
    weight: Float[Array, " N"]  # probability that the episode still runs


def dream(world_model: WorldModel, config: Config) -> Agent:
    """Builds the agent's pure functions from any world model that imagines rewards.

    Args:
        world_model: needs the abilities "policy" and "reward".
        config: sizes and rates.

    Raises:
        ValueError: if the model lacks an ability, naming it.
    """
    checks.require(world_model, "policy", "reward", who="imagination agent")
    spec = world_model.spec
    actor = nn.Actor(
        spec.action.size,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        min_std=config.min_std,
        init_std=config.init_std,
    )
    critic = nn.Critic(
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
    )

    def optimiser(learning_rate):
        if config.decay_rounds is not None:
            learning_rate = optax.cosine_decay_schedule(
                learning_rate, config.decay_rounds * config.epochs, alpha=0.1
            )
        return optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm),
            optax.adamw(learning_rate, weight_decay=config.weight_decay),
        )

    actor_optimiser = optimiser(config.actor_lr)
    critic_optimiser = optimiser(config.critic_lr)

    def init(key: Key[Array, ""]) -> DreamState:
        model_key, actor_key, critic_key = jax.random.split(key, 3)
        feature = jnp.zeros(spec.feature_size)
        searched = config.actor_step == "trust_region"
        rate = rl.trust_region(config.actor_lr) if searched else ()
        actor_params = actor.init(actor_key, feature)
        critic_params = critic.init(critic_key, feature)
        return DreamState(
            world_model.init(model_key),
            optimise.init_state(actor_optimiser, actor_params, rate),
            optimise.init_state(critic_optimiser, critic_params, critic_params),
            stats.moments(spec.feature_size, floor=1e-3),
            stats.moments(1, floor=1e-3),
        )

    def policy(state: DreamState, params: PyTree | None = None):
        """The policy as a function of raw features."""
        params = state.actor.params if params is None else params
        return lambda feature: actor.apply(
            params, stats.normalise(state.features, feature)
        )

    def reward_scale(state: DreamState):
        """Divides rewards so that returns are of order one, whatever the task."""
        r = state.rewards
        mean_square = r.m2[0] / jnp.maximum(r.count, 1.0) + r.mean[0] ** 2
        rms = jnp.sqrt(jnp.maximum(mean_square, 1e-12))
        effective_horizon = 1 / (1 - min(config.gamma, 0.99))
        scale = 10 / (rms * effective_horizon)
        return jnp.where((r.count > 0) & config.normalise, scale, 1.0)

    def adapt(state: DreamState, transitions) -> DreamState:
        features, rewards = state.features, state.rewards
        if config.normalise:
            # Features of Markov models are observations; latent ones are near unit
            # scale by construction and are left alone.
            if transitions.obs.shape[-1] == spec.feature_size:
                features = stats.update_moments(features, transitions.obs)
            rewards = stats.update_moments(rewards, transitions.reward[:, None])
        model = world_model.adapt(state.model, transitions)
        return state._replace(model=model, features=features, rewards=rewards)

    def fit(
        key: Key[Array, ""], state: DreamState, sample
    ) -> tuple[DreamState, Metrics]:
        sample_key, fit_key = jax.random.split(key)
        windows = sample(sample_key, config.fit_batch)
        model, metrics = world_model.fit(fit_key, state.model, windows)
        metrics = {f"model/{name}": value for name, value in metrics.items()}
        return state._replace(model=model), metrics

    def start(key, model: ModelState, window) -> PyTree:
        """Memory after the context rows of a replayed window."""
        num = max(1, spec.context)
        no_action = jnp.zeros_like(window.action[0])
        previous = jnp.concatenate([no_action[None], window.action[: num - 1]])

        def body(memory, row):
            i, obs, action = row
            step_key = jax.random.fold_in(key, i)
            memory = world_model.observe(step_key, model, memory, obs, action, i == 0)
            return memory, None

        obs = jax.tree.map(lambda x: x[:num], window.obs)
        rows = (jnp.arange(num), obs, previous)
        return jax.lax.scan(body, world_model.initial(model, None), rows)[0]

    def imagine(key: Key[Array, ""], state: DreamState, sample) -> Rollout:
        """A batch of trajectories `[B, H, ...]` under the current policy."""
        sample_key, start_key, imagine_key = jax.random.split(key, 3)
        windows = sample(sample_key, config.imagine_batch)
        keys = jax.random.split(start_key, config.imagine_batch)
        memory = jax.vmap(start, (0, None, 0))(keys, state.model, windows)
        keys = jax.random.split(imagine_key, config.imagine_batch)
        return jax.vmap(
            lambda key, memory: world_model.imagine(
                key, state.model, memory, policy(state), config.horizon
            )
        )(keys, memory)

    def judge(state: DreamState, rollout: Rollout) -> Batch:
        """Lambda-returns and advantages of imagined trajectories."""
        feature = stats.normalise(state.features, rollout.feature)
        reward = rollout.reward * reward_scale(state)
        value = jnp.asarray(critic.apply(state.critic.buffers, feature))
        target = jax.vmap(rl.lambda_returns, (0, 0, 0, None))(
            reward[:, :-1],
            config.gamma * rollout.discount[:, :-1],
            value[:, 1:],
            config.lambda_,
        )
        weight = jax.vmap(rl.survival)(rollout.discount[:, :-1])
        advantage = target - value[:, :-1]
        mean = jnp.sum(weight * advantage) / jnp.sum(weight)
        spread = jnp.sum(weight * (advantage - mean) ** 2) / jnp.sum(weight)
        batch = Batch(
            feature=feature[:, :-1],
            action=rollout.action[:, :-1],
            log_prob=weight,  # for now
            advantage=(advantage - mean) / (jnp.sqrt(spread) + 1e-6),
            target=target,
            weight=weight,
        )
        # One axis of steps: gradients of the weights are then plain matrix products.
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        return batch._replace(log_prob=log_probs(state.actor.params, batch)[0])

    def log_probs(params, batch: Batch):
        dist = actor.apply(params, batch.feature)
        return dist.log_prob(batch.action), dist.entropy()

    def actor_loss(params, batch: Batch):
        log_prob, entropy = log_probs(params, batch)
        if config.actor_step == "clip":
            gain = rl.clipped_gain(
                log_prob - batch.log_prob, batch.advantage, config.clip_ratio
            )
        else:
            gain = log_prob * batch.advantage
        return -jnp.mean(batch.weight * (gain + config.entropy * entropy))

    def critic_loss(params, batch: Batch):
        error = critic.apply(params, batch.feature) - batch.target
        return jnp.mean(batch.weight * 0.5 * error**2)

    def improve(state: DreamState, batch: Batch) -> tuple[DreamState, Metrics]:
        """Several gradient steps of actor and critic on one imagined batch."""

        def body(carry, _):
            actor_state, critic_state = carry
            if config.actor_step == "clip":
                actor_state, actor_metrics = optimise.gradient_step(
                    actor_loss, actor_optimiser, actor_state, batch
                )
            else:
                actor_state, actor_metrics = rl.trust_region_step(
                    actor_loss,
                    lambda params: log_probs(params, batch)[0],
                    actor_optimiser,
                    actor_state,
                    batch,
                    max_lr=config.actor_lr,
                    target=config.target_update,
                )
            critic_state, critic_metrics = optimise.gradient_step(
                critic_loss, critic_optimiser, critic_state, batch
            )
            return (actor_state, critic_state), (actor_metrics, critic_metrics)

        (actor_state, critic_state), (actor_metrics, critic_metrics) = jax.lax.scan(
            body, (state.actor, state.critic), None, config.epochs
        )
        slow = tree.ema(critic_state.buffers, critic_state.params, config.target_decay)
        log_prob, entropy = log_probs(actor_state.params, batch)
        metrics = {
            **{f"actor/{k}": jnp.mean(v) for k, v in actor_metrics.items()},
            **{f"critic/{k}": jnp.mean(v) for k, v in critic_metrics.items()},
            "actor/entropy": jnp.mean(entropy),
            "actor/log_prob_change": jnp.mean(jnp.abs(log_prob - batch.log_prob)),
        }
        return state._replace(
            actor=actor_state, critic=critic_state._replace(buffers=slow)
        ), metrics

    def step(
        key: Key[Array, ""], state: DreamState, sample, extra_fits: Count = 0
    ) -> tuple[DreamState, Metrics]:
        fit_key, imagine_key = jax.random.split(key)
        num_fits = config.fits + extra_fits

        def one_fit(i, state):
            return fit(jax.random.fold_in(fit_key, i), state, sample)

        def body(i, carry):
            state, total = carry
            state, metrics = one_fit(i, state)
            return state, jax.tree.map(jnp.add, total, metrics)

        shapes = jax.eval_shape(one_fit, jnp.zeros((), jnp.int32), state)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        state, total = jax.lax.fori_loop(0, num_fits, body, (state, zeros))
        fit_metrics = jax.tree.map(lambda x: x / num_fits, total)
        rollout = jax.lax.stop_gradient(imagine(imagine_key, state, sample))
        batch = judge(state, rollout)
        z = on_policy_scores(policy(state), rollout)
        state, metrics = improve(state, batch)
        state = state._replace(model=world_model.tune(state.model, rollout))
        return state, {
            **fit_metrics,
            **metrics,
            "imagined/reward": jnp.mean(rollout.reward),
            "imagined/discount": jnp.mean(rollout.discount),
            "imagined/z_mean": jnp.mean(z),
            "imagined/z_std": jnp.std(z),
            "imagined/return": jnp.mean(batch.target) / reward_scale(state),
        }

    def begin(state: DreamState) -> PyTree:
        if not hasattr(spec.action, "size"):
            raise ValueError(f"dream needs continuous actions, got {spec.action}.")
        return world_model.initial(state.model, None), jnp.zeros(spec.action.size)

    def act(key, state: DreamState, memory, obs, is_first, explore):
        observe_key, sample_key = jax.random.split(key)
        model_memory, previous = memory
        model_memory = world_model.observe(
            observe_key, state.model, model_memory, obs, previous, is_first
        )
        dist = policy(state)(world_model.feature(state.model, model_memory))
        action = jnp.where(explore, dist.sample(sample_key), dist.mean)
        low, high = jnp.asarray(spec.action.low), jnp.asarray(spec.action.high)
        action = jnp.clip(action, low, high)
        return action, (model_memory, action)

    return Agent(init, adapt, step, begin, act, policy)


def on_policy_scores(policy, rollout: Rollout) -> Float[Array, "B T A"]:
    """`z = (a - mean(s)) / stddev(s)` of imagined actions, all but the last step.

    Standard normal where imagination is on-policy.
    """
    feature, action = rollout.feature[:, :-1], rollout.action[:, :-1]
    dist = jax.vmap(jax.vmap(policy))(feature)
    return (action - dist.mean) / dist.stddev
