"""Autoregressive diffusion: each next step is denoised from the one before it.

The trajectory diffusion model with two rows. Row 0 holds the known observation and the
reward and termination to predict, row 1 the next observation; the action of row 0 is
given, that of row 1 is 0. H imagined steps take H times the calls of one step.

Source: the baseline of Rigter et al., "World Models via Policy-Guided Trajectory
Diffusion", TMLR 2024, with their residual MLP denoiser and loss.
Departs: reward and termination of row 1 belong to an action that is not given, so they
are held at 0 and left out of the loss; by default four calls per step and actions not
scaled by the level but clipped to the environment's bounds.
Shapes: O observation, A action, D = O + 2; a row is (obs, reward, termination),
normalised.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from jaxwm import diffusion, nn
from jaxwm.core import checks, optimise, stats
from jaxwm.dynamics import rows
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.types import (
    EnvSpec,
    ModelSpec,
    ModelState,
    Params,
    PyTree,
    Trajectory,
    Transition,
    WorldModel,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores. `PAPER` is the published one."""

    levels: int = 128  # noise levels the denoiser is trained on
    tau: float = 1.0  # exponent of the cosine schedule; small keeps samples clean
    calls: int = 4  # network calls per imagined step, at most `levels`
    width: int = 128  # hidden units of the denoiser
    depth: int = 3  # residual blocks of the denoiser
    activation: str = "silu"  # of the residual blocks, a name in jax.nn
    time: Literal["log_sigma", "index"] = "log_sigma"  # how it is told the level
    learning_rate: float = 3e-3
    decay_updates: int | None = None  # updates over which it falls to 0 by a cosine
    ema: float = 0.995  # decay of the weights that imagine; 0: the trained ones
    scale_actions: bool = False  # scale the actions the network reads by the signal
    clip_actions: bool = True  # clip them to the environment's bounds
    terminal_floor: float = 0.2  # smallest spread that terminations are divided by

    def __post_init__(self):
        checks.finite(self)
        if not 1 <= self.calls <= self.levels:
            raise ValueError(
                f"calls must be in 1 ... {self.levels}, the number of levels, got "
                f"{self.calls}."
            )
        for name in ("width", "depth"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in ("tau", "learning_rate", "terminal_floor"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        if self.time not in ("log_sigma", "index"):
            raise ValueError(f'time must be "log_sigma" or "index", got {self.time!r}.')
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}.")


# Hopper's; walker and halfcheetah have tau 1.0. The reference averages by 0.99 at every
# tenth update, here by its tenth root at every one.
PAPER = Config(
    tau=0.1,
    calls=128,
    width=1024,
    depth=6,
    activation="relu",
    time="index",
    learning_rate=3e-4,
    ema=0.999,
    scale_actions=True,
    clip_actions=False,
    terminal_floor=1e-6,
)
TINY = Config(levels=8, calls=2, width=16, depth=1)


def autoregressive_diffusion(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds the model's pure functions for an environment of the given sizes.

    A window trains one of its transitions, drawn at random, so the batch counts
    transitions as in the source. Trained on squared error of the clean sample, it
    understates process noise: "stochastic" is not among its abilities.

    Raises:
        ValueError: for observations that are not one flat vector or discrete actions.
    """
    obs_size, action_size = spec.flat_sizes("autoregressive diffusion")
    shape = (2, obs_size + 2)
    schedule = diffusion.cosine_schedule(config.levels, config.tau)
    steps = diffusion.ancestral(diffusion.stride(schedule, config.calls))
    # Row 0's observation is given; row 1's reward and termination are held at 0.
    is_known = np.zeros(shape, bool)
    is_known[0, :obs_size] = is_known[1, obs_size:] = True
    by_index = config.time == "index"
    network = nn.ResidualDenoiser(
        config.width,
        config.depth,
        time_features=nn.RandomTime() if by_index else nn.FourierTime(),
        activation=config.activation,
    )
    rate = config.learning_rate
    if config.decay_updates is not None:
        rate = optax.cosine_decay_schedule(rate, config.decay_updates)
    optimiser = optax.adam(rate)

    def init(key: Key[Array, ""]) -> ModelState:
        params = network.init(
            key, jnp.zeros(shape), jnp.zeros((2, action_size)), jnp.zeros(())
        )
        floor = jnp.full(obs_size + 2, 1e-3).at[-1].set(config.terminal_floor)
        buffers = {
            "row": stats.moments(obs_size + 2)._replace(floor=floor),
            "action": stats.moments(action_size, floor=1e-3),
            "ema": params,
            "updates": jnp.zeros((), jnp.int32),
        }
        return optimise.init_state(optimiser, params, buffers)

    def encode_obs(buffers: PyTree, obs: Float[Array, " O"]) -> Float[Array, " D"]:
        """A normalised row with this observation, reward and termination 0."""
        row = stats.normalise(buffers["row"], jnp.pad(obs, (0, 2)))
        return row.at[obs_size:].set(0.0)

    def denoiser(params: Params, buffers: PyTree, obs, action):
        """The denoiser of the step that takes `action` at `obs`."""
        if config.clip_actions:
            action = rows.clip_action(spec.action, action)
        action = stats.normalise(buffers["action"], action)
        actions = jnp.stack([action, jnp.zeros_like(action)])
        given = encode_obs(buffers, obs)  # its last entries are the zeros of row 1

        def predict(x, level, cond):
            del cond  # the action does not move between the calls
            scale = level.signal if config.scale_actions else 1.0
            time = level.time if by_index else diffusion.log_sigma(level)
            return network.apply(params, x, scale * actions, time)

        known = lambda x: jnp.where(is_known, given, x)
        return diffusion.denoiser(predict, diffusion.predict_x0, known=known), known

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        """Squared error of one denoised transition; its observation is known."""
        pick_key, noise_key = jax.random.split(key)
        data, buffers = rows.transitions_of(window), state.buffers
        pick = jax.random.categorical(pick_key, jnp.log(data.valid))
        one = jax.tree.map(lambda x: jnp.take(x, pick, 0), data)
        ends = jnp.stack([one.reward, 1 - one.discount])
        here = stats.normalise(buffers["row"], jnp.concatenate([one.obs, ends]))
        x0 = jnp.stack([here, encode_obs(buffers, one.next_obs)])
        denoise, _ = denoiser(state.params, buffers, one.obs, one.action)
        value, error = diffusion.loss(
            noise_key,
            denoise,
            diffusion.uniform(schedule),
            x0,
            mask=one.valid * ~is_known,
        )
        metrics = {
            "obs": one.valid * jnp.mean(error[1, :obs_size]),
            "reward": one.valid * error[0, obs_size],
            "termination": one.valid * error[0, -1],
        }
        return value, (buffers, metrics)

    def step(key, state: ModelState, obs, action) -> Step:
        buffers = state.buffers
        denoise, known = denoiser(buffers["ema"], buffers, obs, action)
        result = diffusion.sample(
            key, denoise, steps, shape, terms=(diffusion.inpaint(known),)
        )
        here, after = stats.denormalise(buffers["row"], result.x)
        terminal = jnp.clip(here[-1], 0, 1)
        # Where no episode ever terminated, the channel holds nothing but error.
        discount = jnp.where(buffers["row"].mean[-1] > 0, 1 - terminal, 1.0)
        return Step(after[:obs_size], here[obs_size], discount, {})

    def adapt(state: ModelState, data: Transition) -> ModelState:
        ends = jnp.stack([data.reward, 1 - data.discount], -1)
        row = jnp.concatenate([data.obs, ends], -1)
        action = data.action
        if config.clip_actions:
            action = rows.clip_action(spec.action, action)
        old = state.buffers
        buffers = {
            **old,
            "row": stats.update_moments(old["row"], row, data.mask),
            "action": stats.update_moments(old["action"], action, data.mask),
        }
        return state._replace(buffers=buffers)

    return from_step(
        ModelSpec(
            obs=spec.obs,
            action=spec.action,
            feature_size=obs_size,
            horizon=1,
            context=1,
            abilities=frozenset({"reward", "discount", "gradient"}),
            window=2,
            name="autoregressive diffusion",
        ),
        step,
        init=init,
        loss=loss,
        fit=optimise.fit(loss, optimiser, ema=config.ema),
        adapt=adapt,
    )
