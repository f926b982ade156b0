"""Causal transformer that predicts the next step from a window of past steps.

One token per step, (observation, action); token t predicts the change of the
observation, the reward and the termination of step t. Its memory is the window itself.

Source: the transformer world model that Rigter et al., "World Models via Policy-Guided
Trajectory Diffusion", TMLR 2024, compare with: their transformer denoiser without time
embedding, squared error, context 15, Adam 1e-4, batch 1024.
Departs: it predicts the change of the observation rather than the observation, and
imagines with averaged weights.
Shapes: C context, N transitions, O observation, A action, E embedding.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxwm import nn
from jaxwm.core import checks, optimise, tree
from jaxwm.dynamics import rows
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.types import (
    EnvSpec,
    ModelSpec,
    ModelState,
    Trajectory,
    Transition,
    WorldModel,
)

# Terminations are rare: in units of their own standard deviation a single one would
# outweigh a whole batch. In units of 0.2 they count like events of probability 0.04.
_TERMINAL_SCALE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores. `PAPER` is the published one."""

    context: int = 15  # C, steps it reads
    embed: int = 64  # E
    blocks: int = 2
    heads: int = 4
    learning_rate: float = 1e-3
    ema: float = 0.995  # decay of the weights that imagine; 0: the trained ones

    def __post_init__(self):
        checks.finite(self)
        for name in ("context", "blocks", "heads"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.embed < 1 or self.embed % self.heads:
            raise ValueError(
                f"embed must be a positive multiple of heads = {self.heads}, got "
                f"{self.embed}."
            )
        if self.learning_rate <= 0:
            raise ValueError(
                f"learning_rate must be positive, got {self.learning_rate}."
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}.")


PAPER = Config(embed=312, blocks=6, learning_rate=1e-4)
TINY = Config(context=4, embed=16, blocks=1, heads=2)


class Window(NamedTuple):
    """The last steps, oldest first; rows from `length` on are empty."""

    obs: Float[Array, "C O"]
    action: Float[Array, "C A"]  # of the newest row: not known yet
    length: Int[Array, ""]


class NextStep(linen.Module):
    """Tokens with learnt positions through causal blocks to one prediction per step."""

    context: int
    embed: int
    blocks: int
    heads: int
    out: int

    @linen.compact
    def __call__(self, x: Float[Array, "N I"]) -> Float[Array, "N D"]:
        """Prediction n reads tokens 0 ... n; N is at most the context."""
        normal = linen.initializers.normal(0.02)
        h = linen.Dense(self.embed, kernel_init=normal, name="token")(x)
        position = self.param("position", normal, (self.context, self.embed))
        h = h + position[: x.shape[0]]
        h, _, _ = nn.Transformer(self.blocks, self.heads, name="body")(h)
        return linen.Dense(self.out, kernel_init=normal, name="leave")(h)


def transformer(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds the transformer's pure functions for an environment of the given sizes.

    Its feature is the newest observation, in raw units. An imagined step reads the
    whole window, C tokens: positions are absolute, so keys and values of earlier steps
    change as the window moves on and cannot be kept.

    Raises:
        ValueError: for observations that are not one flat vector or discrete actions.
    """
    obs_size, action_size = spec.flat_sizes("the transformer")
    context = config.context
    network = NextStep(
        context, config.embed, config.blocks, config.heads, out=obs_size + 2
    )
    optimiser = optax.adam(config.learning_rate)

    def init(key: Key[Array, ""]) -> ModelState:
        params = network.init(key, jnp.zeros((context, obs_size + action_size)))
        buffers = {
            "statistics": rows.no_statistics(obs_size, action_size),
            "ema": params,
            "updates": jnp.zeros((), jnp.int32),
        }
        return optimise.init_state(optimiser, params, buffers)

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        """Mean squared error of each step, predicted from those before it.

        `key` draws which C steps are read where the window holds more.
        """
        data = _cut(key, rows.transitions_of(window), context)
        statistics = state.buffers["statistics"]
        x = rows.encode(statistics, data.obs, data.action, spec.action)
        y = rows.encode_target(statistics, data)
        ends = (1 - data.discount) / _TERMINAL_SCALE
        error = (network.apply(state.params, x) - jnp.c_[y, ends]) ** 2
        error = data.valid @ error  # [O + 2]
        each = error / jnp.maximum(jnp.sum(data.valid), 1.0)
        metrics = {
            "obs": jnp.mean(each[:obs_size]),
            "reward": each[-2],
            "termination": each[-1],
        }
        # Over all rows, also padding: each real step counts the same in a batch.
        return jnp.mean(error) / data.valid.shape[0], (state.buffers, metrics)

    def initial(state: ModelState, task=None) -> Window:
        del state, task  # empty, whatever was learnt
        return Window(
            jnp.zeros((context, obs_size)),
            jnp.zeros((context, action_size)),
            jnp.zeros((), jnp.int32),
        )

    def observe(key, state, memory: Window, obs, prev_action, is_first) -> Window:
        del key  # nothing is drawn
        memory = tree.where(jnp.asarray(is_first), initial(state), memory)
        return _append(_act(memory, prev_action), obs)

    def newest(state, memory: Window) -> Float[Array, " O"]:
        del state  # raw units: no statistics needed
        return memory.obs[jnp.maximum(memory.length - 1, 0)]

    def step(key, state: ModelState, memory: Window, action) -> Step:
        del key  # a regressor: nothing is drawn
        memory, obs = _act(memory, action), newest(state, memory)
        statistics = state.buffers["statistics"]
        x = rows.encode(statistics, memory.obs, memory.action, spec.action)
        out = network.apply(state.buffers["ema"], x)[memory.length - 1]
        next_obs, reward = rows.decode_target(statistics, obs, out[:-1])
        discount = 1 - jnp.clip(_TERMINAL_SCALE * out[-1], 0, 1)
        return Step(_append(memory, next_obs), reward, discount, {})

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
            context=context,
            abilities=frozenset({"reward", "discount", "gradient"}),
            window=context + 1,
            name="transformer",
        ),
        step,
        init=init,
        loss=loss,
        fit=optimise.fit(loss, optimiser, ema=config.ema),
        adapt=adapt,
        initial=initial,
        observe=observe,
        feature=newest,
        decode=newest,
    )


def _act(memory: Window, action: Float[Array, " A"]) -> Window:
    """Fills in the action of the newest row; an empty window has none."""
    at = jnp.maximum(memory.length - 1, 0)
    return memory._replace(action=memory.action.at[at].set(action))


def _append(memory: Window, obs: Float[Array, " O"]) -> Window:
    """Adds an observation, its action open; a full window forgets its oldest row."""
    obs_rows, action_rows, length = memory
    full = length == obs_rows.shape[0]
    at = length - full
    obs_rows = jnp.where(full, jnp.roll(obs_rows, -1, 0), obs_rows)
    action_rows = jnp.where(full, jnp.roll(action_rows, -1, 0), action_rows)
    return Window(obs_rows.at[at].set(obs), action_rows.at[at].set(0.0), at + 1)


def _cut(key: Key[Array, ""], data: rows.Transitions, most: int) -> rows.Transitions:
    """At most `most` transitions that follow each other, drawn uniformly."""
    excess = data.reward.shape[0] - most
    if excess <= 0:
        return data
    start = jax.random.randint(key, (), 0, excess + 1)
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, most, 0), data)
