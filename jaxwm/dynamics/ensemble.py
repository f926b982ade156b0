"""Probabilistic ensemble: several MLPs that predict the change of the observation.

Each member predicts a diagonal Gaussian over (change of observation, reward) and the
probability of termination. Every imagined step is drawn from one of the elites, the
members that predicted best, chosen anew at each step.

Source: Chua et al., "Deep Reinforcement Learning in a Handful of Trials using
Probabilistic Dynamics Models" (PETS), NeurIPS 2018; elites and sizes of `PAPER` from
Janner et al., "When to Trust Your Model" (MBPO), NeurIPS 2019. The loss's variance
weighting is Seitzer et al., "On the Pitfalls of Heteroscedastic Uncertainty Estimation
with Probabilistic Neural Networks", ICLR 2022.
Departs: members are ranked by a running mean of the squared error on each batch before
it is learnt, not on a hold-out set; targets are normalised; one weight decay serves all
layers; terminations are learnt.
Shapes: K members, E elites, N transitions, O observation, A action.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm import nn
from jaxwm.core import checks, optimise, stats
from jaxwm.dynamics import rows
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.types import (
    EnvSpec,
    ModelSpec,
    ModelState,
    Params,
    Trajectory,
    Transition,
    WorldModel,
)

_SCORE_DECAY = 0.99  # of the running squared error that ranks the members
_BOUND_WEIGHT = 0.01  # of the loss that keeps the learnt bounds of log-variances tight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores. `PAPER` is MBPO's."""

    members: int = 7  # K
    elites: int = 5  # E, members that imagine
    width: int = 128  # hidden units per layer
    depth: int = 2  # hidden layers
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # L2, added to the gradient
    beta: float = 0.5  # 0: likelihood; 1: the mean is learnt as by squared error
    ema: float = 0.995  # decay of the weights that imagine; 0: the trained ones

    def __post_init__(self):
        checks.finite(self)
        if not 1 <= self.elites <= self.members:
            raise ValueError(
                f"elites must be between 1 and members = {self.members}, got "
                f"{self.elites}."
            )
        for name in ("width", "depth"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.learning_rate <= 0:
            raise ValueError(
                f"learning_rate must be positive, got {self.learning_rate}."
            )
        if self.weight_decay < 0:
            raise ValueError(
                f"weight_decay must not be negative, got {self.weight_decay}."
            )
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {self.beta}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}.")


PAPER = Config(width=200, depth=4, weight_decay=5e-5, beta=0.0, ema=0.0)
TINY = Config(members=3, elites=2, width=16, depth=1)


def ensemble(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds the ensemble's pure functions for an environment of the given sizes.

    `info` of its rollouts, per step: `disagreement`, the spread of the elites' mean
    next observation (in standard deviations of the real change, mean over O), and
    `log_prob`, the log-density of the drawn (next observation, reward) under the
    elites' mixture, in raw units.

    Raises:
        ValueError: for observations that are not one flat vector or discrete actions.
    """
    obs_size, action_size = spec.flat_sizes("the ensemble")
    target_size = obs_size + 1  # (change of obs, reward), both Gaussian
    network = nn.MLP(
        (*[config.width] * config.depth, 2 * target_size + 1), activation="silu"
    )
    optimiser = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.adam(config.learning_rate),
    )

    def init(key: Key[Array, ""]) -> ModelState:
        def member(key):
            return {
                "mlp": network.init(key, jnp.zeros(obs_size + action_size)),
                "max_log_var": jnp.full(target_size, 0.5),
                "min_log_var": jnp.full(target_size, -10.0),
            }

        params = jax.vmap(member)(jax.random.split(key, config.members))
        buffers = {
            "statistics": rows.no_statistics(obs_size, action_size),
            "score": jnp.zeros(config.members),
            "ema": params,
            "updates": jnp.zeros((), jnp.int32),
        }
        return optimise.init_state(optimiser, params, buffers)

    def predict(member: Params, x: Float[Array, "... I"]):
        """Mean and log-variance `[..., O + 1]`, logit of termination; one member's."""
        out = network.apply(member["mlp"], x)
        mean, log_var, logit = jnp.split(out, [target_size, 2 * target_size], -1)
        high, low = member["max_log_var"], member["min_log_var"]
        log_var = high - jax.nn.softplus(high - log_var)
        log_var = low + jax.nn.softplus(log_var - low)
        return mean, log_var, logit[..., 0]

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        """Sum of the members' likelihood losses; `key` weighs the steps per member.

        Exponential weights, drawn for each member by itself, give every member a
        differently weighted batch, as the sources get by drawing batches per member.
        """
        data, statistics = rows.transitions_of(window), state.buffers["statistics"]
        x = rows.encode(statistics, data.obs, data.action, spec.action)
        y = rows.encode_target(statistics, data)
        num = jnp.maximum(jnp.sum(data.valid), 1.0)

        def mean(values: Float[Array, " N"]) -> Float[Array, ""]:
            return jnp.sum(data.valid * values) / num

        def member_loss(key, member):
            mu, log_var, logit = predict(member, x)
            error = (mu - y) ** 2
            nll = 0.5 * (error * jnp.exp(-log_var) + log_var)
            # Small variances would otherwise take all the weight from large errors.
            tempered = nll * jax.lax.stop_gradient(jnp.exp(config.beta * log_var))
            ends = optax.sigmoid_binary_cross_entropy(logit, 1 - data.discount)
            weight = data.valid * jax.random.exponential(key, data.valid.shape)
            # Over all rows, also padding: each real step counts the same in a batch.
            fit = jnp.mean(weight * (jnp.mean(tempered, -1) + ends))
            bounds = jnp.sum(member["max_log_var"] - member["min_log_var"])
            plain = mean(jnp.mean(error, -1)), mean(jnp.mean(nll, -1)), mean(ends)
            return fit + _BOUND_WEIGHT * bounds, plain

        keys = jax.random.split(key, config.members)
        losses, (error, nll, ends) = jax.vmap(member_loss)(keys, state.params)
        old = state.buffers["score"]
        score = old + (1 - _SCORE_DECAY) * (jax.lax.stop_gradient(error) - old)
        metrics = {
            "mse": jnp.mean(error),
            "nll": jnp.mean(nll),
            "termination": jnp.mean(ends),
        }
        return jnp.sum(losses), ({**state.buffers, "score": score}, metrics)

    def step(key, state: ModelState, obs, action) -> Step:
        """One step from a random elite; all elites are evaluated to see them differ."""
        member_key, noise_key = jax.random.split(key)
        statistics = state.buffers["statistics"]
        best = jnp.argsort(state.buffers["score"])[: config.elites]
        elites = jax.tree.map(
            lambda leaf: jnp.take(leaf, best, 0), state.buffers["ema"]
        )
        x = rows.encode(statistics, obs, action, spec.action)
        mean, log_var, logit = jax.vmap(predict, (0, None))(elites, x)  # [E, O + 1]
        chosen = jax.random.randint(member_key, (), 0, config.elites)
        noise = jax.random.normal(noise_key, (target_size,))
        y = mean[chosen] + jnp.exp(0.5 * log_var[chosen]) * noise
        next_obs, reward = rows.decode_target(statistics, obs, y)
        log_prob = jax.nn.logsumexp(_log_density(y, mean, log_var)) - jnp.log(
            config.elites
        )
        log_prob = log_prob - jnp.sum(jnp.log(stats.scale(statistics.target)))
        info = {
            "disagreement": jnp.mean(jnp.std(mean[:, :obs_size], 0)),
            "log_prob": log_prob,
        }
        return Step(next_obs, reward, jax.nn.sigmoid(-logit[chosen]), info)

    def adapt(state: ModelState, transitions: Transition) -> ModelState:
        statistics = rows.update_statistics(
            state.buffers["statistics"], transitions, spec.action
        )
        return state._replace(buffers={**state.buffers, "statistics": statistics})

    return from_step(
        ModelSpec(
            obs=spec.obs,
            action=spec.action,
            feature_size=obs_size,
            horizon=1,
            context=1,
            abilities=frozenset(
                {"reward", "discount", "gradient", "log_prob", "stochastic"}
            ),
            window=2,
            name="ensemble",
        ),
        step,
        init=init,
        loss=loss,
        fit=optimise.fit(loss, optimiser, ema=config.ema),
        adapt=adapt,
    )


def _log_density(
    y: Float[Array, " D"], mean: Float[Array, "E D"], log_var: Float[Array, "E D"]
) -> Float[Array, " E"]:
    """Log-density of one target under each member's Gaussian, normalised units."""
    z = (y - mean) ** 2 * jnp.exp(-log_var)
    return -0.5 * jnp.sum(z + log_var + math.log(2 * math.pi), -1)
