"""Actor and critic that improve by derivatives through a world model's imagination.

For a model whose rollouts can be differentiated by their actions, the actor follows the
derivative of its own return; no action is scored after the fact.

    actor:  -mean_t w_t [G_t + eta entropy_t],  G the λ-returns that a slow critic ends
    critic: mean_t w_t (v_t - sg G_t)^2,        w_t the discount until then

Source: Hafner et al., "Dream to Control: Learning Behaviors by Latent Imagination"
(Dreamer), ICLR 2020; the slow critic is DreamerV2's (2021), which names this case
rho = 0.
Shapes: M states to start from, H imagined steps, F feature, A action.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxwm import nn, rl
from jaxwm.core import checks, loop, optimise, tree
from jaxwm.types import Metrics, ModelState, Policy, PyTree, WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Minutes on two CPU cores."""

    horizon: int = 15  # H
    batch: int = 64  # imagined trajectories per update
    gamma: float = 0.97  # discount per step
    lambda_: float = 0.95  # mixing of the returns; 1 is Monte Carlo
    entropy: float = 1e-4  # weight of the policy's entropy, per nat
    slow: float = 0.02  # share of the critic that its slow copy takes per update
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    max_grad_norm: float = 100.0

    def __post_init__(self):
        checks.finite(self)
        if self.horizon < 2:
            raise ValueError(
                f"horizon must be at least 2 steps, got {self.horizon}; returns end "
                "with a value."
            )
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}.")
        for name in ("gamma", "lambda_", "slow"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}.")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")


TINY = Config(horizon=3, batch=4, hidden=(8,))


class Behaviour(NamedTuple):
    """Pure functions of an actor and its critic.

    init:    (key) -> ModelState, the buffers are the slow critic
    improve: (key, state, model state, memories [M, ...]) -> (state, metrics): one
             update on trajectories imagined from some of the memories
    policy:  (state) -> Policy on features
    """

    init: Callable
    improve: Callable
    policy: Callable


def behaviour(world_model: WorldModel, config: Config) -> Behaviour:
    """Builds the functions for a world model; the model itself is not changed.

    Args:
        world_model: needs the abilities "policy", "reward" and "gradient"; its features
            should be of order one.
        config: sizes and rates.

    Raises:
        ValueError: if the model lacks an ability, naming it.
    """
    checks.require(world_model, "policy", "reward", "gradient", who="behaviour")
    spec = world_model.spec
    actor = nn.SquashedActor(spec.action.size, config.hidden, "silu", layer_norm=True)
    critic = nn.Critic(config.hidden, "silu", layer_norm=True)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(config.learning_rate),
    )

    def init(key: Key[Array, ""]) -> ModelState:
        actor_key, critic_key = jax.random.split(key)
        feature = jnp.zeros(spec.feature_size)
        params = {
            "actor": actor.init(actor_key, feature),
            "critic": critic.init(critic_key, feature),
        }
        return optimise.init_state(optimiser, params, params["critic"])

    def loss(params, slow, key, model_state: ModelState, memory: PyTree):
        """Of one imagined trajectory."""
        stop = jax.lax.stop_gradient
        rollout = world_model.imagine(
            key, model_state, memory, _policy(params), config.horizon
        )
        discount = config.gamma * rollout.discount[:-1]
        returns = rl.lambda_returns(
            rollout.reward[:-1],
            discount,
            critic.apply(slow, rollout.feature[1:]),
            config.lambda_,
        )
        weight, feature = stop(rl.survival(discount)), stop(rollout.feature[:-1])
        entropy = actor.apply(params["actor"], feature).entropy()
        error = (critic.apply(params["critic"], feature) - stop(returns)) ** 2
        gain = jnp.mean(weight * (returns + config.entropy * entropy))
        error = jnp.mean(weight * error)
        return error - gain, {
            "critic": error,
            "imagined/reward": jnp.mean(rollout.reward),
            "entropy": jnp.mean(entropy),
        }

    def improve(
        key: Key[Array, ""], state: ModelState, model_state: ModelState, memory: PyTree
    ) -> tuple[ModelState, Metrics]:
        draw_key, imagine_key = jax.random.split(key)
        num = jax.tree.leaves(memory)[0].shape[0]
        chosen = jax.random.randint(draw_key, (config.batch,), 0, num)
        memory = jax.tree.map(lambda x: x[chosen], memory)
        keys = loop.fold_in_each(imagine_key, config.batch)

        def mean_loss(params, slow):
            values, metrics = jax.vmap(loss, (None, None, 0, None, 0))(
                params, slow, keys, model_state, memory
            )
            return jnp.mean(values), (slow, jax.tree.map(jnp.mean, metrics))

        state, metrics = optimise.gradient_step(
            mean_loss, optimiser, state, state.buffers, has_aux=True
        )
        slow = tree.ema(state.buffers, state.params["critic"], 1 - config.slow)
        return state._replace(buffers=slow), metrics

    def _policy(params) -> Policy:
        return lambda feature: actor.apply(params["actor"], feature)

    return Behaviour(init, improve, lambda state: _policy(state.params))
