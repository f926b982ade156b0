"""Modular model: dynamics and reward are networks of their own, which part and join.

    s' = s + f(s, a),   r = g(s')

Either network can be taken from another model, and the dynamics can be held while the
reward is learnt. Both read raw units: statistics of the data would be knowledge that
comes along unseen.

Source: ours; the parts are those of Wulfmeier et al., "Foundations for Transfer in
Reinforcement Learning: A Taxonomy of Knowledge Modalities", 2023.
Shapes: O observation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxwm import nn
from jaxwm.core import checks, optimise, tree
from jaxwm.dynamics import rows
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.types import EnvSpec, ModelSpec, ModelState, Trajectory, WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Small: for tasks of few dimensions, whose units are near 1."""

    width: int = 32  # hidden units of both networks' two layers
    learning_rate: float = 3e-3

    def __post_init__(self):
        checks.finite(self)
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}.")
        if not self.learning_rate > 0:
            raise ValueError(
                f"learning_rate must be positive, got {self.learning_rate}."
            )


TINY = Config(width=4)


def modular(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds the model's pure functions; episodes never terminate in it.

    `params` are "dynamics" and "reward"; `buffers["frozen"]` 1 holds the dynamics as
    they are, 0 learns them.

    Raises:
        ValueError: for observations that are not one flat vector or discrete actions.
    """
    obs_size, action_size = spec.flat_sizes("the modular model")
    hidden = (config.width, config.width)
    dynamics, reward = nn.MLP((*hidden, obs_size), "silu"), nn.MLP((*hidden, 1), "silu")
    optimiser = optax.adam(config.learning_rate)

    def init(key: Key[Array, ""]) -> ModelState:
        dynamics_key, reward_key = jax.random.split(key)
        params = {
            "dynamics": dynamics.init(dynamics_key, jnp.zeros(obs_size + action_size)),
            "reward": reward.init(reward_key, jnp.zeros(obs_size)),
        }
        return optimise.init_state(optimiser, params, {"frozen": jnp.zeros(())})

    def loss(key, state: ModelState, window: Trajectory):
        """Squared errors of the change and of the reward of the state reached."""
        del key  # deterministic
        data, params = rows.transitions_of(window), state.params
        held = jax.lax.stop_gradient(params["dynamics"])
        moved = tree.where(state.buffers["frozen"] > 0, held, params["dynamics"])
        x = jnp.concatenate([data.obs, data.action], -1)
        change = dynamics.apply(moved, x) - (data.next_obs - data.obs)
        missed = reward.apply(params["reward"], data.next_obs)[:, 0] - data.reward
        error = data.valid @ (jnp.mean(change**2, -1) + missed**2)
        return error / len(data.valid), (state.buffers, {"error": error})

    def step(key, state: ModelState, obs, action) -> Step:
        del key  # deterministic
        x = jnp.concatenate([obs, action])
        after = obs + dynamics.apply(state.params["dynamics"], x)
        earned = reward.apply(state.params["reward"], after)[0]
        return Step(after, earned, jnp.ones(()), {})

    return from_step(
        ModelSpec(
            obs=spec.obs,
            action=spec.action,
            feature_size=obs_size,
            horizon=1,
            context=1,
            abilities=frozenset({"reward", "gradient"}),
            window=2,
            name="modular model",
        ),
        step,
        init=init,
        loss=loss,
        fit=optimise.fit(loss, optimiser),
    )
