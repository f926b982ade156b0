"""TDM: one transformer learns the dynamics of many systems, and plans in unseen ones.

Trained on trajectories of many systems, the model reads what the system at hand did so
far and so finds out, in its context, what it is: its masses, its motor, the sign of its
action. Planning with it then works where a policy cloned from the same data does not.

    step    [o_t, a_t^1 ... a_t^A]; the last token predicts all of o_{t+1} - o_t and r_t
    scalar  [o_t^1 ... o_t^O, a_t^1 ... a_t^A], every number a bin; the next observation
            is predicted number by number, and may have several modes

Source: Schubert et al., "A Generalist Dynamics Model for Control", 2023. The layout
"step", its loss and its optimiser are those of Kotb et al., "QT-TDM: Planning with
Transformer Dynamics Model and Autoregressive Q-Learning", 2024.
Departs: rewards are predicted, not read, since `observe` is not told them. An
observation's token also says what led to it, the last change and action: with bare
observations 2000 updates taught the reduced model hardly anything about the system at
hand. Places are counted modulo the context from a random start, so that histories of
any length look alike. A termination is predicted too. The model without a context, in
the experiment, is the same network that reads one step, instead of an MLP.
Keys and values of what was read are kept: 64 rollouts of 14 steps behind 10 take 20 ms
on one core, 113 ms if every step reads everything again (`cached=False`).
Shapes: C context, S systems, E episodes, T steps of one, O observation, A action.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxwm.agents import mpc
from jaxwm.core import checks, loop, optimise, stats, tree
from jaxwm.dynamics import rows, token_layouts
from jaxwm.dynamics.from_env import from_env
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.envs import families
from jaxwm.nn.transformer import Cache, empty_cache
from jaxwm.train import evaluate
from jaxwm.types import (
    Env,
    EnvSpec,
    Metrics,
    ModelSpec,
    ModelState,
    PyTree,
    Trajectory,
    Transition,
    WorldModel,
)

_TEACHER = mpc.Config(horizon=14, num=48, elites=8, iterations=2)
# Coloured noise: inside the ranges, on seed 100, it halves what the model loses against
# planning with the truth, most of it in the first 15 steps; the truth gains nothing.
_PLAN = mpc.Config(horizon=14, num=64, elites=8, iterations=3, colour=1.0, keep=2)
_FEW = (1, 3, 10)  # episodes of a new system


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on one core. `PAPER` has QT-TDM's sizes."""

    tokens: str = "step"  # or "scalar"
    context: int = 24  # C, steps read and imagined together
    history: int = 10  # steps of the past that stay readable at any horizon
    embed: int = 64
    blocks: int = 2
    heads: int = 4
    bins: int = 64  # of every action dimension; "scalar": of every number
    head: tuple[int, ...] = (128, 128)  # hidden units of the predictions' MLP
    temperature: float = 1.0  # "scalar": of drawn numbers; 0 takes the likeliest bin
    cached: bool = True  # False: every imagined step reads everything again
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    clip: float = 1.0  # largest norm of a gradient
    decay_updates: int | None = 4000  # updates until the rate has fallen to 0
    ema: float = 0.99  # decay of the weights that imagine; 0: the trained ones
    # Of the experiment.
    updates: int = 4000
    batch: int = 16  # windows per update
    systems: int = 1024  # trained on
    held: int = 16  # held out and planned in, half of them beyond the ranges
    tested: int = 64  # held out and predicted, half of them beyond the ranges
    trials: int = 4  # episodes of each system that is planned in
    few: int = 2  # systems that are fine-tuned on few episodes
    few_updates: int = 200
    episodes: int = 2  # per system; half planned with the truth, half random
    steps: int = 40  # T, of an episode
    teacher: mpc.Config = _TEACHER  # plans the recordings
    plan: mpc.Config = _PLAN  # plans when it counts

    def __post_init__(self):
        checks.finite(self)
        if self.tokens not in ("step", "scalar"):
            raise ValueError(f'tokens must be "step" or "scalar", got {self.tokens!r}.')
        for name in ("context", "blocks", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        if not 0 <= self.history < self.context:
            raise ValueError(
                f"history must be in 0 ... context - 1 = {self.context - 1}, got "
                f"{self.history}; imagined steps need places of their own."
            )
        if self.embed < 1 or self.embed % self.heads:
            raise ValueError(
                f"embed must be a positive multiple of heads = {self.heads}, got "
                f"{self.embed}."
            )
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.temperature < 0:
            raise ValueError(
                f"temperature must not be negative, got {self.temperature}."
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}.")

    @property
    def sizes(self) -> token_layouts.Sizes:
        """Of the transformer."""
        return token_layouts.Sizes(
            self.context, self.embed, self.blocks, self.heads, self.bins, self.head
        )


PAPER = Config(
    context=20,
    history=10,
    embed=256,
    blocks=5,
    bins=256,
    head=(512, 512, 512),
    decay_updates=None,
    learning_rate=1e-4,
    clip=30.0,
)
TINY = Config(
    context=8,
    history=3,
    embed=16,
    blocks=1,
    heads=2,
    bins=16,
    head=(16,),
    updates=2,
    batch=4,
    systems=2,
    held=2,
    tested=2,
    trials=1,
    few=1,
    few_updates=2,
    episodes=2,
    steps=20,
    teacher=mpc.Config(horizon=2, num=4, elites=2, iterations=1),
    plan=mpc.Config(horizon=4, num=4, elites=2, iterations=1),
)


class Memory(NamedTuple):
    """The last C steps, newest last; the first C - length rows are empty."""

    obs: Float[Array, "C O"]
    action: Float[Array, "C A"]  # of the newest row: not known yet
    length: Int[Array, ""]
    exists: Float[Array, " O"]  # 1 for dimensions that this system has

    @property
    def newest(self) -> Float[Array, " O"]:
        """The last observation."""
        return self.obs[-1]


class Decoder(NamedTuple):
    """A rollout under way: C places, of which the first `used` are taken."""

    newest: Float[Array, " O"]  # its action and its tokens come next
    obs: Float[Array, "C O"]
    action: Float[Array, "C A"]
    present: Bool[Array, " C"]  # places that hold a step, or will
    used: Int[Array, ""]  # never batched: no cond becomes a select under `vmap`
    exists: Float[Array, " O"]
    caches: list[Cache]


def tdm(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds the model's pure functions for systems of at most these sizes.

    Systems with fewer dimensions are padded with zeros (`envs.families.padded`): give
    the mask of the dimensions that exist, `[O]`, as the context of `initial`, and in
    training windows as `extras["exists"]` `[T, O]`. So that no system dominates,
    `extras["scale"]` `[T, O + 1]` may hold the standard deviations, in that system, of
    what is predicted: change of the observation, reward.

    `imagine` reads at least `history` past steps (as far as there are any) and keeps
    the keys and values of what it has read. A horizon beyond `context - history` goes
    on from the last `history` steps, real and imagined, each time the context is full.

    Raises:
        ValueError: for observations that are not one flat vector or discrete actions.
    """
    obs_size, action_size = spec.flat_sizes("tdm")
    C = config.context
    if config.tokens == "step":
        layout = token_layouts.step_layout(config.sizes, spec)
    else:
        layout = token_layouts.scalar_layout(config.sizes, spec, config.temperature)
    rate = config.learning_rate
    if config.decay_updates is not None:
        rate = optax.cosine_decay_schedule(rate, config.decay_updates)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, eps=1e-5, weight_decay=config.weight_decay),
    )

    def init(key: Key[Array, ""]) -> ModelState:
        params = layout.init(key)
        buffers = {
            "statistics": rows.no_statistics(obs_size, action_size),
            "ema": params,
            "updates": jnp.zeros((), jnp.int32),
        }
        return optimise.init_state(optimiser, params, buffers)

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        """Mean loss per step; `key` draws the first step's place and what is cut."""
        cut_key, key = jax.random.split(key)
        data, exists, scale = _steps_of(cut_key, window, state, C)
        each, metrics = layout.loss(
            key, state.params, state.buffers["statistics"], data, exists, scale
        )
        # Over all rows, also padding: each real step counts the same in a batch.
        return jnp.mean(data.valid * each), (state.buffers, metrics)

    def initial(state: ModelState, context=None) -> Memory:
        del state  # empty, whatever was learnt
        exists = jnp.ones(obs_size) if context is None else jnp.asarray(context)
        if exists.shape != (obs_size,):
            raise ValueError(
                f"context must be None or a mask of {obs_size} dimensions that exist, "
                f"got shape {exists.shape}."
            )
        obs, action = jnp.zeros((C, obs_size)), jnp.zeros((C, action_size))
        return Memory(obs, action, jnp.zeros((), jnp.int32), exists.astype(obs.dtype))

    def observe(key, state, memory: Memory, obs, prev_action, is_first) -> Memory:
        del key  # nothing is drawn
        memory = tree.where(
            jnp.asarray(is_first), initial(state, memory.exists), memory
        )
        prev_action = jnp.where(memory.length > 0, prev_action, 0.0)
        return Memory(
            jnp.roll(memory.obs, -1, 0).at[-1].set(obs),
            jnp.roll(memory.action.at[-1].set(prev_action), -1, 0).at[-1].set(0.0),
            jnp.minimum(memory.length + 1, C),
            memory.exists,
        )

    def newest(state, memory: Memory | Decoder) -> Float[Array, " O"]:
        del state  # raw units: no statistics needed
        return memory.newest

    def no_caches() -> list[Cache]:
        return empty_cache(layout.cache_size, config.heads, config.embed, config.blocks)

    def read(state: ModelState, decoder: Decoder, num: int) -> list[Cache]:
        """Keys and values of the first `num` places."""
        return layout.read(
            state.buffers["ema"],
            state.buffers["statistics"],
            decoder.obs[:num],
            decoder.action[:num],
            decoder.exists,
            jnp.arange(num),
            decoder.present,
            no_caches(),
        )

    def fill(state: ModelState, decoder: Decoder, num: int) -> Decoder:
        """Reads the first `num` places anew."""
        anew = config.cached and num
        caches = read(state, decoder, num) if anew else no_caches()
        return decoder._replace(caches=caches, used=jnp.int32(num))

    def begin(state: ModelState, memory: Memory, horizon: int) -> Decoder:
        """The history before the newest step takes the first places."""
        keep = min(max(C - horizon, config.history), C - 1)
        last = slice(C - 1 - keep, C - 1)
        ahead = [(0, C - keep), (0, 0)]
        decoder = Decoder(
            memory.newest,
            jnp.pad(memory.obs[last], ahead),
            jnp.pad(memory.action[last], ahead),
            jnp.arange(C) >= keep - (memory.length - 1),
            jnp.int32(keep),
            memory.exists,
            [],
        )
        return fill(state, decoder, keep)

    def forget(state: ModelState, decoder: Decoder) -> Decoder:
        """Moves the last `history` steps to the front and frees the other places."""
        keep = config.history
        roll = lambda x: jnp.roll(x, keep - C, 0)
        present = roll(decoder.present) | (jnp.arange(C) >= keep)
        decoder = decoder._replace(
            obs=roll(decoder.obs), action=roll(decoder.action), present=present
        )
        return fill(state, decoder, keep)

    def step(key, state: ModelState, decoder: Decoder, action) -> Step:
        decoder = jax.lax.cond(
            decoder.used == C,
            lambda decoder: forget(state, decoder),
            lambda decoder: decoder,
            decoder,
        )
        at = decoder.used
        decoder = decoder._replace(
            obs=decoder.obs.at[at].set(decoder.newest),
            action=decoder.action.at[at].set(action),
        )
        caches = decoder.caches
        if not config.cached:  # reads all earlier steps again
            num = at * layout.num_tokens
            caches = [x._replace(length=num) for x in read(state, decoder, C)]
        next_obs, reward, discount, info, caches = layout.next(
            key,
            state.buffers["ema"],
            state.buffers["statistics"],
            decoder.obs,
            decoder.action,
            at,
            decoder.exists,
            decoder.present,
            caches,
        )
        if config.cached:
            decoder = decoder._replace(caches=caches)
        after = decoder._replace(newest=next_obs, used=at + 1)
        return Step(after, reward, discount, info)

    def adapt(state: ModelState, transitions: Transition) -> ModelState:
        statistics = rows.update_statistics(
            state.buffers["statistics"], transitions, spec.action
        )
        return state._replace(buffers={**state.buffers, "statistics": statistics})

    drawn = config.tokens == "scalar" and config.temperature > 0
    model = from_step(
        ModelSpec(
            obs=spec.obs,
            action=spec.action,
            feature_size=obs_size,
            horizon=1,
            context=C,
            # No "gradient": actions are bins.
            abilities=frozenset(
                {"reward", "discount"} | ({"stochastic"} if drawn else set())
            ),
            window=C + 1,
            name="TDM",
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

    def imagine(key, state, memory: Memory, actor, horizon: int):
        decoder = begin(state, memory, int(horizon))
        return model.imagine(key, state, decoder, actor, horizon)

    return model._replace(imagine=imagine)


def _steps_of(key, window: Trajectory, state: ModelState, most: int):
    """At most `most` steps that follow each other; what exists; how much it varies."""
    data = rows.transitions_of(window)
    size = data.obs.shape[-1]
    exists = window.extras.get("exists")
    exists = jnp.ones(size) if exists is None else exists[0]
    scale = window.extras.get("scale")
    if scale is None:
        scale = stats.scale(state.buffers["statistics"].target)
    else:
        scale = scale[0]
    excess = data.reward.shape[0] - most
    if excess > 0:
        start = jax.random.randint(key, (), 0, excess + 1)
        data = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, most, 0), data
        )
    return data, exists, scale


class System(NamedTuple):
    """What the experiment knows about one task."""

    env: Env
    family: families.Family


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Zero-shot prediction and planning on pendulums that were never seen.

    Trained on recordings of many pendulums, the model meets others, half of them beyond
    the ranges; it sees nothing of them but what happens to it. Beside it: the same
    network with a context of one step, which cannot know the system, and the same
    network as a policy, cloned from the better half of the recordings. All have equally
    many updates. Then it is fine-tuned on a few episodes of some of the new systems,
    beside the same network that learns from these episodes alone.

    Returns:
        `error/history_1`, `_3`, `_10`: squared error of the observation 10 steps ahead,
        over its variance, after so many steps of history; `error/context_free`.
        `error/tuned_1`, `_3`, `_10`: the same after 10 steps of history in the systems
        fine-tuned on so many episodes, `_0` on none; `error/scratch_1`, `_3`, `_10`.
        `return/...` of planning with the model (`tdm`) and with the environment itself
        (`true`), of the cloned policy and of random actions, mean over held-out
        systems. `score/tdm`, `score/clone`: where 0 is random and 1 is planning with
        the truth. `wins`: held-out systems in which planning beats the clone.
    """
    family = families.pendulum_family()
    env = family.env._replace(spec=family.env.spec._replace(time_limit=config.steps))
    of = System(env, family)
    names = ("draw", "held", "data", "test", "fit", "plan", "few")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    params = jax.vmap(family.draw)(loop.fold_in_each(keys["draw"], config.systems))
    tested_keys = loop.fold_in_each(keys["held"], config.tested)
    # In turn inside and beyond the ranges: the first few are half and half, too.
    tested = tree.where(
        jnp.arange(config.tested) % 2 > 0,
        jax.vmap(lambda key: family.draw(key, outside=True))(tested_keys),
        jax.vmap(family.draw)(tested_keys),
    )
    first = lambda num: jax.tree.map(lambda x: x[:num], tested)
    held, plan_key = first(config.held), keys["plan"]
    data = _record(keys["data"], of, params, config)
    test = _record(keys["test"], of, tested, config)

    model = tdm(config, env.spec)
    alone = tdm(dataclasses.replace(config, context=1, history=0), env.spec)
    fit_keys = jax.random.split(keys["fit"], 3)
    state = _train(fit_keys[0], model, data, config)
    alone_state = _train(fit_keys[1], alone, data, config)
    metrics = {"error/context_free": _error(alone, alone_state, test, 0)}
    for length in (1, 3, 10):
        metrics[f"error/history_{length}"] = _error(model, state, test, length)

    metrics |= _few_shot(keys["few"], of, first(config.few), state, config)

    clone = _clone(fit_keys[2], model, data, config, env.spec)
    true = mpc.mpc(from_env(env, family.locate), config.plan)
    planning = mpc.mpc(model, config.plan)
    random = (evaluate.uniform(env.spec), ())
    play = functools.partial(_returns, plan_key, of, held)
    by_model = lambda _: evaluate.act_of(planning, mpc.MPCState(state))
    by_truth = lambda own: evaluate.act_of(true, _knowing(own))
    returns = {
        # One after the other: the caches of one plan's candidates fit a core's own.
        "tdm": play(by_model, config.trials, one_by_one=True),
        "true": play(by_truth, config.trials),
        "clone": play(lambda _: clone, config.trials),
        "random": play(lambda _: random, 16),
    }
    mean = {name: jnp.mean(each) for name, each in returns.items()}
    for name in ("tdm", "clone"):
        room = mean["true"] - mean["random"]
        metrics[f"score/{name}"] = (mean[name] - mean["random"]) / room
    metrics["wins"] = jnp.sum(returns["tdm"] > returns["clone"]).astype(jnp.float32)
    return metrics | {f"return/{name}": value for name, value in mean.items()}


def _knowing(factors: PyTree) -> mpc.MPCState:
    """The state of an agent that plans with the environment itself."""
    return mpc.MPCState(ModelState({}, factors, ()))


def _record(key, of: System, params: PyTree, config: Config) -> Trajectory:
    """Episodes of every system, `[S, E, T, ...]`: half planned, half random."""
    agent = mpc.mpc(from_env(of.env, of.family.locate), config.teacher)
    random = evaluate.uniform(of.env.spec)

    def system(key, own):
        act, memory = evaluate.act_of(agent, _knowing(own), explore=True)

        def planned(key):
            return families.episode(key, of.env, own, act, config.steps, memory=memory)

        def undirected(key):
            return families.episode(key, of.env, own, random, config.steps)

        half = config.episodes // 2
        keys = jax.random.split(key, 2 * half)
        both = jax.vmap(planned)(keys[:half]), jax.vmap(undirected)(keys[half:])
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *both)

    num = jax.tree.leaves(params)[0].shape[0]
    return jax.vmap(system)(loop.fold_in_each(key, num), params)


def _windows(key, data: Trajectory, num: int, length: int) -> Trajectory:
    """`num` windows from anywhere in recordings `[S, E, T, ...]`."""
    systems, episodes, steps = data.reward.shape
    which_key, at_key = jax.random.split(key)
    which = jax.random.randint(which_key, (num, 1), 0, systems * episodes)
    at = jax.random.randint(at_key, (num, 1), 0, steps - length + 1)
    at = at + jnp.arange(length)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[which, at], data)


def _train(key, model: WorldModel, data: Trajectory, config: Config) -> ModelState:
    """Updates on windows; a model without history gets as many steps, one by one."""
    init_key, fit_key = jax.random.split(key)
    state = model.adapt(model.init(init_key), rows.merged(data))
    return _descend(fit_key, model, state, data, config)


def _descend(key, model: WorldModel, state: ModelState, data, config: Config):
    """The updates."""

    def update(key, state, data):
        window_key, fit_key = jax.random.split(key)
        windows = _windows(window_key, data, config.batch, config.context)
        if model.spec.context == 1:
            windows = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), windows)
        return model.fit(fit_key, state, windows)

    return optimise.repeat(update, state, key, data, config.updates)[0]


def _few_shot(key, of: System, params: PyTree, state: ModelState, config: Config):
    """Mean error in systems that the model is trained on, by number of episodes.

    Fine-tuned and from scratch have the same updates; fine-tuning, at a quarter of the
    learning rate.
    """
    data_key, test_key, init_key, tune_key, scratch_key = jax.random.split(key, 5)
    num, most = config.few_updates, max(_FEW)
    short = dataclasses.replace(config, updates=num, decay_updates=num)
    slow = dataclasses.replace(short, learning_rate=config.learning_rate / 4)
    tuned, scratch = tdm(slow, of.env.spec), tdm(short, of.env.spec)
    many = dataclasses.replace(config, episodes=2 * most)
    # A random episode comes first, then a planned one, and so on.
    order = jnp.arange(2 * most).reshape(2, most)[::-1].T.ravel()
    data = jax.tree.map(lambda x: x[:, order], _record(data_key, of, params, many))
    test = _record(test_key, of, params, many)
    # The optimiser begins anew.
    begin = tuned.init(init_key)._replace(
        params=state.buffers["ema"], buffers=state.buffers
    )

    def error(model, fit, data):
        def one(data, test):
            data, test = jax.tree.map(lambda x: x[None], (data, test))
            return _error(model, fit(data), test, 10)

        return jnp.mean(jax.vmap(one)(data, test))

    tune = lambda data: _descend(jax.random.clone(tune_key), tuned, begin, data, slow)
    learn = lambda data: _train(jax.random.clone(scratch_key), scratch, data, short)

    def both(num):
        # Each of the first `num` episodes equally often: one shape, one program.
        which = jnp.arange(np.lcm.reduce(_FEW)) % num
        few = jax.tree.map(lambda x: x[:, which], data)
        return error(tuned, tune, few), error(scratch, learn, few)

    found = {"error/tuned_0": error(tuned, lambda data: state, data)}
    for name, errors in zip(
        ("tuned", "scratch"), jax.lax.map(both, jnp.array(_FEW)), strict=True
    ):
        found |= {f"error/{name}_{n}": errors[i] for i, n in enumerate(_FEW)}
    return found


def _error(model: WorldModel, state: ModelState, test: Trajectory, length: int):
    """Error 10 steps behind the first step that has a history of 10."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), test)
    start, ahead = min(10, flat.reward.shape[1] // 2 - 1), 10
    ahead = min(ahead, flat.reward.shape[1] - start - 1)

    def one(window):
        memory = model.initial(state, None)
        for i in range(start - length, start + 1):
            first, action = i == start - length, window.action[i - 1]
            memory = model.observe(None, state, memory, window.obs[i], action, first)
        actions = window.action[start : start + ahead + 1]
        rollout = model.imagine(jax.random.key(0), state, memory, actions, ahead + 1)
        return (rollout.obs[ahead] - window.obs[start + ahead]) ** 2

    return jnp.mean(jnp.mean(jax.vmap(one)(flat), 0) / jnp.var(flat.obs, (0, 1)))


def _clone(key, model: WorldModel, data: Trajectory, config: Config, spec: EnvSpec):
    """The network as a policy: `(act, memory)` that read the same history.

    Cross-entropy of the action's bins in the better half, by return, of each system's
    episodes.
    """
    systems, episodes, _ = data.reward.shape
    order = jnp.argsort(-jnp.sum(data.reward, -1), 1)[:, : episodes // 2]
    best = jax.tree.map(lambda x: x[jnp.arange(systems)[:, None], order], data)
    flat = best.obs.reshape(-1, best.obs.shape[-1])
    network = token_layouts.step_network(config.sizes)
    bins = token_layouts.action_bins(config.sizes, spec)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.clip), optax.adamw(config.learning_rate)
    )
    exists, everyone = jnp.ones(flat.shape[-1]), jnp.ones(config.context, bool)
    places = jnp.arange(config.context)

    statistics = rows.update_statistics(
        rows.no_statistics(flat.shape[-1], spec.action.size),
        rows.merged(best),
        spec.action,
    )

    def logits(params, obs, action, place, present):
        led = token_layouts.led_to(bins, statistics, obs, action, present)
        obs, ids = stats.normalise(statistics.obs, obs), bins.encode(action)
        out, _ = network.apply(params, obs, exists, ids, led, place, present)
        return out.action

    def loss(params, window: Trajectory, first):
        action, place = bins.encode(window.action), (first + places) % config.context
        found = logits(params, window.obs, window.action, place, everyone)
        cross = optax.softmax_cross_entropy_with_integer_labels(found, action)
        return jnp.mean(cross)

    def update(key, state, data):
        window_key, first_key = jax.random.split(key)
        windows = _windows(window_key, data, config.batch, config.context)
        first = jax.random.randint(first_key, (config.batch,), 0, config.context)
        return optimise.gradient_step(
            optimise.batched(loss), optimiser, state, windows, first
        )

    init_key, fit_key = jax.random.split(key)
    window = flat[: config.context]
    nothing = jnp.zeros((len(window), spec.action.size), jnp.int32)
    params = token_layouts.init_step(network, init_key, window, nothing)
    state = optimise.init_state(optimiser, params)
    state, _ = optimise.repeat(update, state, fit_key, best, config.updates)

    def act(key, memory, obs, is_first):
        del key  # the likeliest action
        seen, previous = memory
        seen = model.observe(None, None, seen, obs, previous, is_first)
        present = places >= config.context - seen.length
        taken = seen.action
        for i in range(spec.action.size):
            found = logits(state.params, seen.obs, taken, places, present)
            likeliest = bins.decode(jnp.argmax(found[-1], -1))
            taken = taken.at[-1, i].set(likeliest[i])
        return taken[-1], (seen, taken[-1])

    return act, (model.initial(None, None), jnp.zeros(spec.action.size))


def _returns(
    key, of: System, held: PyTree, make: Callable, episodes: int, one_by_one=False
) -> Float[Array, " S"]:
    """Mean return in each system; `make(factors) -> (act, memory)`."""

    def one(i):
        own = jax.tree.map(lambda x: x[i], held)
        act, memory = make(own)
        episode_key = jax.random.fold_in(key, i)
        found = evaluate.returns(
            episode_key, of.env, act, episodes, memory=memory, params=own
        )
        return jnp.mean(found.returns)

    each = jnp.arange(jax.tree.leaves(held)[0].shape[0])
    return jax.lax.map(one, each) if one_by_one else jax.vmap(one)(each)
