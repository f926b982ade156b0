"""COMET: a library of pairwise mechanisms, learnt by competition, composed anew.

Dynamics are M small functions of a target object and one context object. Competition:
every mechanism predicts every object with every context, and only the pair that is best
over several consecutive steps learns. Composition: the library is frozen, and a
classifier learns from the winners on a new environment which mechanism with which
context applies to which object.

Source: Lei, Nolte, Schölkopf and Posner, "Compete and Compose: Learning Independent
Mechanisms for Modular World Models", 2024. Layer sizes, the temperature of the warm
start and the labels of the composition are ours: the paper's were not found.
Departs: mechanisms may read an action; reward and termination come from a network of
their own.
Found, on seeds 10 to 14 of `experiment`: mechanisms stand for rules (accuracy 0.98 to
0.99; 0.84 to 0.92 where single steps compete, 0.44 to 0.56 with a soft choice learnt
jointly). Few trajectories of a new environment are few for both: after 5, errors are
0.49 to 0.57 against 0.69 to 0.79 with messages, for which no fine-tuning helped yet;
flying straight on has 0.53 to 0.55. After 50, they are 0.23 to 0.26 against 0.63 to
0.67.
Shapes: N objects, d numbers each, of which the last are labels (a type) and the first
positions; O = N d, C changing numbers, M mechanisms, K windows' starts, w steps of a
window, A action.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxwm import nn
from jaxwm.core import checks, optimise, stats, tree
from jaxwm.dynamics import rows
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.envs.tasks import rule_particles
from jaxwm.measures import matching
from jaxwm.types import (
    EnvSpec,
    Metrics,
    ModelSpec,
    ModelState,
    Params,
    Trajectory,
    Transition,
    WorldModel,
)

_UPDATES = 6000  # of every model in the experiment's competition phase
_BATCH = 64  # windows of an update, each drawn afresh
_TEST = 4000  # windows that mechanisms are identified on
_NEW = 4  # the environment that is not trained on
_NEW_DISCS = 6
_TRAJECTORIES = (1, 5, 50)  # of the new environment
_LENGTH = 20  # their steps, and those of imagined trajectories
_ROUNDS, _PER_ROUND = 8, 100  # of adaptation; the best round on validation is kept
_TERMINAL_SCALE = 0.2  # a termination counts like an event of probability 0.04
_MOST_CANDIDATES = 50_000_000  # numbers that one window's candidates may have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores."""

    object_size: int | None = None  # d; None: the whole observation is one object
    positions: int = 0  # first numbers of an object, of which only differences count
    labels: int = 0  # last numbers of an object, which never change
    mechanisms: int = 5  # M, one or two more than there are rules
    width: int = 48  # hidden units of a mechanism, two layers
    composer_width: int = 64  # of the classifier, two layers
    window: int = 3  # w, consecutive steps over which a pair must win
    phase: str = "both"  # or "competition": the library learns, or "composition"
    hard: bool = True  # the winner takes all; False: a mixture at all times
    warm_up: int = 800  # updates of mixed credit before the winner takes all
    temperature: float = 1.0  # of that credit at its start
    effect_penalty: float = 1e-3  # on squared effects: "nothing" is one mechanism
    revive_after: int = 0  # updates without a win until one is replaced; 0 never
    reward: bool = True  # predict reward and termination, too
    learning_rate: float = 2e-3
    decay_updates: int | None = None  # updates over which it falls to 0 by a cosine

    def __post_init__(self):
        checks.finite(self)
        names = ["mechanisms", "width", "composer_width", "window"]
        if self.object_size is not None:
            names.append("object_size")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.phase not in ("both", "competition", "composition"):
            raise ValueError(
                f"phase must be both, competition or composition, got {self.phase!r}."
            )
        for name in ("positions", "labels", "warm_up", "revive_after"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must not be negative, got {getattr(self, name)}."
                )
        checks.positive(self, "temperature", "learning_rate")


# Of `experiment`: discs of seven numbers, the first two of them a position, the last
# three a type. Three rules, and a mechanism for "nothing acts". The credit cools over
# half of the updates. Over 800 of them, two mechanisms may come to share two rules, one
# pushing in some directions and the other in the rest, which winners never leave: on
# seeds 100 to 104 the accuracy is 0.69 to 0.98, over 3000 it is 0.98 to 0.99.
EXPERIMENT = Config(
    object_size=7,
    positions=2,
    labels=3,
    mechanisms=4,
    warm_up=3000,
    reward=False,
    decay_updates=_UPDATES,
)
TINY = Config(mechanisms=2, width=8, composer_width=8, window=1)


class Objects(NamedTuple):
    """An observation as objects, normalised with statistics that all objects share."""

    position: Float[Array, "N p"]
    rest: Float[Array, "N r"]  # what is neither position nor label
    label: Float[Array, "N l"]


class Choice(NamedTuple):
    """Which mechanism with which context moves each object."""

    mechanism: Int[Array, "... N"]
    context: Int[Array, "... N"]


class Composer(linen.Module):
    """Scores every mechanism with every context for every object, in its scene."""

    mechanisms: int
    width: int

    @linen.compact
    def __call__(self, objects: Objects, pairs) -> Float[Array, "N M N"]:
        """Logits; one network for all pairs, so the number of objects may differ."""
        num, width = pairs.shape[0], self.width
        own = jnp.concatenate([objects.rest, objects.label], 1)
        scene = jnp.mean(nn.MLP((width, width), name="encoder")(own), 0)
        label = objects.label
        shape = (num, num, label.shape[1])
        inputs = [
            pairs,
            jnp.broadcast_to(label[:, None], shape),
            jnp.broadcast_to(label[None], shape),
            jnp.eye(num)[..., None],
            jnp.broadcast_to(scene, (num, num, width)),
        ]
        scores = nn.MLP((width, width, self.mechanisms), name="score")
        return jnp.moveaxis(scores(jnp.concatenate(inputs, -1)), -1, 1)


def split(config: Config, statistics: dict, obs: Float[Array, " O"]) -> Objects:
    """The observation's objects."""
    size, positions = config.object_size or obs.shape[0], config.positions
    x = obs.reshape(-1, size)
    moments, end = statistics["obs"], size - config.labels
    normal = stats.normalise(moments, x)
    # Positions are only subtracted from each other: one unit for all, no origin.
    return Objects(
        x[:, :positions] / jnp.mean(stats.scale(moments)[:positions])
        if positions
        else x[:, :0],
        normal[:, positions:end],
        x[:, end:],
    )


def pair_inputs(objects: Objects, action: Float[Array, " A"]) -> Float[Array, "N N F"]:
    """What a mechanism reads of (target i, context j): [i, j].

    Both objects' numbers that are neither position nor label, the offset from i to j,
    and the action: nothing that tells where in the world the pair is, or of what type.
    """
    rest, position = objects.rest, objects.position
    num = rest.shape[0]
    shape = (num, num, rest.shape[1])
    return jnp.concatenate(
        [
            jnp.broadcast_to(rest[:, None], shape),
            jnp.broadcast_to(rest[None], shape),
            position[None] - position[:, None],
            jnp.broadcast_to(action, (num, num, action.shape[0])),
        ],
        -1,
    )


def read(config: Config, buffers: dict, obs: Array, action: Float[Array, " A"]):
    """The objects of an observation, and the mechanisms' inputs of all their pairs."""
    objects = split(config, buffers, obs)
    return objects, pair_inputs(objects, stats.normalise(buffers["action"], action))


def target(config: Config, buffers: dict, obs, next_obs) -> Float[Array, "N C"]:
    """The normalised change of what changes."""
    size = config.object_size or obs.shape[0]
    change = (next_obs - obs).reshape(-1, size)[:, : size - config.labels]
    return stats.normalise(buffers["change"], change)


def mechanism(config: Config, changing: int) -> nn.MLP:
    """The network that every mechanism has, each with weights of its own."""
    return nn.MLP((config.width, config.width, changing), "silu")


def candidates(network, library: Params, pairs: Array) -> Float[Array, "N M N C"]:
    """Every mechanism's normalised change of every target for every context."""
    out = jax.vmap(network.apply, (0, None))(library, pairs)  # [M, N, N, C]
    return jnp.moveaxis(out, 0, 1)


def squared_errors(
    y: Float[Array, "N C"], change: Float[Array, "N M N C"]
) -> Float[Array, "N M N"]:
    """Of all candidates."""
    return jnp.mean((y[:, None, None] - change) ** 2, -1)


def over_windows(errors: Float[Array, "T ..."], window: int) -> Float[Array, "K ..."]:
    """Means over `window` consecutive steps, K = T - window + 1.

    Raises:
        ValueError: for fewer steps than the window has.
    """
    steps = errors.shape[0]
    if window > steps:
        raise ValueError(
            f"window must be at most the {steps} steps given, got {window}; give "
            "longer windows (`spec.window` rows)."
        )
    return sum(errors[k : steps - window + k + 1] for k in range(window)) / window


def winners(errors: Float[Array, "... N M N"]) -> Choice:
    """The pair of mechanism and context with the least error, per object."""
    num = errors.shape[-1]
    best = jnp.argmin(errors.reshape(*errors.shape[:-2], -1), -1)
    return Choice(best // num, best % num)


def credit(
    config: Config, errors: Float[Array, "... N M N"], updates: Int[Array, ""]
) -> Float[Array, "... N M N"]:
    """Who learns from a sample: at first a mixture, in the end the winner alone.

        softmax(-E / T),   T = temperature (1 - updates / warm_up),   then argmin

    With `hard=False` the mixture stays as it begins. No gradient flows through it.
    """
    flat = jax.lax.stop_gradient(errors).reshape(*errors.shape[:-2], -1)
    left = 1 - updates / max(config.warm_up, 1) if config.hard else 1.0
    soft = jax.nn.softmax(-flat / (config.temperature * jnp.maximum(left, 1e-3)), -1)
    winner = jax.nn.one_hot(jnp.argmin(flat, -1), flat.shape[-1])
    mixed = (updates < config.warm_up) | (not config.hard)
    return jnp.where(mixed, soft, winner).reshape(errors.shape)


def comet(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds COMET's pure functions for an environment of the given sizes.

    The library and the classifier do not depend on the number of objects: without
    `reward` a state serves any number. `info` of a rollout names, per imagined step,
    `mechanism` and `context` `[N]` of every object, and `graph` `[N, N]`, the edges
    from contexts (with two `positions` also them, `position` `[N, 2]`). Windows hold w
    + 1 rows, or w with `extras["next_obs"]`; in longer
    ones every w consecutive steps compete.

    Raises:
        ValueError: for observations that are not one flat vector, discrete actions,
            objects that do not fill the observation or have nothing to predict, or so
            many candidates that one window's would not fit into memory.
    """
    obs_size, action_size = spec.flat_sizes("comet")
    size = config.object_size or obs_size
    if obs_size % size:
        raise ValueError(
            f"object_size must divide the {obs_size} numbers of an observation of "
            f"{spec.name}, got {size}; None makes the whole observation one object."
        )
    changing = size - config.labels  # C
    if changing < 1 or config.positions > changing:
        raise ValueError(
            f"positions and labels must leave something to predict of the {size} "
            f"numbers of an object, got {config.positions} and {config.labels}."
        )
    num = obs_size // size
    held = config.window * config.mechanisms * num**2 * changing
    if held > _MOST_CANDIDATES:
        raise ValueError(
            f"mechanisms x objects^2 must fit into memory, {config.mechanisms} x "
            f"{num}^2 make {held:,} numbers per window; use fewer mechanisms."
        )
    network = mechanism(config, changing)
    composer = Composer(config.mechanisms, config.composer_width)
    outcome = nn.MLP((config.composer_width, config.composer_width, 2), "silu")
    rate = config.learning_rate
    if config.decay_updates is not None:
        rate = optax.cosine_decay_schedule(rate, config.decay_updates)
    optimiser = optax.adam(rate)

    def init(key: Key[Array, ""]) -> ModelState:
        library_key, composer_key, outcome_key = jax.random.split(key, 3)
        buffers = {
            "obs": stats.moments(size, floor=1e-3),
            "change": stats.moments(changing),
            "action": stats.moments(action_size, floor=1e-3),
            "reward": stats.moments(1),
            "updates": jnp.zeros((), jnp.int32),
            "usage": jnp.full(config.mechanisms, 1 / config.mechanisms),
            "idle": jnp.zeros(config.mechanisms, jnp.int32),
        }
        nothing = jnp.zeros(obs_size), jnp.zeros(action_size)
        objects, pairs = read(config, buffers, *nothing)
        keys = jax.random.split(library_key, config.mechanisms)
        params = {
            "library": jax.vmap(network.init, (0, None))(keys, pairs),
            "composer": composer.init(composer_key, objects, pairs),
        }
        if config.reward:
            params["outcome"] = outcome.init(outcome_key, jnp.concatenate(nothing))
        return optimise.init_state(optimiser, params, buffers)

    def predict_outcome(params, buffers, obs, action):
        """Normalised reward, and termination in units of its own."""
        x = stats.normalise(buffers["obs"], obs.reshape(num, size)).ravel()
        action = stats.normalise(buffers["action"], action)
        return outcome.apply(params["outcome"], jnp.concatenate([x, action]))

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        """Competition's loss moves the library, cross-entropy the classifier."""
        del key  # nothing is drawn
        data, buffers = rows.transitions_of(window), state.buffers
        actions = rows.clip_action(spec.action, data.action)
        frozen = config.phase == "composition"
        library = state.params["library"]
        library = jax.lax.stop_gradient(library) if frozen else library

        def one(obs, action, next_obs):
            objects, pairs = read(config, buffers, obs, action)
            change = candidates(network, library, pairs)
            error = squared_errors(target(config, buffers, obs, next_obs), change)
            return (objects, pairs), error, jnp.mean(change**2, -1)

        scenes, error, effect = jax.vmap(one)(data.obs, actions, data.next_obs)
        errors = over_windows(error, config.window)  # [K, N, M, N]
        valid = over_windows(data.valid, config.window) > 1 - 1e-6

        def mean(values):  # over all starts, also padding
            return jnp.mean(valid * values)

        weight = credit(config, errors, buffers["updates"])
        cost = errors + config.effect_penalty * over_windows(effect, config.window)
        choice = winners(errors)
        won = jax.nn.one_hot(choice.mechanism, config.mechanisms)
        usage = jnp.sum(valid[:, None, None] * won, (0, 1))
        usage = usage / jnp.maximum(jnp.sum(valid) * num, 1)
        metrics = {"winner": mean(jnp.mean(jnp.min(errors, (-2, -1)), -1))}
        total = jnp.zeros(())
        if not frozen:
            total += mean(jnp.mean(jnp.sum(weight * cost, (-2, -1)), -1))
        if config.phase != "competition":
            first = jax.tree.map(lambda x: x[: errors.shape[0]], scenes)
            logits = jax.vmap(composer.apply, (None, 0, 0))(
                state.params["composer"], *first
            )
            log_p = jax.nn.log_softmax(logits.reshape(*logits.shape[:2], -1), -1)
            best = choice.mechanism * num + choice.context
            likely = jnp.take_along_axis(log_p, best[..., None], -1)[..., 0]
            metrics["cross_entropy"] = -mean(jnp.mean(likely, -1))
            right = jnp.mean(jnp.argmax(log_p, -1) == best, -1)
            metrics["agreement"] = mean(right)
            total += metrics["cross_entropy"]
        if config.reward:
            said = jax.vmap(predict_outcome, (None, None, 0, 0))(
                state.params, buffers, data.obs, actions
            )
            reward = stats.normalise(buffers["reward"], data.reward[:, None])
            ends = (1 - data.discount[:, None]) / _TERMINAL_SCALE
            error = (said - jnp.concatenate([reward, ends], 1)) ** 2
            metrics["outcome"] = jnp.mean(data.valid * jnp.mean(error, 1))
            total += metrics["outcome"]
        return total, ({**buffers, "usage": usage}, metrics)

    descend = optimise.fit(loss, optimiser)

    def fit(key: Key[Array, ""], state: ModelState, windows: Trajectory):
        """One update; then the count of updates, the usage and the revivals."""
        fit_key, revive_key = jax.random.split(key)
        before = state.buffers
        state, metrics = descend(fit_key, state, windows)
        now = state.buffers["usage"]
        usage = before["usage"] + 0.01 * (now - before["usage"])
        idle = jnp.where(now > 0, 0, before["idle"] + 1)
        metrics["usage/least"], metrics["usage/most"] = jnp.min(usage), jnp.max(usage)
        if config.revive_after and config.phase != "composition":
            dead = idle >= config.revive_after
            library = _revive(revive_key, state.params["library"], usage, dead)
            state = state._replace(params={**state.params, "library": library})
            idle = jnp.where(dead, 0, idle)
        counters = {"updates": before["updates"] + 1, "usage": usage, "idle": idle}
        return state._replace(buffers={**state.buffers, **counters}), metrics

    def step(key, state: ModelState, obs, action) -> Step:
        del key  # the likeliest pair is taken
        params, buffers = state.params, state.buffers
        action = rows.clip_action(spec.action, action)
        objects, pairs = read(config, buffers, obs, action)
        choice = winners(-composer.apply(params["composer"], objects, pairs))
        change = candidates(network, params["library"], pairs)
        change = change[jnp.arange(num), choice.mechanism, choice.context]
        change = stats.denormalise(buffers["change"], change)
        change = jnp.pad(change, ((0, 0), (0, config.labels)))
        reward, discount = jnp.zeros(()), jnp.ones(())
        if config.reward:
            said = predict_outcome(params, buffers, obs, action)
            reward = stats.denormalise(buffers["reward"], said[:1])[0]
            discount = 1 - jnp.clip(_TERMINAL_SCALE * said[1], 0, 1)
        own = jnp.eye(num, dtype=bool)
        info = choice._asdict() | {"graph": own | own[choice.context]}
        if config.positions == 2:
            info["position"] = obs.reshape(num, size)[:, :2]
        return Step(obs + change.ravel(), reward, discount, info)

    def adapt(state: ModelState, transitions: Transition) -> ModelState:
        """Takes newly collected steps into statistics that all objects share."""

        def each(x):
            return x.reshape(-1, size)

        weight = jnp.repeat(transitions.mask, num)
        change = each(transitions.next_obs - transitions.obs)[:, :changing]
        action = rows.clip_action(spec.action, transitions.action)
        buffers, update = state.buffers, stats.update_moments
        return state._replace(
            buffers={
                **buffers,
                "obs": update(buffers["obs"], each(transitions.obs), weight),
                "change": update(buffers["change"], change, weight),
                "action": update(buffers["action"], action, transitions.mask),
                "reward": update(
                    buffers["reward"], transitions.reward[:, None], transitions.mask
                ),
            }
        )

    abilities = {"gradient", "graph"}
    if config.reward:
        abilities |= {"reward", "discount"}
    return from_step(
        ModelSpec(
            obs=spec.obs,
            action=spec.action,
            feature_size=obs_size,
            horizon=1,
            context=1,
            abilities=frozenset(abilities),
            window=config.window + 1,
            name="comet",
            tokens=tuple(map(str, range(num))),
        ),
        step,
        init=init,
        loss=loss,
        fit=fit,
        adapt=adapt,
    )


def _revive(key, library: Params, usage: Array, dead: Array) -> Params:
    """Mechanisms that never win become perturbed copies of the one most used."""
    leaves, structure = jax.tree.flatten(library)
    best, revived = jnp.argmax(usage), []
    for i, leaf in enumerate(leaves):
        noise = jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
        copy = leaf[best] + 0.1 * jnp.std(leaf[best]) * noise
        where = dead.reshape(-1, *[1] * (leaf.ndim - 1))
        revived.append(jnp.where(where, copy, leaf))
    return jax.tree.unflatten(structure, revived)


class Messages(linen.Module):
    """The baseline without mechanisms: one round of messages between objects."""

    width: int
    changing: int

    @linen.compact
    def __call__(self, objects: Objects, pairs) -> Float[Array, "N C"]:
        """Normalised changes; types are given."""
        num, label, width = pairs.shape[0], objects.label, self.width
        shape = (num, num, label.shape[1])
        labels = jnp.broadcast_to(label[:, None], shape), jnp.broadcast_to(label, shape)
        edges = jnp.concatenate([pairs, *labels], -1)
        messages = nn.MLP((width, width), "silu", name="edge")(edges)
        heard = jnp.sum(messages * (1 - jnp.eye(num))[..., None], 1)
        own = jnp.concatenate([objects.rest, label, heard], 1)
        return nn.MLP((width, width, self.changing), "silu", name="node")(own)


class SoftRouting(linen.Module):
    """The baseline that learns mechanisms and a soft choice among them jointly.

        D_i = sum_{m, j} softmax(q_i . k_{m, j} / sqrt(width)) f_m(s_i, s_j)

    Source: after Goyal et al., "Neural Production Systems", NeurIPS 2021.
    """

    mechanisms: int
    width: int
    changing: int

    @linen.compact
    def __call__(self, objects: Objects, pairs):
        """Normalised changes `[N, C]` and the weights `[N, M, N]`."""
        num, width, many = pairs.shape[0], self.width, self.mechanisms
        own = jnp.concatenate([objects.rest, objects.position, objects.label], 1)
        query = nn.MLP((width, width), name="query")(own)
        keys = nn.MLP((width, many * width), name="key")(own).reshape(num, many, width)
        scores = jnp.einsum("iw,jmw->imj", query, keys) / jnp.sqrt(width)
        weights = jax.nn.softmax(scores.reshape(num, -1)).reshape(num, many, num)
        library = linen.vmap(
            nn.MLP,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=1,
            axis_size=many,
        )((width, width, self.changing), "silu", name="library")
        return jnp.einsum("imj,imjc->ic", weights, library(pairs)), weights


def identification(
    choice: Choice, rule: Array, context: Array, acts: Array, mechanisms: int
) -> Metrics:
    """How well mechanisms stand for rules, on objects that a rule acts on.

    Args:
        choice: found, `[B, N]`.
        rule: true, `[B, N]`, from 1.
        context: true, `[B, N]`.
        acts: 1 where a rule acts throughout the window, `[B, N]`; others do not count.
        mechanisms: M.
    """
    weight = acts.astype(jnp.float32).ravel()
    table = matching.counts(
        choice.mechanism.ravel(),
        jnp.maximum(rule.ravel() - 1, 0),
        mechanisms,
        len(rule_particles.RULES) - 1,
        weight,
    )
    right = weight * (choice.context == context).ravel()
    return {
        "accuracy": matching.matched_accuracy(table),
        "nmi": matching.normalised_mutual_information(table),
        "context": jnp.sum(right) / jnp.maximum(jnp.sum(weight), 1),
    }


def experiment(key: Key[Array, ""], config: Config = EXPERIMENT) -> Metrics:
    """Mechanisms found in four environments, and a fifth learnt from few trajectories.

    `accuracy`, `context` and `nmi` are of the winners on held-out windows in which one
    rule acts throughout; `/window_1` is competition over single steps, `/routing` the
    jointly trained soft choice. `rollout/...` are mean distances of imagined from true
    positions over 20 steps of the new environment, with six discs, by number of
    trajectories adapted on, after both have seen the four: COMET's classifier learns,
    the message-passing net is fine-tuned whole; the best round of each on validation
    trajectories counts, the start included. `straight` knows no rule.
    """
    keys = jax.random.split(key, 12)
    env = rule_particles.rule_particles(push=0.0)
    both = dataclasses.replace(config, phase="both")
    short = dataclasses.replace(config, phase="competition", window=1)
    some, _ = _mixed(keys[0], env, _TEST, config.window)
    test, acting = _mixed(keys[1], env, _TEST, config.window)
    held = jnp.all(acting.rule == acting.rule[:, :1], 1)
    held &= jnp.all(acting.context == acting.context[:, :1], 1)
    rule, context = acting.rule[:, 0], acting.context[:, 0]
    acts = held & (rule > 0)

    def compete(config, key):
        init_key, fit_key = jax.random.split(key)
        model = comet(config, env.spec)
        state = model.adapt(model.init(init_key), rows.merged(some))

        def update(key, state, _):
            draw_key, fit_key = jax.random.split(key)
            windows, _ = _mixed(draw_key, env, _BATCH, config.window)
            return model.fit(fit_key, state, windows)

        state, curve = optimise.repeat(update, state, fit_key, None, _UPDATES)
        errors = jax.vmap(lambda window: _errors(config, state, window))(test)
        choice = winners(over_windows(jnp.moveaxis(errors, 1, 0), config.window)[0])
        found = identification(choice, rule, context, acts, config.mechanisms)
        share = jnp.mean(jax.nn.one_hot(choice.mechanism, config.mechanisms), (0, 1))
        entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)))
        return state, found | {"entropy": entropy}, curve

    state, found, curve = compete(both, keys[2])
    _, found_short, _ = compete(short, keys[3])
    routed = _routing(keys[4], env, config, state, test, rule, context, acts)
    named = found | {f"{name}/window_1": value for name, value in found_short.items()}
    return (
        named
        | {f"{name}/routing": value for name, value in routed.items()}
        | {
            "acting": jnp.mean(acts),
            "error": jnp.mean(curve["winner"][-100:]),
            "finite": jnp.min(curve["finite"]),
        }
        | _transfer(keys[5], config, state)
    )


def _draw(key, env, index, length: int, burn: int = 8):
    """Windows `[B, T, ...]` of these environments and what truly acts, `[B, T, N]`.

    A window begins after 0 ... `burn` steps, at random.
    """
    environments = rule_particles.ENVIRONMENTS
    table = {
        f.name: jnp.array([e.get(f.name, 0.0) for e in environments])
        for f in rule_particles.FACTORS
    }
    still = jnp.zeros(0)

    def one(i, index):
        params = {name: values[index] for name, values in table.items()}
        start_key, burn_key, step_key = jax.random.split(jax.random.fold_in(key, i), 3)
        wait = jax.random.randint(burn_key, (), 0, burn + 1)

        def step(state, t):
            after = env.step(jax.random.fold_in(step_key, t), state, still)
            acting = rule_particles.acting(state.physics, state.params)
            return after, (state.obs, after.obs, after.reward, acting)

        start = env.reset(start_key, params)
        _, rows_ = jax.lax.scan(step, start, jnp.arange(burn + length))
        obs, after, reward, acting = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, wait, length), rows_
        )
        ones = jnp.ones(length)
        extras = {"next_obs": after}
        action = jnp.zeros((length, 0))
        return Trajectory(obs, action, reward, ones, ones, extras), acting

    return jax.vmap(one)(jnp.arange(len(index)), index)


def _mixed(key, env, num: int, length: int):
    """`_draw` from the environments that are trained on, each in turn."""
    return _draw(key, env, jnp.arange(num) % _NEW, length)


def _changing(config: Config) -> int:
    """Numbers of an object that are predicted, where its size is given."""
    return (config.object_size or 0) - config.labels


def _read(config: Config, buffers, obs):
    """Objects and pairs of one observation, without action."""
    return read(config, buffers, obs, jnp.zeros(0))


def _errors(config: Config, state, window) -> Float[Array, "T N M N"]:
    """Squared errors of all candidates at every step of one window."""
    network = mechanism(config, _changing(config))

    def one(obs, after):
        _, pairs = _read(config, state.buffers, obs)
        change = candidates(network, state.params["library"], pairs)
        return squared_errors(target(config, state.buffers, obs, after), change)

    return jax.vmap(one)(window.obs, window.extras["next_obs"])


def _regress(config: Config, buffers, predict, optimiser):
    """One update of a network that predicts changes, `(key, state, windows)`."""

    def loss(key, state, window):
        del key

        def one(obs, after):
            change = predict(state.params, *_read(config, buffers, obs))
            return jnp.mean((change - target(config, buffers, obs, after)) ** 2)

        error = jax.vmap(one)(window.obs, window.extras["next_obs"])
        return jnp.mean(error), (state.buffers, {})

    return optimise.fit(loss, optimiser)


def _pretrain(key, env, config: Config, buffers, network, predict):
    """A baseline trained on the environments of the competition."""
    init_key, fit_key = jax.random.split(key)
    scene = _read(config, buffers, jnp.zeros(env.spec.obs.shape))
    optimiser = optax.adam(config.learning_rate)
    state = optimise.init_state(optimiser, network.init(init_key, *scene))
    fit = _regress(config, buffers, predict, optimiser)

    def update(key, state, _):
        draw_key, fit_key = jax.random.split(key)
        windows, _ = _mixed(draw_key, env, _BATCH, config.window)
        return fit(fit_key, state, windows)

    return optimise.repeat(update, state, fit_key, None, _UPDATES)[0]


def _routing(key, env, config, state, test, rule, context, acts) -> Metrics:
    """Identification by the jointly trained soft choice."""
    buffers = state.buffers
    network = SoftRouting(config.mechanisms, config.width, _changing(config))
    predict = lambda params, *scene: network.apply(params, *scene)[0]
    fitted = _pretrain(key, env, config, buffers, network, predict)

    def choose(obs):
        scene = _read(config, buffers, obs)
        return winners(-network.apply(fitted.params, *scene)[1])

    choice = jax.vmap(choose)(test.obs[:, 0])
    return identification(choice, rule, context, acts, config.mechanisms)


def _transfer(key, config: Config, state: ModelState) -> Metrics:
    """Rollout errors in the new environment after adapting on few trajectories."""
    keys = jax.random.split(key, 6)
    env = rule_particles.rule_particles(push=0.0)
    new = rule_particles.rule_particles(_NEW_DISCS, push=0.0)
    buffers = state.buffers
    messages = Messages(config.composer_width, _changing(config))
    born = _pretrain(keys[0], env, config, buffers, messages, messages.apply)
    composing = dataclasses.replace(config, phase="composition", decay_updates=None)
    model = comet(composing, new.spec)
    start = optimise.init_state(optax.adam(config.learning_rate), state.params, buffers)

    def trajectories(key, num):
        return _draw(key, new, jnp.full(num, _NEW), _LENGTH, burn=0)[0]

    valid, test = trajectories(keys[2], 50), trajectories(keys[3], 256)

    def follow(imagine, windows):
        """Mean distance of imagined from true positions."""

        def one(window):
            gap = imagine(window.obs[0]) - window.extras["next_obs"]
            gap = gap.reshape(_LENGTH, -1, config.object_size)
            return jnp.mean(jnp.linalg.norm(gap[..., : config.positions], axis=-1))

        return jnp.mean(jax.vmap(one)(windows))

    def by_comet(state):
        still, num = jnp.zeros((_LENGTH + 1, 0)), _LENGTH + 1
        imagine = lambda obs: model.imagine(jax.random.key(0), state, obs, still, num)
        return lambda obs: imagine(obs).obs[1:]

    def by_step(step):
        """All observations after the first one, from a prediction of the next."""
        again = lambda obs, _: (step(obs),) * 2
        return lambda obs: jax.lax.scan(again, obs, None, length=_LENGTH)[1]

    def by_messages(state):
        def step(obs):
            change = messages.apply(state.params, *_read(config, buffers, obs))
            change = stats.denormalise(buffers["change"], change)
            return obs + jnp.pad(change, ((0, 0), (0, config.labels))).ravel()

        return by_step(step)

    def adapt(key, fit, imaginer, state, windows):
        """The state of the round that is best on the validation trajectories."""

        def update(key, state, _):
            draw_key, fit_key = jax.random.split(key)
            at = jax.random.randint(draw_key, (32,), 0, windows.reward.shape[0])
            return fit(fit_key, state, jax.tree.map(lambda x: x[at], windows))

        def one(carry, i):
            state, best, least = carry
            round_key = jax.random.fold_in(key, i)
            state, _ = optimise.repeat(update, state, round_key, None, _PER_ROUND)
            error = follow(imaginer(state), valid)
            best = tree.where(error < least, state, best)
            return (state, best, jnp.minimum(error, least)), None

        begin = (state, state, follow(imaginer(state), valid))
        return jax.lax.scan(one, begin, jnp.arange(_ROUNDS))[0][1]

    optimiser = optax.adam(config.learning_rate)
    tune = _regress(config, buffers, messages.apply, optimiser)
    tuned = optimise.init_state(optimiser, born.params)
    data = trajectories(keys[4], max(_TRAJECTORIES))
    straight = by_step(lambda obs: _fly(config, obs))
    found = {"rollout/straight": follow(straight, test)}
    adapt_key = keys[5]
    for num in _TRAJECTORIES:
        windows = _cut(jax.tree.map(lambda x, n=num: x[:n], data), config.window)
        for name, fit, imaginer, begin in (
            ("comet", model.fit, by_comet, start),
            ("messages", tune, by_messages, tuned),
        ):
            # The same draws of windows for both.
            fit_key = jax.random.fold_in(jax.random.clone(adapt_key), num)
            best = adapt(fit_key, fit, imaginer, begin, windows)
            found[f"rollout/{name}_{num}"] = follow(imaginer(best), test)
    return found


def _cut(data: Trajectory, length: int) -> Trajectory:
    """All windows of so many rows, `[B, length, ...]`."""
    starts = jnp.arange(data.reward.shape[1] - length + 1)
    at = starts[:, None] + jnp.arange(length)
    rows_ = data.reward.shape[0] * len(starts)
    return jax.tree.map(lambda x: x[:, at].reshape(rows_, length, *x.shape[2:]), data)


def _fly(config: Config, obs: Float[Array, " O"]) -> Float[Array, " O"]:
    """Every object goes on at its velocity: what knows no rule."""
    x = obs.reshape(-1, config.object_size)
    p = config.positions
    return x.at[:, :p].add(x[:, p : 2 * p]).ravel()
