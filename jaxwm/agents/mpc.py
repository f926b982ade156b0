"""Model-predictive control: plan with a world model at every step, act, plan again.

At each step the planner searches for the actions a_1 ... a_H with the largest imagined
return, starting from the last plan moved on by one step; the first action is executed.

    R(a) = sum_k gamma^k w_k r_k,   w_k = prod_{j<k} d_j

with r and d the imagined rewards and discounts. Any planner of `jaxwm.plan` works on
any world model that imagines rewards under given actions; what must not happen in an
imagined rollout is a constraint, kept by an augmented Lagrangian around the planner.

Source: Chua et al., "Deep Reinforcement Learning in a Handful of Trials using
Probabilistic Dynamics Models", NeurIPS 2018; the warm start is common practice.
Shapes: H horizon, A action, P particles, G constraints.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm import plan, rl
from jaxwm.core import checks
from jaxwm.types import (
    Agent,
    Box,
    Discrete,
    Metrics,
    ModelState,
    PyTree,
    Rollout,
    WorldModel,
)

PLANNERS = (
    "random_shooting",
    "predictive_sampling",
    "cem",
    "mppi",
    "descent",
    "projected_gradient",
    "ilqr",
)
_GRADIENT = ("descent", "projected_gradient", "ilqr")  # need derivatives of the model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Planner and its size. Spreads are shares of the action's range, high - low."""

    planner: str = "cem"  # one of PLANNERS
    horizon: int = 20  # H, imagined steps
    num: int = 128  # samples of a round
    elites: int = 16  # samples that CEM refits to
    iterations: int = 3  # rounds of sampling, steps of descent, of iLQR
    std: float = 0.5  # of the first proposal around the moved plan
    smallest_std: float = 0.025  # CEM's floor
    momentum: float = 0.1  # of CEM's mean and deviation
    temperature: float = 0.5  # of MPPI's weights, in spreads of the costs
    colour: float = 0.0  # exponent of the samples' power spectrum over time
    keep: int = 0  # elites that enter CEM's next round; with `colour` this is iCEM
    knots: int = 5  # of predictive sampling's noise over time
    learning_rate: float = 0.1  # of descent (Adam), in shares of the range
    length: float = 0.01  # first step of the projected gradient, in squared shares
    regularisation: float = 1e-3  # first one of iLQR
    rounds: int = 3  # calls of the planner per action where there are constraints
    penalty: float = 100.0  # first one, in returns per squared unit of a constraint
    growth: float = 4.0  # of the penalty where a round does not help
    gamma: float = 1.0  # discount per step
    particles: int = 1  # P, rollouts averaged per candidate of a stochastic model
    explore: float = 0.1  # deviation of the noise on explored actions
    fits: int = 16  # model updates per round of learning
    fit_batch: int = 256  # windows per model update

    def __post_init__(self):
        checks.finite(self)
        if self.planner not in PLANNERS:
            raise ValueError(
                f"planner must be among {', '.join(PLANNERS)}, got {self.planner!r}."
            )
        names = ("horizon", "num", "iterations", "particles", "rounds", "fits")
        checks.at_least(1, self, *names, "fit_batch")
        if self.planner == "cem" and not 1 <= self.elites <= self.num:
            raise ValueError(
                f"elites must be in 1 ... num = {self.num}, got {self.elites}."
            )
        if self.planner == "predictive_sampling" and not (
            1 <= self.knots <= self.horizon
        ):
            raise ValueError(
                f"knots must be in 1 ... horizon = {self.horizon}, got {self.knots}."
            )
        names = ("std", "temperature", "learning_rate", "length", "regularisation")
        checks.positive(self, *names, "penalty")
        if not self.growth >= 1:
            raise ValueError(f"growth must be at least 1, got {self.growth}.")
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


def mpc(
    world_model: WorldModel,
    config: Config,
    *,
    context: PyTree = None,
    constraint: Callable | None = None,
) -> Agent:
    """Builds the agent that plans with a world model.

    Args:
        world_model: needs the abilities "actions" and "reward"; "gradient" for the
            planners "descent", "projected_gradient" and "ilqr". "ilqr" also needs a
            deterministic model that remembers one flat observation and no more.
        config: planner and its size.
        context: handed to the model's `initial` at the start of an episode (a task, a
            mask of the dimensions that exist).
        constraint: `(rollout, previous [A]) -> [...]`, allowed where every number is at
            most 0. The rollout's first observation is the present one, which no plan
            changes; `previous` is the action taken last, for bounds on how fast actions
            change (in the middle of its range before the first step). Over particles
            the largest number counts. The penalty is in returns per squared unit of
            what is returned here.

    Returns:
        The agent; its state is `MPCState`, so a model trained elsewhere is put in by
        `MPCState(model_state)`. It has no `policy`. Explored actions carry Gaussian
        noise, which no constraint bounds.

    Raises:
        ValueError: if the model lacks an ability, naming it; for discrete actions or a
            Box without finite bounds; for constraints on "ilqr".
    """
    needed = ["actions", "reward"]
    if config.planner in _GRADIENT:
        needed.append("gradient")
    checks.require(world_model, *needed, who=f"planning by {config.planner}")
    spec = world_model.spec
    low, high = _bounds(config, spec.action)
    if config.planner == "ilqr":
        _check_regulator(world_model, context, constraint)
    else:
        search = planner(config, spec.action)
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
        search_key, imagine_key = jax.random.split(plan_key)

        def imagined(actions, p):
            """Cost of a plan under the luck of particle p, the same for every plan."""
            key = jax.random.fold_in(imagine_key, p)
            rollout = world_model.imagine(
                key, state.model, model_memory, actions, config.horizon
            )
            cost = -_weighted_return(rollout, config.gamma)
            if constraint is None:
                return cost, jnp.zeros(0)
            return cost, jnp.ravel(constraint(rollout, memory.action))

        def problem(actions):
            of_particle = functools.partial(imagined, actions)
            cost, g = jax.vmap(of_particle)(jnp.arange(config.particles))
            return jnp.mean(cost), jnp.max(g, 0)

        if config.planner == "ilqr":
            x = _regulate(
                imagine_key, world_model, state.model, model_memory, mean, config
            )
        elif constraint is None:
            x = search(search_key, lambda actions: problem(actions)[0], mean).x
        else:
            x = plan.augmented_lagrangian(
                lambda i, cost, x: search(jax.random.fold_in(search_key, i), cost, x).x,
                problem,
                mean,
                rounds=config.rounds,
                penalty=config.penalty,
                growth=config.growth,
            ).x
        noise = config.explore * (high - low) * jax.random.normal(noise_key, low.shape)
        action = x[0] + jnp.where(explore, noise, 0.0)
        action = jnp.clip(action, low, high)
        return action, Memory(model_memory, action, x)

    return Agent(init, adapt, step, begin, act)


def planner(config: Config, space: Box | Discrete) -> Callable:
    """The search that a config names, `(key, cost, mean [H, A]) -> found`.

    `cost` is `actions -> scalar` and the same for every candidate; `found.x` is the
    plan. Not for "ilqr", which needs dynamics.

    Raises:
        ValueError: for discrete actions or a Box without finite bounds.
    """
    low, high = _bounds(config, space)
    size = high - low

    def search(key: Key[Array, ""], cost: Callable, mean: Float[Array, "H A"]):
        bounds = {"low": low, "high": high}
        std = config.std * size
        if config.planner == "random_shooting":
            return plan.random_shooting(key, cost, mean, std, num=config.num, **bounds)
        if config.planner == "predictive_sampling":
            return plan.predictive_sampling(
                key,
                cost,
                mean,
                std,
                num=config.num,
                knots=config.knots,
                iterations=config.iterations,
                **bounds,
            )
        if config.planner == "mppi":
            return plan.mppi(
                key,
                cost,
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
                key,
                cost,
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
        of_share = lambda x: cost(low + size * x)
        start = (mean - low) / size
        inside = lambda x: jnp.clip(x, 0.0, 1.0)
        if config.planner == "projected_gradient":
            found = plan.projected_gradient(
                of_share, start, inside, steps=config.iterations, length=config.length
            )
        else:
            found = plan.descent(
                of_share,
                start,
                optax.adam(config.learning_rate),
                steps=config.iterations,
                project=inside,
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
    return _weighted_return(rollout, config.gamma)


def _weighted_return(rollout: Rollout, gamma: float) -> Float[Array, ""]:
    weight = rl.survival(gamma * rollout.discount)
    return jnp.sum(weight * rollout.reward)


def _bounds(config: Config, space: Box | Discrete) -> tuple[Array, Array]:
    bounded = isinstance(space, Box) and all(
        abs(end) < float("inf") for end in (*space.low, *space.high)
    )
    if not bounded:
        raise ValueError(
            f"planning by {config.planner} needs bounded continuous actions, got "
            f"{space}; give a task with a Box of finite bounds."
        )
    return jnp.asarray(space.low), jnp.asarray(space.high)


def _check_regulator(
    world_model: WorldModel, context: PyTree, constraint: Callable | None
) -> None:
    """Refuses what the quadratic expansion along a path of observations cannot do."""
    if constraint is not None:
        raise ValueError(
            "planning by ilqr takes no constraint, since it must be a sum over steps; "
            f"choose another planner: {', '.join(p for p in PLANNERS if p != 'ilqr')}."
        )
    spec = world_model.spec
    state = jax.eval_shape(world_model.init, jax.random.key(0))
    memory = jax.eval_shape(lambda s: world_model.initial(s, context), state)
    shapes = [leaf.shape for leaf in jax.tree.leaves(memory)]
    if shapes != [(spec.feature_size,)] or "decode" not in spec.abilities:
        raise ValueError(
            "planning by ilqr needs a model that remembers one flat observation and no "
            f"more, the {spec.name} remembers arrays of shapes {shapes}; choose "
            "another planner."
        )
    if "stochastic" in spec.abilities:
        raise ValueError(
            f"planning by ilqr needs a deterministic model, the {spec.name} draws its "
            "futures; choose another planner."
        )


def _regulate(key, world_model: WorldModel, state, obs, actions, config: Config):
    """The plan by iLQR; its state is the observation and the weight w_k of a reward."""

    def imagined(x, u):
        # Two steps, because a rollout's rows hold what was observed before each.
        pair = jnp.stack([u, u])
        return world_model.imagine(key, state, x[:-1], pair, 2)

    def step(x, u):
        rollout = imagined(x, u)
        weight = x[-1] * config.gamma * rollout.discount[0]
        return jnp.append(rollout.obs[1], weight)

    return plan.ilqr(
        step,
        lambda x, u: -x[-1] * imagined(x, u).reward[0],
        lambda x: jnp.zeros(()),
        jnp.append(obs, 1.0),
        actions,
        iterations=config.iterations,
        low=jnp.asarray(world_model.spec.action.low),
        high=jnp.asarray(world_model.spec.action.high),
        regularisation=config.regularisation,
    ).actions


def move_on(plan: Float[Array, "H A"]) -> Float[Array, "H A"]:
    """The plan one step later; its last action is repeated."""
    return jnp.concatenate([plan[1:], plan[-1:]])
