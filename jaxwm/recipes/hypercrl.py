"""HyperCRL: a world model for tasks that come one after the other and are not stored.

One hypernetwork H makes all weights of a small dynamics network from the embedding of a
task. Only the embeddings stay; when a new task begins, the weights that H makes for the
old ones are frozen as targets, and learning the new one may not change them:

    L_task = |f(x, a; H_theta(e_k)) - y|^2 / D            on the current task's data
    L_reg  = beta / (k - 1) sum_{j<k} |H_{theta + dtheta}(e_j) - W*_j|^2

e_k follows L_task alone; theta follows both, and dtheta, a constant, is the step that
its optimiser would take for L_task. The first task has no L_reg.

Source: Huang et al., "Continual Model-Based Reinforcement Learning with Hypernetworks",
ICRA 2021, and its reference code.
Departs: reward and termination are predicted too, as further outputs of f; losses are
means over the batch, so beta is the reference's, which multiplies both by its size; in
the experiment, planning with the truth records the data.
Shapes: K tasks, E embedding, W weights, B batch, O observation, A action, D = O + 2.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxwm import nn
from jaxwm.agents import mpc
from jaxwm.core import checks, loop, optimise, stats, tree
from jaxwm.dynamics import rows
from jaxwm.dynamics.from_env import from_env
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.envs import families
from jaxwm.nn.hypernetwork import Hypernetwork, hypernetwork
from jaxwm.train import evaluate
from jaxwm.types import (
    EnvSpec,
    Metrics,
    ModelSpec,
    ModelState,
    Params,
    PyTree,
    Trajectory,
    Transition,
    WorldModel,
)

_TERMINAL_WEIGHT = 0.1  # of the cross-entropy of terminations
_TEACHER = mpc.Config(horizon=14, num=48, elites=8, iterations=2)
_PLAN = mpc.Config(horizon=14, num=48, elites=8, iterations=3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on one core. `PAPER` is the published one (pusher)."""

    tasks: int = 5  # K, rows of the table of embeddings
    embedding: int = 8  # E
    main: tuple[int, ...] = (64, 64)  # hidden units of the dynamics network
    hidden: tuple[int, ...] = (32, 32)  # of the hypernetwork
    chunk: int | None = None  # weights made in one piece; None: all
    beta: float = 0.05  # weight of L_reg
    look_ahead: bool = True  # False: dtheta is 0
    learning_rate: float = 1e-3
    clip: float = 5.0  # largest norm of the gradient of theta
    # Of the experiment.
    updates: int = 2000  # per task
    batch: int = 100
    episodes: int = 40  # per task; half planned, half random
    steps: int = 50  # of an episode
    trials: int = 8  # episodes that judge planning
    coreset: int = 100  # transitions per old task that the coreset baseline keeps
    teacher: mpc.Config = _TEACHER  # plans the recordings
    plan: mpc.Config = _PLAN  # plans with the model

    def __post_init__(self):
        checks.finite(self)
        checks.at_least(
            1, self, "tasks", "embedding", "updates", "batch", "trials", "coreset"
        )
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}.")
        checks.positive(self, "learning_rate", "clip")


PAPER = Config(
    embedding=10,
    main=(200, 200),
    hidden=(50, 50),
    learning_rate=1e-4,
    plan=mpc.Config(horizon=20, num=500, elites=40, iterations=5),
)
TINY = Config(
    tasks=3,
    embedding=4,
    main=(8,),
    hidden=(8,),
    updates=2,
    batch=8,
    episodes=2,
    steps=6,
    trials=1,
    coreset=4,
    teacher=mpc.Config(horizon=2, num=4, elites=2, iterations=1),
    plan=mpc.Config(horizon=2, num=4, elites=2, iterations=1),
)


class Memory(NamedTuple):
    """The last observation, and whose dynamics it follows."""

    obs: Float[Array, " O"]
    task: Int[Array, ""]  # 0 ... K - 1


class Rolling(NamedTuple):
    """A rollout under way: the weights were made once."""

    obs: Float[Array, " O"]
    weights: Params
    statistics: rows.Statistics


def hypercrl(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds the model's pure functions for tasks of the given sizes.

    `fit` and `adapt` learn the task that `start_task` began last (the first one at
    first). `initial(state, task)` chooses whose dynamics are imagined; None is the
    current task.

    Raises:
        ValueError: for observations that are not one flat vector or discrete actions,
            and for a task id beyond the table.
    """
    obs_size, action_size = spec.flat_sizes("hypercrl")
    network, hyper = _networks(config, obs_size, action_size)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.clip), optax.adam(config.learning_rate)
    )
    embedder = optax.adam(config.learning_rate)

    def init(key: Key[Array, ""]) -> ModelState:
        theta_key, embedding_key = jax.random.split(key)
        shape = (config.tasks, config.embedding)
        params = {
            "theta": hyper.init(theta_key),
            "embeddings": jax.random.normal(embedding_key, shape),
        }
        each = rows.no_statistics(obs_size, action_size)
        statistics = jax.tree.map(lambda x: jnp.stack([x] * config.tasks), each)
        buffers = {
            "task": jnp.int32(0),
            "targets": jnp.zeros((config.tasks, hyper.num_weights)),
            "statistics": statistics,
        }
        opt_state = {
            "theta": optimiser.init(params["theta"]),
            "embeddings": embedder.init(params["embeddings"]),
        }
        return tree.strong(ModelState(params, buffers, opt_state))

    def weights_of(params: Params, task) -> Params:
        embedding = jnp.take(params["embeddings"], task, 0)
        return hyper.generate(params["theta"], embedding)

    def task_loss(params: Params, statistics: rows.Statistics, task, window):
        """L_task of one window."""
        return _error(network, weights_of(params, task), statistics, window, spec)

    def regulariser(theta: Params, step: Params, state: ModelState):
        """L_reg at theta + dtheta; masked, so that shapes do not depend on k."""
        moved = jax.tree.map(jnp.add, theta, step)
        made = jax.vmap(hyper.flat, (None, 0))(moved, state.params["embeddings"])
        task = state.buffers["task"]
        gap = jnp.sum((made - state.buffers["targets"]) ** 2, -1)  # [K]
        old = jnp.arange(config.tasks) < task
        gap = jnp.sum(jnp.where(old, gap, 0.0))
        return config.beta * gap / jnp.maximum(task, 1)

    def loss(key, state: ModelState, window: Trajectory):
        del key  # deterministic
        task = state.buffers["task"]
        value, metrics = task_loss(state.params, _own(state, task), task, window)
        return value, (state.buffers, metrics)

    def fit(key, state: ModelState, windows: Trajectory) -> tuple[ModelState, Metrics]:
        del key
        task = state.buffers["task"]

        def mean_loss(params):
            values, metrics = jax.vmap(task_loss, (None, None, None, 0))(
                params, _own(state, task), task, windows
            )
            return jnp.mean(values), stats.mean_metrics(metrics)

        (value, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            state.params
        )
        theta, opt_state = state.params["theta"], state.opt_state
        step = jax.tree.map(jnp.zeros_like, theta)
        if config.look_ahead:
            step, _ = optimiser.update(grads["theta"], opt_state["theta"], theta)
        penalty, pull = jax.value_and_grad(regulariser)(
            theta, jax.lax.stop_gradient(step), state
        )
        total = jax.tree.map(jnp.add, grads["theta"], pull)
        updates, theta_state = optimiser.update(total, opt_state["theta"], theta)
        # Only the current row has a gradient; with fresh moments the others stay.
        moves, embedding_state = embedder.update(
            grads["embeddings"], opt_state["embeddings"], state.params["embeddings"]
        )
        norm = optax.tree.norm(total)
        params = {
            "theta": optax.apply_updates(theta, updates),
            "embeddings": optax.apply_updates(state.params["embeddings"], moves),
        }
        metrics = {
            **metrics,
            "loss": value + penalty,
            "regulariser": penalty,
            "grad_norm": norm,
            "finite": jnp.isfinite(value + norm).astype(jnp.float32),
        }
        opt_state = {"theta": theta_state, "embeddings": embedding_state}
        return ModelState(params, state.buffers, opt_state), metrics

    def adapt(state: ModelState, transitions: Transition) -> ModelState:
        task, table = state.buffers["task"], state.buffers["statistics"]
        own = rows.update_statistics(_own(state, task), transitions, spec.action)
        table = jax.tree.map(lambda x, new: x.at[task].set(new), table, own)
        return state._replace(buffers={**state.buffers, "statistics": table})

    def initial(state: ModelState, context=None) -> Memory:
        if isinstance(context, int):
            _check_task(context, config, first=0)
        task = state.buffers["task"] if context is None else context
        return Memory(jnp.zeros(obs_size), jnp.asarray(task, jnp.int32))

    def observe(key, state, memory: Memory, obs, prev_action, is_first) -> Memory:
        del key, state, prev_action, is_first  # the observation says it all
        return memory._replace(obs=obs)

    def newest(state, memory: Memory | Rolling) -> Float[Array, " O"]:
        del state  # raw units
        return memory.obs

    def step(key, state: ModelState, rolling: Rolling, action) -> Step:
        del key, state  # deterministic; all that is learnt is in `rolling`
        obs, weights, statistics = rolling
        x = rows.encode(statistics, obs, action, spec.action)
        out = network.apply(weights, x)
        next_obs, reward = rows.decode_target(statistics, obs, out[:-1])
        discount = jax.nn.sigmoid(-out[-1])
        return Step(rolling._replace(obs=next_obs), reward, discount, {})

    model = from_step(
        ModelSpec(
            obs=spec.obs,
            action=spec.action,
            feature_size=obs_size,
            horizon=1,
            context=1,
            abilities=frozenset({"reward", "discount", "gradient"}),
            window=2,
            name="HyperCRL",
        ),
        step,
        init=init,
        loss=loss,
        fit=fit,
        adapt=adapt,
        initial=initial,
        observe=observe,
        feature=newest,
        decode=newest,
    )

    def imagine(key, state: ModelState, memory: Memory, actor, horizon: int):
        weights = weights_of(state.params, memory.task)
        start = Rolling(memory.obs, weights, _own(state, memory.task))
        return model.imagine(key, state, start, actor, horizon)

    return model._replace(imagine=imagine)


def start_task(
    config: Config, spec: EnvSpec, state: ModelState, task: int
) -> ModelState:
    """Begins a task: freezes the weights made for all earlier ones as targets.

    The moments of the optimisers start anew, since they are those of another loss.

    Args:
        config: as of the model.
        spec: likewise.
        state: after learning tasks 0 ... task - 1.
        task: id of the new one, a Python int.

    Raises:
        ValueError: for an id that is not in 1 ... K - 1.
    """
    _check_task(task, config, first=1)
    _, hyper = _networks(config, *spec.flat_sizes("hypercrl"))
    return _begin(hyper, state, task)


def _begin(hyper: Hypernetwork, state: ModelState, task) -> ModelState:
    theta, embeddings = state.params["theta"], state.params["embeddings"]
    targets = jax.vmap(hyper.flat, (None, 0))(theta, embeddings)
    buffers = {
        **state.buffers,
        "task": jnp.asarray(task, jnp.int32),
        "targets": targets,
    }
    fresh = jax.tree.map(jnp.zeros_like, state.opt_state)
    return ModelState(state.params, buffers, fresh)


def _check_task(task: int, config: Config, first: int) -> None:
    if not first <= task < config.tasks:
        raise ValueError(
            f"task must be in {first} ... {config.tasks - 1}, rows of the table of "
            f"embeddings, got {task}; give Config(tasks=...) as many rows as tasks "
            "will come."
        )


def _networks(config: Config, obs_size: int, action_size: int):
    """The dynamics network, and the hypernetwork that makes its weights."""
    network = nn.MLP((*config.main, obs_size + 2), activation="silu")
    example = jax.ShapeDtypeStruct((obs_size + action_size,), jnp.float32)
    target = jax.eval_shape(network.init, jax.random.key(0), example)
    hyper = hypernetwork(target, config.embedding, config.hidden, chunk=config.chunk)
    return network, hyper


def _own(state: ModelState, task) -> rows.Statistics:
    """Statistics of one task."""
    return jax.tree.map(lambda x: jnp.take(x, task, 0), state.buffers["statistics"])


def _error(network, weights, statistics, window: Trajectory, spec, extra=()):
    """Squared error of a window's steps in units of their spread, and terminations."""
    data = rows.transitions_of(window)
    x = rows.encode(statistics, data.obs, data.action, spec.action)
    tail = jnp.broadcast_to(jnp.asarray(extra), (len(x), len(extra)))
    out = network.apply(weights, jnp.concatenate([x, tail], -1))
    each = jnp.mean((out[:, :-1] - rows.encode_target(statistics, data)) ** 2, -1)
    end = optax.sigmoid_binary_cross_entropy(out[:, -1], 1 - data.discount)
    mean = lambda x: data.valid @ x / jnp.maximum(jnp.sum(data.valid), 1.0)
    error = mean(each)
    return error + _TERMINAL_WEIGHT * mean(end), {"error": error}


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Pendulums with other bodies and motors, one task after the other.

    Beside the hypernetwork learn, in the same order, for as many updates and with the
    same dynamics network, which reads the task's id: plain fine-tuning; fine-tuning
    whose batches are half of stored steps of the old tasks (coreset); and, for each
    task, a fresh network on that task alone.

    Returns:
        One-step errors (mean square over the spread of what is predicted) on recordings
        of the same tasks that were not learnt from: `error/after/...` of all but the
        last task in the end, `error/before/...` of the same right after learning each;
        `forgetting/...` is their ratio. `current/...`: error of each task right after
        learning it, over that of a fresh network, mean over tasks. `kept/...`: share of
        the return by planning on the first task, over that of random actions, that is
        left in the end. `return/...`: these returns. `regulariser/first`: largest L_reg
        during the first task.
    """
    family = families.pendulum_family()
    env = family.env._replace(spec=family.env.spec._replace(time_limit=config.steps))
    draw_key, data_key, test_key, init_key, fit_key, plan_key = jax.random.split(key, 6)
    systems = jax.vmap(family.draw)(loop.fold_in_each(draw_key, config.tasks))
    # Motors of both signs: + - - + -, so that the last disagrees with the first.
    sign = jnp.where(jnp.arange(config.tasks) % 3 == 0, 1.0, -1.0)
    systems = systems | {"gain": sign * jnp.abs(systems["gain"])}
    data = _record(data_key, env, family, systems, config)
    test = _record(test_key, env, family, systems, config)

    learners = {
        "hyper": _learn_hyper,
        "finetune": functools.partial(_learn_plain, replay=0.0),
        "coreset": functools.partial(_learn_plain, replay=0.5),
        "fresh": _learn_alone,
    }
    found = {}
    for i, (name, learner) in enumerate(learners.items()):
        keys = jax.random.fold_in(init_key, i), jax.random.fold_in(fit_key, i)
        found[name] = learner(*keys, data, test, config, env.spec)
    fresh = found.pop("fresh")
    first = jax.tree.map(lambda x: x[0], systems)
    uniform = evaluate.uniform(env.spec)
    same_key = lambda: jax.random.fold_in(plan_key, 0)  # the same starts for all
    random = evaluate.returns(same_key(), env, uniform, 16, params=first)
    floor = jnp.mean(random.returns)
    metrics = {"return/random": floor, "regulariser/first": found["hyper"].penalty}
    for name, learnt in found.items():
        # `errors[k, j]`: of task j after learning task k.
        before = jnp.mean(jnp.diagonal(learnt.errors)[:-1])
        after = jnp.mean(learnt.errors[-1, :-1])
        metrics[f"error/before/{name}"] = before
        metrics[f"error/after/{name}"] = after
        metrics[f"forgetting/{name}"] = after / before
        metrics[f"current/{name}"] = jnp.mean(jnp.diagonal(learnt.errors) / fresh)
        agent = mpc.mpc(learnt.model, config.plan, context=0)

        def play(state, agent=agent):
            act, memory = evaluate.act_of(agent, mpc.MPCState(state))
            result = evaluate.returns(
                same_key(), env, act, config.trials, memory=memory, params=first
            )
            return jnp.mean(result.returns)

        returns = jax.lax.map(play, tree.stack([learnt.first, learnt.last]))
        metrics[f"return/{name}_before"], metrics[f"return/{name}_after"] = returns
        metrics[f"kept/{name}"] = (returns[1] - floor) / (returns[0] - floor)
    return metrics


class Learnt(NamedTuple):
    """What came of a sequence of tasks."""

    model: WorldModel
    first: ModelState  # after the first task
    last: ModelState  # after all of them
    errors: Float[Array, "K K"]
    penalty: Float[Array, ""]  # largest during the first task


def _record(key, env, family, systems: PyTree, config: Config) -> Trajectory:
    """Transitions of every task, `[K, N, 1, ...]`: windows of one step."""
    agent = mpc.mpc(from_env(env, family.locate), config.teacher)
    random = evaluate.uniform(env.spec)

    def task(key, own):
        state = mpc.MPCState(ModelState({}, own, ()))
        act, memory = evaluate.act_of(agent, state, explore=True)

        def planned(key):
            return families.episode(key, env, own, act, config.steps, memory=memory)

        def undirected(key):
            return families.episode(key, env, own, random, config.steps)

        half = config.episodes // 2
        keys = jax.random.split(key, 2 * half)
        both = jax.vmap(planned)(keys[:half]), jax.vmap(undirected)(keys[half:])
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *both)
        return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), rows)

    return jax.vmap(task)(loop.fold_in_each(key, config.tasks), systems)


def _batch(key, data: Trajectory, num: int) -> Trajectory:
    at = jax.random.randint(key, (num,), 0, data.reward.shape[0])
    return jax.tree.map(lambda x: x[at], data)


def _learn_hyper(init_key, fit_key, data, test, config: Config, spec) -> Learnt:
    """The hypernetwork through all tasks."""
    model = hypercrl(config, spec)
    network, hyper = _networks(config, *spec.flat_sizes("hypercrl"))
    state = model.init(init_key)

    def update(key, state, own):
        batch = _batch(jax.random.fold_in(key, 1), own, config.batch)
        return model.fit(key, state, batch)

    def errors_of(state):
        def one(task, rows):
            weights = hyper.generate(
                state.params["theta"], state.params["embeddings"][task]
            )
            score = lambda row: _error(network, weights, _own(state, task), row, spec)
            return jnp.mean(jax.vmap(score)(rows)[1]["error"])

        return jax.vmap(one)(jnp.arange(config.tasks), test)

    def learn(state, task):
        """One task of the sequence, the same program for all."""
        begun = start_at(state, task)
        own = jax.tree.map(lambda x: x[task], data)
        begun = model.adapt(begun, rows.merged(own))
        task_key = jax.random.fold_in(fit_key, task)
        after, metrics = optimise.repeat(update, begun, task_key, own, config.updates)
        return after, (after, errors_of(after), jnp.max(metrics["regulariser"]))

    def start_at(state, task):
        begun = _begin(hyper, state, task)
        return tree.where(task > 0, begun, state)

    _, (states, errors, penalties) = jax.lax.scan(
        learn, state, jnp.arange(config.tasks)
    )
    at = lambda k: jax.tree.map(lambda x: x[k], states)
    return Learnt(model, at(0), at(-1), errors, penalties[0])


def _plain(config: Config, spec: EnvSpec) -> WorldModel:
    """The dynamics network itself as a model; it reads the task's id, one-hot."""
    obs_size, action_size = spec.flat_sizes("the baseline")
    network, _ = _networks(config, obs_size, action_size)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.clip), optax.adam(config.learning_rate)
    )

    def init(key: Key[Array, ""]) -> ModelState:
        params = network.init(key, jnp.zeros(obs_size + action_size + config.tasks))
        each = rows.no_statistics(obs_size, action_size)
        statistics = jax.tree.map(lambda x: jnp.stack([x] * config.tasks), each)
        buffers = {"statistics": statistics, "task": jnp.int32(0)}
        return optimise.init_state(optimiser, params, buffers)

    def loss(key, state: ModelState, window: Trajectory):
        """`extras["task"]` says whose steps these are."""
        del key
        task = window.extras["task"][0]
        one_hot = jax.nn.one_hot(task, config.tasks)
        value, metrics = _error(
            network, state.params, _own(state, task), window, spec, one_hot
        )
        return value, (state.buffers, metrics)

    def adapt(state: ModelState, transitions: Transition) -> ModelState:
        task, table = state.buffers["task"], state.buffers["statistics"]
        own = rows.update_statistics(_own(state, task), transitions, spec.action)
        table = jax.tree.map(lambda x, new: x.at[task].set(new), table, own)
        return state._replace(buffers={**state.buffers, "statistics": table})

    def step(key, state: ModelState, memory: Memory, action) -> Step:
        del key
        statistics = _own(state, memory.task)
        x = rows.encode(statistics, memory.obs, action, spec.action)
        one_hot = jax.nn.one_hot(memory.task, config.tasks)
        out = network.apply(state.params, jnp.concatenate([x, one_hot]))
        next_obs, reward = rows.decode_target(statistics, memory.obs, out[:-1])
        after = memory._replace(obs=next_obs)
        return Step(after, reward, jax.nn.sigmoid(-out[-1]), {})

    like = hypercrl(config, spec)
    return from_step(
        like.spec._replace(name="fine-tuned network"),
        step,
        init=init,
        loss=loss,
        fit=optimise.fit(loss, optimiser),
        adapt=adapt,
        initial=like.initial,
        observe=like.observe,
        feature=like.feature,
        decode=like.decode,
    )


def _tagged(data: Trajectory) -> Trajectory:
    """Rows that say whose they are."""
    num, steps = data.reward.shape[:2]
    task = jnp.broadcast_to(jnp.arange(num)[:, None, None], (num, steps, 1))
    return data._replace(extras={**data.extras, "task": task})


def _scores(model: WorldModel, state: ModelState, test: Trajectory):
    """Error of every task, `[K]`."""
    score = lambda row: model.loss(None, state, row)[1][1]["error"]
    return jnp.mean(jax.vmap(jax.vmap(score))(test), 1)


def _learn_plain(
    init_key, fit_key, data, test, config: Config, spec, replay: float
) -> Learnt:
    """One network through all tasks; `replay` is the share of stored old steps."""
    model, data, test = _plain(config, spec), _tagged(data), _tagged(test)
    kept = jax.tree.map(lambda x: x[:, :: max(1, x.shape[1] // config.coreset)], data)

    def learn(state, task):
        own = jax.tree.map(lambda x: x[task], data)
        fresh = jax.tree.map(jnp.zeros_like, state.opt_state)
        state = state._replace(opt_state=fresh, buffers={**state.buffers, "task": task})
        state = model.adapt(state, rows.merged(own))

        def update(key, state, own):
            fit_key, batch_key, which_key, old_key, mix_key = jax.random.split(key, 5)
            batch = _batch(batch_key, own, config.batch)
            which = jax.random.randint(
                which_key, (config.batch,), 0, jnp.maximum(task, 1)
            )
            at = jax.random.randint(old_key, (config.batch,), 0, kept.reward.shape[1])
            old = jax.tree.map(lambda x: x[which, at], kept)
            mix = jax.random.bernoulli(mix_key, replay, (config.batch,)) & (task > 0)
            return model.fit(fit_key, state, tree.where(mix, old, batch))

        task_key = jax.random.fold_in(fit_key, task)
        after, _ = optimise.repeat(update, state, task_key, own, config.updates)
        return after, (after, _scores(model, after, test))

    _, (states, errors) = jax.lax.scan(
        learn, model.init(init_key), jnp.arange(config.tasks)
    )
    at = lambda k: jax.tree.map(lambda x: x[k], states)
    return Learnt(model, at(0), at(-1), errors, jnp.zeros(()))


def _learn_alone(init_key, fit_key, data, test, config: Config, spec):
    """Error of a fresh network per task, `[K]`."""
    model, data, test = _plain(config, spec), _tagged(data), _tagged(test)

    def update(key, state, own):
        batch = _batch(jax.random.fold_in(key, 1), own, config.batch)
        return model.fit(key, state, batch)

    def one(task, own, own_test):
        state = model.init(jax.random.fold_in(init_key, task))
        state = state._replace(buffers={**state.buffers, "task": task})
        state = model.adapt(state, rows.merged(own))
        task_key = jax.random.fold_in(fit_key, task)
        state, _ = optimise.repeat(update, state, task_key, own, config.updates)
        return _scores(model, state, jax.tree.map(lambda x: x[None], own_test))[0]

    return jax.vmap(one)(jnp.arange(config.tasks), data, test)
