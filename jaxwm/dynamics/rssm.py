"""Recurrent state-space model: filters observations into a latent, imagines in it.

The carry is (h, z), a recurrent state and a categorical code. A filtering step moves h
by the last action and draws z from the posterior, which sees the observation; an
imagined step draws it from the prior, which does not. Heads read the observation, the
reward and whether the episode goes on off (h, z). Flat observations are read by an MLP,
images (`[height, width, channels]`, uint8) by convolutions.

    loss = -log p(o | h, z) - log p(r | h, z) - log p(c | h, z)
           + beta [0.8 KL(sg q || p) + 0.2 KL(q || sg p)], each at least `free_nats`

Source: Hafner et al., "Learning Latent Dynamics for Planning from Pixels" (PlaNet),
ICML 2019, for the model; "Mastering Atari with Discrete World Models" (DreamerV2), ICLR
2021, for categorical codes and the balanced divergence.
Departs: the Gaussians over flat observations and rewards have a standard deviation of
0.1 in units of the data instead of 1: a few numbers at unit spread are not worth
the nats that their code costs; reward and discount of a step are read off the latent
that follows it.
Shapes: N transitions, H deterministic size, G groups, C classes, A action, E embedding.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm import nn
from jaxwm.core import checks, optimise, stats
from jaxwm.dynamics import rows
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.nn.latent import Latent
from jaxwm.types import (
    Box,
    EnvSpec,
    ModelSpec,
    ModelState,
    Params,
    Trajectory,
    Transition,
    WorldModel,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores. `PAPER` has DreamerV2's sizes."""

    deter: int = 64  # H
    groups: int = 8  # G
    classes: int = 8  # C
    hidden: int = 64  # units of every hidden layer
    layers: int = 2  # hidden layers of encoder and heads
    channels: tuple[int, ...] = (8, 16, 32)  # of images, each layer halves the sides
    length: int = 16  # rows of a training window
    context: int = 5  # rows that are filtered before imagining
    balance: float = 0.8  # share of the divergence that moves the prior
    free_nats: float = 1.0  # divergence per step below which it is not reduced
    beta: float = 1.0  # weight of the divergence
    uniform: float = 0.01  # of every categorical
    obs_std: float = 0.1  # of flat observations and rewards, in their own spread
    pixel_std: float = 0.3  # of pixels, whose range is 1
    learning_rate: float = 1e-3
    decay_updates: int | None = None  # updates over which it falls to 0 by a cosine
    max_grad_norm: float = 100.0

    def __post_init__(self):
        checks.finite(self)
        for name in ("deter", "groups", "hidden", "layers", "context"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.classes < 2:
            raise ValueError(
                f"classes must be at least 2, got {self.classes}; a code of one class "
                "says nothing."
            )
        if not self.channels:
            raise ValueError("channels must name at least one layer, got ().")
        if self.length < max(2, self.context):
            raise ValueError(
                f"length must be at least 2 rows and the context, {self.context}, got "
                f"{self.length}; the context is the beginning of a window."
            )
        for name in ("balance", "uniform"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}.")
        for name in ("free_nats", "beta"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        for name in ("obs_std", "pixel_std", "learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")


PAPER = Config(
    deter=600,
    groups=32,
    classes=32,
    hidden=400,
    layers=4,
    channels=(48, 96, 192, 384),
    length=50,
    obs_std=1.0,
    pixel_std=1.0,
    learning_rate=2e-4,
)
TINY = Config(
    deter=8, groups=2, classes=4, hidden=8, layers=1, channels=(2,), length=4, context=2
)


class Statistics(NamedTuple):
    """Moments of what goes in; images have none."""

    obs: stats.Moments | None  # [O]
    action: stats.Moments  # [A]
    reward: stats.Moments  # [1]


class Networks(NamedTuple):
    """The modules; their parameters lie in a dict by the same names."""

    encoder: linen.Module  # observation as networks see it -> embedding [E]
    transition: linen.Module  # (latent, action) -> (h, log p)
    posterior: linen.Module  # (h, embedding) -> log q
    obs: linen.Module  # feature -> observation as networks see it
    reward: linen.Module  # feature -> [1], normalised
    discount: linen.Module  # feature -> [1], a logit


class Filtered(NamedTuple):
    """What one filtering step says, or several."""

    latent: Latent
    posterior: Float[Array, "*T G C"]  # log-probabilities
    prior: Float[Array, "*T G C"]


def networks(config: Config, spec: EnvSpec) -> Networks:
    """The modules for an environment of the given sizes.

    Raises:
        ValueError: unless the observation is one flat vector or one uint8 image and the
            actions are continuous, naming what was given.
    """
    leaf = _observation(spec)
    hidden = (config.hidden,) * config.layers
    if _is_image(leaf):
        strides = (2,) * len(config.channels)
        # Ends as the encoder of flat observations does: embeddings have one size.
        encoder = linen.Sequential(
            [
                nn.ConvEncoder(
                    config.channels, strides, "silu", pooled=False, standardised=True
                ),
                nn.MLP((config.hidden, config.hidden), "silu", layer_norm=True),
            ]
        )
        decoder = nn.ConvDecoder(leaf.shape, config.channels[::-1])
    else:
        encoder = nn.MLP(hidden, "silu", layer_norm=True)
        decoder = nn.MLP((*hidden, leaf.shape[0]), "silu", layer_norm=True)
    code = (config.groups, config.classes, config.hidden, config.uniform)
    return Networks(
        encoder,
        nn.LatentTransition(config.deter, *code),
        nn.LatentPosterior(*code),
        decoder,
        nn.MLP((*hidden, 1), "silu", layer_norm=True),
        nn.MLP((*hidden, 1), "silu", layer_norm=True),
    )


def empty(nets: Networks) -> Latent:
    """The carry before the first observation: zeros."""
    cell = nets.transition
    return Latent(jnp.zeros(cell.deter), jnp.zeros((cell.groups, cell.classes)))


def filter_step(
    key: Key[Array, ""],
    nets: Networks,
    params: Params,
    latent: Latent,
    embedding: Float[Array, " E"],
    action: Float[Array, " A"],
    is_first,
) -> Filtered:
    """Takes in one observation.

    Args:
        key: draws z.
        nets: the modules.
        params: of `transition` and `posterior` at least.
        latent: before; forgotten where `is_first`.
        embedding: of the observation.
        action: the one before it, as networks see it; ignored where `is_first`.
        is_first: whether the observation starts an episode.
    """
    goes_on = 1.0 - jnp.asarray(is_first, jnp.float32)
    latent, action = jax.tree.map(lambda x: goes_on * x, (latent, action))
    h, prior = nets.transition.apply(params["transition"], latent, action)
    posterior = nets.posterior.apply(params["posterior"], h, embedding)
    return Filtered(Latent(h, nn.draw_code(key, posterior)), posterior, prior)


def filter_sequence(
    key: Key[Array, ""],
    nets: Networks,
    params: Params,
    embedding: Float[Array, "T E"],
    prev_action: Float[Array, "T A"],
    is_first: Array,
    change: Callable = lambda key, i, latent: latent,
) -> Filtered:
    """`filter_step` along a trajectory from an empty carry; results `[T, ...]`.

    `change(key, i, latent)` may alter the carry that row i hands on, after it was
    noted; by default nothing does.
    """

    def body(latent, row):
        i, *row = row
        step_key, change_key = jax.random.split(jax.random.fold_in(key, i))
        filtered = filter_step(step_key, nets, params, latent, *row)
        return change(change_key, i, filtered.latent), filtered

    steps = jnp.arange(is_first.shape[0])
    rows = (steps, embedding, prev_action, is_first)
    return jax.lax.scan(body, empty(nets), rows)[1]


def filter_episode(
    key: Key[Array, ""],
    nets: Networks,
    state: ModelState,
    space: Box,
    obs: Array,
    action: Float[Array, "N A"],
    is_first: Array,
    change: Callable = lambda key, i, latent: latent,
) -> Filtered:
    """Filters raw observations `[T, ...]`; `action` t is taken after observation t.

    Actions behind the last observation are not read. The rest as `filter_sequence`.
    """
    statistics, num = state.buffers["statistics"], is_first.shape[0]
    embedding = nets.encoder.apply(
        state.params["encoder"], read_obs(statistics.obs, obs)
    )
    action = read_action(statistics, action[: num - 1], space)
    prev_action = jnp.concatenate([jnp.zeros_like(action[:1]), action])
    return filter_sequence(
        key, nets, state.params, embedding, prev_action, is_first, change
    )


def read_obs(moments: stats.Moments | None, obs: Array) -> Array:
    """An observation as networks see it: normalised, or pixels in [-0.5, 0.5]."""
    if moments is None:
        return obs.astype(jnp.float32) / 255 - 0.5
    return stats.normalise(moments, obs)


def read_action(statistics: Statistics, action: Array, space: Box) -> Array:
    """An action as networks see it: clipped to its bounds, normalised."""
    return stats.normalise(statistics.action, rows.clip_action(space, action))


def rssm(config: Config, spec: EnvSpec, *, decodes: bool = True) -> WorldModel:
    """Builds the model's pure functions for an environment of the given sizes.

    Its memory is the `Latent`, its feature (h, z). What it decodes is the mean of the
    observation head: the first row of a rollout is a reconstruction. `info` of its
    rollouts holds the prior's `entropy` in nats per step.

    Args:
        config: sizes and rates.
        spec: of the environment.
        decodes: whether rollouts hold observations. Painting images costs more than
            imagining latents, and agents do not look at them.

    Raises:
        ValueError: as `networks`.
    """
    leaf, nets = _observation(spec), networks(config, spec)
    image, space = _is_image(leaf), spec.action
    rate = config.learning_rate
    if config.decay_updates is not None:
        rate = optax.cosine_decay_schedule(rate, config.decay_updates)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate)
    )

    def init(key: Key[Array, ""]) -> ModelState:
        keys = dict(zip(Networks._fields, jax.random.split(key, 6), strict=True))
        statistics = Statistics(
            None if image else stats.moments(leaf.shape[0], floor=1e-3),
            stats.moments(space.size, floor=1e-3),
            stats.moments(1),
        )
        obs = jnp.zeros(leaf.shape)
        embedding, encoder = nets.encoder.init_with_output(keys["encoder"], obs)
        latent, action = empty(nets), jnp.zeros(space.size)
        params = {
            "encoder": encoder,
            "transition": nets.transition.init(keys["transition"], latent, action),
            "posterior": nets.posterior.init(keys["posterior"], latent.h, embedding),
        }
        for name in ("obs", "reward", "discount"):
            params[name] = getattr(nets, name).init(keys[name], latent.feature)
        return optimise.init_state(optimiser, params, {"statistics": statistics})

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        """The bound on one window, whose first row counts as the first of an episode.

        `key` draws the codes.
        """
        data, statistics = rows.transitions_of(window), state.buffers["statistics"]
        params, num = state.params, data.reward.shape[0]
        # Observations o_0 ... o_N; reward and discount n are those of reaching n + 1.
        obs = jnp.concatenate([data.obs[:1], data.next_obs])
        is_first = jnp.arange(num + 1) == 0
        filtered = filter_episode(key, nets, state, space, obs, data.action, is_first)
        feature = filtered.latent.feature
        said = nets.obs.apply(params["obs"], feature)
        error = (said - read_obs(statistics.obs, obs)) ** 2
        error = jnp.sum(error.reshape(num + 1, -1), -1)
        reward = nets.reward.apply(params["reward"], feature[1:])
        target = stats.normalise(statistics.reward, data.reward[:, None])
        reward_error = (reward - target)[:, 0] ** 2
        logit = nets.discount.apply(params["discount"], feature[1:])[:, 0]
        ends = optax.sigmoid_binary_cross_entropy(logit, data.discount)
        divergence = nn.balanced_kl(
            filtered.posterior,
            filtered.prior,
            balance=config.balance,
            free_nats=config.free_nats,
        )
        std = config.pixel_std if image else config.obs_std
        at_obs = 0.5 * error / std**2 + config.beta * divergence
        at_step = 0.5 * reward_error / config.obs_std**2 + ends
        reached = jnp.concatenate([data.valid[:1], data.valid])
        # Over all rows, also padding: each real step counts the same in a batch.
        value = (reached @ at_obs + data.valid @ at_step) / num
        count = jnp.maximum(jnp.sum(data.valid), 1.0)
        metrics = {
            "obs": data.valid @ error[1:] / (count * math.prod(leaf.shape)),
            "reward": data.valid @ reward_error / count,
            "termination": data.valid @ ends / count,
            "kl": data.valid
            @ nn.code_kl(filtered.posterior, filtered.prior)[1:]
            / count,
        }
        return value, (state.buffers, metrics)

    def initial(state: ModelState, task=None) -> Latent:
        del state, task  # empty, whatever was learnt
        return empty(nets)

    def observe(key, state: ModelState, memory: Latent, obs, prev_action, is_first):
        statistics, params = state.buffers["statistics"], state.params
        embedding = nets.encoder.apply(params["encoder"], read_obs(statistics.obs, obs))
        action = read_action(statistics, prev_action, space)
        return filter_step(
            key, nets, params, memory, embedding, action, is_first
        ).latent

    def feature(state, memory: Latent) -> Float[Array, " F"]:
        del state  # codes and carries are of order one: no statistics needed
        return memory.feature

    def decode(state: ModelState, memory: Latent) -> Array:
        out = nets.obs.apply(state.params["obs"], memory.feature)
        if image:
            return jnp.clip(jnp.round((out + 0.5) * 255), 0, 255).astype(jnp.uint8)
        return stats.denormalise(state.buffers["statistics"].obs, out)

    def step(key, state: ModelState, memory: Latent, action) -> Step:
        params, statistics = state.params, state.buffers["statistics"]
        h, prior = nets.transition.apply(
            params["transition"], memory, read_action(statistics, action, space)
        )
        memory = Latent(h, nn.draw_code(key, prior))
        reward = nets.reward.apply(params["reward"], memory.feature)
        logit = nets.discount.apply(params["discount"], memory.feature)[0]
        entropy = -jnp.sum(jnp.exp(prior) * prior)
        return Step(
            memory,
            stats.denormalise(statistics.reward, reward)[0],
            jax.nn.sigmoid(logit),
            {"entropy": entropy},
        )

    def adapt(state: ModelState, data: Transition) -> ModelState:
        old = state.buffers["statistics"]
        obs = old.obs
        if obs is not None:
            obs = stats.update_moments(obs, data.obs, data.mask)
        action = rows.clip_action(space, data.action)
        statistics = Statistics(
            obs,
            stats.update_moments(old.action, action, data.mask),
            stats.update_moments(old.reward, data.reward[:, None], data.mask),
        )
        return state._replace(buffers={**state.buffers, "statistics": statistics})

    return from_step(
        ModelSpec(
            obs=spec.obs,
            action=space,
            feature_size=config.deter + config.groups * config.classes,
            horizon=1,
            context=config.context,
            abilities=frozenset({"reward", "discount", "gradient", "stochastic"}),
            window=config.length,
            name="rssm",
        ),
        step,
        init=init,
        loss=loss,
        fit=optimise.fit(loss, optimiser),
        adapt=adapt,
        initial=initial,
        observe=observe,
        feature=feature,
        decode=decode if decodes else None,
    )


def _observation(spec: EnvSpec) -> jax.ShapeDtypeStruct:
    """The one leaf of the observation, if the model can read it."""
    leaves = jax.tree.leaves(spec.obs)
    if len(leaves) == 1 and _is_image(leaves[0]) and isinstance(spec.action, Box):
        return leaves[0]
    spec.flat_sizes("the rssm")  # raises where it is no flat vector either
    return leaves[0]


def _is_image(leaf: jax.ShapeDtypeStruct) -> bool:
    return len(leaf.shape) == 3 and leaf.dtype == jnp.uint8
