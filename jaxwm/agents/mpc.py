"""Model-predictive control: plan with a world model at every step, act, plan again.

At each step the planner searches for the actions a_1 ... a_H with the largest imagined
return, starting from the last plan moved on by one step; the first action is executed.

    R(a) = sum_k gamma^k w_k r_k,   w_k = prod_{j<k} d_j

with r and d the imagined rewards and discounts. Any planner of `jaxwm.plan` works on
any world model that imagines rewards under given actions.

Source: Chua et al., "Deep Reinforcement Learning in a Handful of Trials using
Probabilistic Dynamics Models", NeurIPS 2018; the warm start is common practice.
Shapes: H horizon, A action, P particles.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm import plan, rl
from jaxwm.core import checks
from jaxwm.types import Agent, Box, Discrete, Metrics, ModelState, PyTree, WorldModel

PLANNERS = ("random_shooting", "cem", "mppi", "descent")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Planner and its size. Spreads are shares of the action's range, high - low."""

    planner: str = "cem"  # one of PLANNERS
    horizon: int = 20  # H, imagined steps
    num: int = 128  # samples of a round
    elites: int = 16  # samples that CEM refits to
    iterations: int = 3  # rounds of CEM and MPPI, steps of descent
    std: float = 0.5  # of the first proposal around the moved plan
    smallest_std: float = 0.025  # CEM's floor
    momentum: float = 0.1  # of CEM's mean and deviation
    temperature: float = 0.5  # of MPPI's weights, in spreads of the costs
    colour: float = 0.0  # exponent of the samples' power spectrum over time
    keep: int = 0  # elites that enter CEM's next round (iCEM)
    learning_rate: float = 0.1  # of descent (Adam), in shares of the range
    gamma: float = 1.0  # discount per step
    particles: int = 1  # P, rollouts averaged per candidate of a stochastic model
    explore: float = 0.1  # deviation of the noise on explored actions
    fits: int = 16  # model updates per round of learning
    fit_batch: int = 256  # windows per model update

    def __post_init__(self):
        if self.planner not in PLANNERS:
            raise ValueError(
                f"planner must be among {', '.join(PLANNERS)}, got {self.planner!r}."
            )
        names = ("horizon", "num", "iterations", "particles", "fits", "fit_batch")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.planner == "cem" and not 1 <= self.elites <= self.num:
            raise ValueError(
                f"elites must be in 1 ... num = {self.num}, got {self.elites}."
            )
        for name in ("std", "temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}.")
        if self.explore < 0:
            raise ValueError(f"explore must not be negative, got {self.explore}.")


TINY = Config(horizon=4, num=8, elites=2, iterations=2, fits=1, fit_batch=8)


class MPCState(NamedTuple):
    """What the agent has learnt: its world model."""

    model: ModelState


class Memory(NamedTuple):
    """What is carried from one step of an episode to the next."""

    model: PyTree  # the world model's memory
    action: Float[Array, " A"]  # taken last
    plan: Float[Array, "H A"]  # its first row is the action taken last


def mpc(world_model: WorldModel, config: Config, *, context: PyTree = None) -> Agent:
    """Builds the agent that plans with a world model.

    Args:
        world_model: needs the abilities "actions" and "reward", and "gradient" for the
            planner "descent".
        config: planner and its size.
        context: handed to the model's `initial` at the start of an episode (a task, a
            mask of the dimensions that exist).

    Returns:
        The agent; its state is `MPCState`, so a model trained elsewhere is put in by
        `MPCState(model_state)`. It has no `policy`. Explored actions carry Gaussian
        noise.

    Raises:
        ValueError: if the model lacks an ability, naming it; for discrete actions or a
            Box without finite bounds.
    """
    needed = ["actions", "reward"]
    if config.planner == "descent":
        needed.append("gradient")
    checks.require(world_model, *needed, who=f"planning by {config.planner}")
    spec = world_model.spec
    search = planner(config, spec.action)
    low, high = jnp.asarray(spec.action.low), jnp.asarray(spec.action.high)
    start = jnp.broadcast_to((low + high) / 2, (config.horizon, spec.action.size))

    def init(key: Key[Array, ""]) -> MPCState:
        return MPCState(world_model.init(key))

    def adapt(state: MPCState, transitions) -> MPCState:
        return MPCState(world_model.adapt(state.model, transitions))

    def step(
        key: Key[Array, ""], state: MPCState, sample, extra_fits=0
    ) -> tuple[MPCState, Metrics]:
        """Fits the model; there is nothing else to improve."""

        def fit(i, state):
            sample_key, fit_key = jax.random.split(jax.random.fold_in(key, i))
            windows = sample(sample_key, config.fit_batch)
            model, metrics = world_model.fit(fit_key, state.model, windows)
            return MPCState(model), {f"model/{k}": v for k, v in metrics.items()}

        def body(i, carry):
            state, total = carry
            state, metrics = fit(i, state)
            return state, jax.tree.map(jnp.add, total, metrics)

        num_fits = config.fits + extra_fits
        shapes = jax.eval_shape(fit, jnp.zeros((), jnp.int32), state)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        state, total = jax.lax.fori_loop(0, num_fits, body, (state, zeros))
        return state, jax.tree.map(lambda x: x / num_fits, total)

    def begin(state: MPCState) -> Memory:
        return Memory(world_model.initial(state.model, context), start[0], start)

    def act(key, state: MPCState, memory: Memory, obs, is_first, explore):
        observe_key, plan_key, noise_key = jax.random.split(key, 3)
        is_first = jnp.asarray(is_first)
        model_memory = world_model.observe(
            observe_key, state.model, memory.model, obs, memory.action, is_first
        )
        mean = jnp.where(is_first, start, move_on(memory.plan))
        found = search(
            plan_key,
            lambda key, actions: (
                -imagined_return(
                    key, world_model, state.model, model_memory, actions, config
                )
            ),
            mean,
        )
        noise = config.explore * (high - low) * jax.random.normal(noise_key, low.shape)
        action = found.x[0] + jnp.where(explore, noise, 0.0)
        action = jnp.clip(action, low, high)
        return action, Memory(model_memory, action, found.x)

    return Agent(init, adapt, step, begin, act)


def planner(config: Config, space: Box | Discrete) -> Callable:
    """The search that a config names, `(key, cost, mean [H, A]) -> plan.Found`.

    `cost` is `(key, actions) -> scalar`. It gets the same key for every candidate, so
    that luck does not decide between them.

    Raises:
        ValueError: for discrete actions or a Box without finite bounds.
    """
    bounded = isinstance(space, Box) and all(
        abs(end) < float("inf") for end in (*space.low, *space.high)
    )
    if not bounded:
        raise ValueError(
            f"planning by {config.planner} needs bounded continuous actions, got "
            f"{space}; give a task with a Box of finite bounds."
        )
    low, high = jnp.asarray(space.low), jnp.asarray(space.high)
    size = high - low

    def search(key: Key[Array, ""], cost: Callable, mean: Float[Array, "H A"]):
        search_key, cost_key = jax.random.split(key)

        def of_actions(actions):
            total = 0.0
            for p in range(config.particles):
                total = total + cost(jax.random.fold_in(cost_key, p), actions)
            return total / config.particles

        bounds = {"low": low, "high": high}
        std = config.std * size
        if config.planner == "random_shooting":
            return plan.random_shooting(
                search_key, of_actions, mean, std, num=config.num, **bounds
            )
        if config.planner == "mppi":
            return plan.mppi(
                search_key,
                of_actions,
                mean,
                std,
                num=config.num,
                iterations=config.iterations,
                temperature=config.temperature,
                colour=config.colour,
                **bounds,
            )
        if config.planner == "cem":
            return plan.cem(
                search_key,
                of_actions,
                mean,
                std,
                num=config.num,
                elites=config.elites,
                iterations=config.iterations,
                momentum=config.momentum,
                smallest_std=config.smallest_std * size,
                colour=config.colour,
                keep=config.keep,
                **bounds,
            )
        # In shares of the range, so that one rate serves every dimension.
        found = plan.descent(
            lambda x: of_actions(low + size * x),
            (mean - low) / size,
            optax.adam(config.learning_rate),
            steps=config.iterations,
            project=lambda x: jnp.clip(x, 0.0, 1.0),
        )
        return found._replace(x=low + size * found.x)

    return search


def imagined_return(
    key: Key[Array, ""],
    world_model: WorldModel,
    state: ModelState,
    memory: PyTree,
    actions: Float[Array, "H A"],
    config: Config,
) -> Float[Array, ""]:
    """R(a), the discounted return of one imagined rollout."""
    rollout = world_model.imagine(key, state, memory, actions, config.horizon)
    weight = rl.survival(config.gamma * rollout.discount)
    return jnp.sum(weight * rollout.reward)


def move_on(plan: Float[Array, "H A"]) -> Float[Array, "H A"]:
    """The plan one step later; its last action is repeated."""
    return jnp.concatenate([plan[1:], plan[-1:]])
