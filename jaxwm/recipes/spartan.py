"""SPARTAN: a transformer world model whose attention masks are the local causal graph.

Attention passes sampled 0/1 edges only, and the number of paths through the stack is
made small while the prediction error stays below a target. The edges that survive at a
state say which objects influence which next states now. What differs between
environments enters as one learnt token: its edges name the targets of an intervention,
and a new environment is fitted by its token alone.

Source: Lei, Schölkopf and Posner, "SPARTAN: A Sparse Transformer World Model Attending
to What Matters", NeurIPS 2025.
Departs: the penalty counts log(1 + paths), which prunes smoothly; the multiplier's
steps have no scale (`core.constrained`); graphs are read out without sampling; actions
and environments are tokens that are read and never written; reward and termination are
one more predicted token, so that their causes are in the graph, too.
Shapes: N objects, d numbers each, O = N d, A action, E environments, D embedding, L
blocks; targets are the objects and, if wanted, the reward; M tokens are read: targets,
action, environment.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from jaxwm import nn
from jaxwm.core import checks, constrained, optimise
from jaxwm.dynamics import rows
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.envs.tasks import local_particles
from jaxwm.measures import graphs
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

# Terminations are rare: in units of 0.2 they count like events of probability 0.04.
_TERMINAL_SCALE = 0.2
_COUNTS = {
    "log": jnp.log1p,
    "paths": lambda paths: paths,
    "reach": lambda paths: jnp.minimum(paths, 1.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores. `PAPER` is the published one."""

    object_size: int = 1  # d, numbers of the observation that make one object
    environments: int = 0  # E, rows of the token table; 0: one environment, no token
    attention: str = "sparse"  # or "dense"
    embed: int = 32  # D
    blocks: int = 2  # L
    heads: int = 1  # an edge exists where any head has it
    hidden: int = 64  # units of the MLP of a block
    depth: int = 1  # hidden layers of that MLP
    bias: float = 2.0  # of the edges' log-odds: at first nearly all are on
    reward: bool = True  # predict reward and termination, too
    penalty: str = "log"  # of the number of paths; or "paths", "reach"
    target: float = 0.05  # tau, the squared error to stay below, normalised
    multiplier: float = 100.0  # lambda at the start
    multiplier_rate: float = 0.01  # eta
    multiplier_high: float = 1e3  # where it is capped
    threshold: float = 0.2  # of the weights that count as edges ("dense")
    learning_rate: float = 2e-3
    updates: int | None = None  # by which the rate has fallen to a tenth; None: never
    cooldown: int = 1  # updates of that cosine fall

    def __post_init__(self):
        checks.finite(self)
        sizes = ("object_size", "embed", "blocks", "heads", "hidden", "depth")
        checks.at_least(1, self, *sizes, "cooldown")
        if self.environments < 0:
            raise ValueError(
                f"environments must be at least 0, got {self.environments}; 0 is a "
                "model of one environment."
            )
        if self.attention not in ("sparse", "dense"):
            raise ValueError(
                f"attention must be sparse or dense, got {self.attention!r}."
            )
        if self.penalty not in _COUNTS:
            raise ValueError(
                f"penalty must be one of {', '.join(_COUNTS)}, got {self.penalty!r}."
            )
        checks.positive(
            self, "target", "multiplier", "multiplier_rate", "learning_rate"
        )


# Pong; CREATE has MLPs of 1024 units. Batch and number of updates are not stated.
PAPER = Config(
    object_size=32,
    environments=8,
    embed=512,
    blocks=3,
    hidden=512,
    depth=3,
    penalty="paths",
    learning_rate=5e-5,
)
# Of `experiment`: objects of four numbers in four environments, no reward.
# The multiplier's cap keeps some pressure while errors are high, and its faster steps
# leave time to prune once they are not.
EXPERIMENT = Config(
    object_size=4,
    environments=4,
    reward=False,
    multiplier_rate=0.02,
    multiplier_high=300.0,
    updates=12_000,
    cooldown=4000,
)
TINY = Config(embed=8, hidden=8)
_BATCH = 128  # transitions of an update in the experiment, each drawn afresh
_TEST = 2000  # held-out states of each environment
# The target is this much above the error with dense attention. It is met by sampled
# edges; the read-out makes smaller errors.
_SLACK = 0.8
_THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # of dense weights
_PRICES = (1e-3, 3e-3, 1e-2, 3e-2)  # of an edge of the global graph
_NEW = 4  # the environment that is not trained on
_HORIZON = 10  # steps of imagined trajectories


class Memory(NamedTuple):
    """What the model knows at a step."""

    obs: Float[Array, " O"]
    environment: Float[Array, "e D"]  # its token; e = 0 where there are none


class Prediction(NamedTuple):
    """One step, in normalised units."""

    change: Float[Array, " O"]  # of the observation
    outcome: Float[Array, " R"]  # reward and termination; R = 2, or 0 if not wanted
    edges: Float[Array, "L N M"]  # of every block; attention weights if dense


class Network(linen.Module):
    """Objects, reward, action and environment as tokens of one sparse transformer."""

    config: Config

    @linen.compact
    def __call__(self, x, action, environment, key=None, present=None):
        """Change of the objects `[N, d]`, outcome `[R]` and edges `[L, N, M]`."""
        config, (num, size) = self.config, x.shape
        normal = linen.initializers.normal(0.3)
        targets = linen.Dense(config.embed, name="object")(x)
        targets = targets + self.param("slot", normal, (num, config.embed))
        if config.reward:
            reward = self.param("reward", normal, (1, config.embed))
            targets = jnp.concatenate([targets, reward])
        sources = environment
        if action.size:
            token = linen.Dense(config.embed, name="action")(action)
            sources = jnp.concatenate([token[None], sources])
        if present is not None:
            others = targets.shape[0] + sources.shape[0] - num
            present = jnp.concatenate([present, jnp.ones(others, bool)])
        h, edges = nn.SparseTransformer(
            config.blocks,
            config.heads,
            config.hidden,
            config.depth,
            config.bias,
            sparse=config.attention == "sparse",
            name="body",
        )(targets, sources, key, present)
        change = linen.Dense(size, name="change")(h[:num])
        outcome = jnp.zeros(0)
        if config.reward:
            outcome = linen.Dense(2, name="outcome")(h[num])
        return change, outcome, edges


def predictor(config: Config, spec: EnvSpec):
    """One step of the model, `(params, statistics, obs, action, token, key, present)`.

    Args:
        config: sizes.
        spec: of the environment.

    Returns:
        The function. It takes raw observations `[O]` and actions, the environment's
        token `[e, D]`, a key that samples the edges (None: each edge's likelier value)
        and which objects exist `[N]` (None: all), and returns a `Prediction`.

    Raises:
        ValueError: if the objects do not fill the observation.
    """
    obs_size, _ = spec.flat_sizes("spartan")
    if obs_size % config.object_size:
        raise ValueError(
            f"object_size must divide the {obs_size} numbers of an observation of "
            f"{spec.name}, got {config.object_size}; 1 makes every number an object."
        )
    network = Network(config)

    def predict(params, statistics, obs, action, environment, key=None, present=None):
        x = rows.encode(statistics, obs, action, spec.action)
        change, outcome, edges = network.apply(
            params["network"],
            x[:obs_size].reshape(-1, config.object_size),
            x[obs_size:],
            environment,
            key,
            present,
        )
        return Prediction(change.ravel(), outcome, edges)

    return predict


def local_graph(config: Config, edges: Float[Array, "L N M"]) -> Bool[Array, "N M"]:
    """The local graph that a prediction used: [i, j] where a path leads from j to i."""
    threshold = 0.5 if config.attention == "sparse" else config.threshold
    edges = (edges > threshold).astype(edges.dtype)
    return nn.path_matrix(edges) >= 1


def spartan(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds SPARTAN's pure functions for an environment of the given sizes.

    With `environments` above 0 a training window names its environment's row in
    `extras["environment"]` `[T]`, and `initial(state, context)` takes that index or a
    token `[D]` of its own; None is the mean of the table. `info["graph"]` of a rollout
    is the local graph of every imagined step, `[H, N, M]`. The error's target
    is `buffers["target"]`.

    Raises:
        ValueError: for observations that are not one flat vector, discrete actions, or
            objects that do not fill the observation.
    """
    obs_size, action_size = spec.flat_sizes("spartan")
    predict = predictor(config, spec)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(_rate(config)))
    sparse = config.attention == "sparse"

    def init(key: Key[Array, ""]) -> ModelState:
        network_key, token_key = jax.random.split(key)
        num, with_token = obs_size // config.object_size, min(config.environments, 1)
        params = {
            "network": Network(config).init(
                network_key,
                jnp.zeros((num, config.object_size)),
                jnp.zeros(action_size),
                jnp.zeros((with_token, config.embed)),
            )
        }
        if with_token:
            shape = (config.environments, config.embed)
            params["environment"] = 0.3 * jax.random.normal(token_key, shape)
        buffers = {
            "statistics": rows.no_statistics(obs_size, action_size),
            "multiplier": constrained.start(config.multiplier),
            "target": jnp.float32(config.target),
        }
        return optimise.init_state(optimiser, params, buffers)

    def token(params: Params, context=None) -> Float[Array, "e D"]:
        """The token of an environment: its own, that of a row, or the mean."""
        if not config.environments:
            return jnp.zeros((0, config.embed))
        table = params["environment"]
        if context is None:
            return jnp.mean(table, 0, keepdims=True)
        if isinstance(context, int) and not 0 <= context < config.environments:
            raise ValueError(
                f"context must be an environment in 0 ... {config.environments - 1}, "
                f"got {context}; fit a token for a new one with adapt_token."
            )
        context = jnp.asarray(context)
        row = table[context] if context.ndim == 0 else context
        return row[None]

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        """Squared error, and the paths as far as the multiplier lets them count."""
        data, statistics = rows.transitions_of(window), state.buffers["statistics"]
        num = data.reward.shape[0]
        tokens = jnp.zeros((num, 0, config.embed))
        if config.environments:
            if "environment" not in window.extras:
                raise ValueError(
                    'windows must name their environment in extras["environment"], '
                    f"got {sorted(window.extras)}; environments=0 needs no names."
                )
            tokens = state.params["environment"][window.extras["environment"][:num]]
            tokens = tokens[:, None]
        y = rows.encode_target(statistics, data)
        ends = (1 - data.discount) / _TERMINAL_SCALE
        y = jnp.concatenate([y, ends[:, None]], 1)  # change, reward, termination
        y = y if config.reward else y[:, :obs_size]

        def one(i, obs, action, token, y):
            out = predict(
                state.params,
                statistics,
                obs,
                action,
                token,
                jax.random.fold_in(key, i),
            )
            error = (jnp.concatenate([out.change, out.outcome]) - y) ** 2
            paths = nn.path_matrix(out.edges)
            return jnp.mean(error), nn.path_penalty(paths, _COUNTS[config.penalty])

        error, paths = jax.vmap(one)(jnp.arange(num), data.obs, data.action, tokens, y)
        # Over all rows, also padding: each real step counts the same in a batch.
        error, paths = jnp.mean(data.valid * error), jnp.mean(data.valid * paths)
        metrics = {"mse": error}
        if not sparse:
            return error, (state.buffers, metrics)
        value = constrained.constrained_loss(
            paths, error, state.buffers["target"], state.buffers["multiplier"]
        )
        return value, (state.buffers, metrics | {"paths": paths})

    descend = optimise.fit(loss, optimiser)

    def fit(key: Key[Array, ""], state: ModelState, windows: Trajectory):
        """One update of the weights, then one of the multiplier."""
        state, metrics = descend(key, state, windows)
        if not sparse:
            return state, metrics
        multiplier = constrained.update(
            state.buffers["multiplier"],
            metrics["mse"],
            state.buffers["target"],
            rate=config.multiplier_rate,
            high=config.multiplier_high,
        )
        # At its cap for long, the target is below what the data's noise allows.
        metrics["multiplier"] = multiplier.value
        metrics["saturated"] = constrained.saturated(multiplier, config.multiplier_high)
        buffers = {**state.buffers, "multiplier": multiplier}
        return state._replace(buffers=buffers), metrics

    def initial(state: ModelState, context=None) -> Memory:
        return Memory(jnp.zeros(obs_size), token(state.params, context))

    def observe(key, state, memory: Memory, obs, prev_action, is_first) -> Memory:
        del key, state, prev_action, is_first  # the observation says it all
        return memory._replace(obs=obs)

    def step(key, state: ModelState, memory: Memory, action) -> Step:
        del key  # edges are read out, not drawn
        statistics = state.buffers["statistics"]
        out = predict(state.params, statistics, memory.obs, action, memory.environment)
        outcome = out.outcome if config.reward else jnp.zeros(2)
        y = jnp.concatenate([out.change, outcome[:1]])
        next_obs, reward = rows.decode_target(statistics, memory.obs, y)
        discount = 1 - jnp.clip(_TERMINAL_SCALE * outcome[1], 0, 1)
        info = {"graph": local_graph(config, out.edges)}
        return Step(memory._replace(obs=next_obs), reward, discount, info)

    def adapt(state: ModelState, transitions: Transition) -> ModelState:
        statistics = rows.update_statistics(
            state.buffers["statistics"], transitions, spec.action
        )
        return state._replace(buffers={**state.buffers, "statistics": statistics})

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
            window=2,
            name="spartan",
            tokens=_tokens(config, obs_size // config.object_size, action_size),
        ),
        step,
        init=init,
        loss=loss,
        fit=fit,
        adapt=adapt,
        initial=initial,
        observe=observe,
        feature=lambda state, memory: memory.obs,
        decode=lambda state, memory: memory.obs,
    )


def _tokens(config: Config, num: int, action_size: int) -> tuple[str, ...]:
    """Names of what is read: targets first, objects by their number."""
    others = (
        ("reward", config.reward),
        ("action", action_size > 0),
        ("environment", config.environments > 0),
    )
    return (*map(str, range(num)), *(name for name, there in others if there))


def _rate(config: Config):
    """Constant, then down to a tenth by half a cosine."""
    if config.updates is None:
        return config.learning_rate

    def rate(count):
        left = config.updates - count
        done = 1 - jnp.clip(left / config.cooldown, 0, 1)
        return config.learning_rate * (0.55 + 0.45 * jnp.cos(jnp.pi * done))

    return rate


def fit_token(
    key: Key[Array, ""],
    model: WorldModel,
    state: ModelState,
    windows: Trajectory,
    *,
    steps: int = 300,
    learning_rate: float = 1e-2,
    everything: bool = False,
) -> ModelState:
    """Fits a new environment's token from few windows, by squared error alone.

    Args:
        key: of the edges' samples.
        model: made by `spartan`, with environments.
        state: of the model; its weights stay as they are.
        windows: of the new environment, `[B, T, ...]`; all at every step.
        steps: updates by Adam, from the mean of the table.
        learning_rate: of those updates.
        everything: moves the weights as well (full fine-tuning, to compare with).

    Returns:
        The state with a table of one row, the new environment's: its index is 0.
    """
    table = jnp.mean(state.params["environment"], 0, keepdims=True)
    at = jnp.zeros(windows.reward.shape, jnp.int32)
    windows = windows._replace(extras={**windows.extras, "environment": at})
    moved = {"environment": table}
    if everything:
        moved["network"] = state.params["network"]
    optimiser = optax.adam(learning_rate)
    num = windows.reward.shape[0]

    def loss(moved, key):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
        current = state._replace(params={**state.params, **moved})
        _, (_, metrics) = jax.vmap(model.loss, (0, None, 0))(keys, current, windows)
        return jnp.mean(metrics["mse"])

    def step(key, fitted, _):
        return optimise.gradient_step(loss, optimiser, fitted, key)

    start = optimise.init_state(optimiser, moved)
    fitted, _ = optimise.repeat(step, start, key, None, steps)
    return state._replace(params={**state.params, **fitted.params})


class GlobalGraph(linen.Module):
    """The baseline whose graph is the same in every state: an MLP per object.

    Object i is predicted from the objects and the token that its row of a learnt 0/1
    mask lets through; it always sees itself.
    """

    hidden: int

    @linen.compact
    def __call__(self, x, environment, key=None):
        """Change of the objects `[N, d]` and the mask `[N, N + 1]`."""
        num, size = x.shape
        shape = (num, num + 1)
        logits = self.param("mask", linen.initializers.constant(2.0), shape)
        mask = jnp.where(jnp.eye(*shape, dtype=bool), 1, nn.sample_edges(key, logits))
        seen = (mask[:, :num, None] * x).reshape(num, -1)
        seen = jnp.concatenate([seen, mask[:, num:] * environment], 1)
        towers = linen.vmap(
            nn.MLP, variable_axes={"params": 0}, split_rngs={"params": True}
        )
        return towers((self.hidden, self.hidden, size))(seen), mask


def experiment(key: Key[Array, ""], config: Config = EXPERIMENT) -> Metrics:
    """Wrong edges, errors, interventions found, removal and a new environment.

    All models see the same fresh transitions of `local_particles` in four environments,
    with as many updates each (a third for `global`). `dense` is the same network with
    plain attention, whose graph gets the threshold that is best on the test states;
    `global` has the best of four prices per edge. Errors are squared, one step ahead,
    in units of the standard deviation of the change; `shd` counts wrong edges per
    state.
    """
    keys = jax.random.split(key, 7)
    env = local_particles.local_particles(push=0.0)
    updates: int = config.updates or EXPERIMENT.updates
    test, truth = _draw(keys[0], env, jnp.arange(_NEW * _TEST) % _NEW)
    some, _ = _draw(keys[1], env, jnp.arange(_NEW * _TEST) % _NEW)
    seen = rows.merged(some)
    dense_config = dataclasses.replace(config, attention="dense")

    def train(config, key, target=None):
        model = spartan(config, env.spec)
        init_key, fit_key = jax.random.split(key)
        state = model.adapt(model.init(init_key), seen)
        if target is not None:
            state = state._replace(buffers=state.buffers | {"target": target})
        update = lambda key, state, _: _update(key, env, model.fit, state)
        state, metrics = optimise.repeat(update, state, fit_key, None, updates)
        return model, state, metrics

    _, dense, _ = train(dense_config, keys[2])
    dense_error, weights = _test(dense_config, env, dense, test)
    target = (1 + _SLACK) * jnp.mean(dense_error)
    model, state, curve = train(config, keys[3], target)
    error, edges = _test(config, env, state, test)
    graph = jax.vmap(lambda edges: local_graph(config, edges))(edges)

    def wrong(graph):
        return jnp.mean(graphs.structural_hamming_distance(graph, truth))

    def threshold(value):
        cut = dataclasses.replace(dense_config, threshold=value)
        return wrong(jax.vmap(lambda edges: local_graph(cut, edges))(weights))

    by_threshold = {f"shd/dense_{t:g}": threshold(t) for t in _THRESHOLDS}
    is_environment = jnp.arange(truth.shape[-1]) == truth.shape[-2]
    objects = graphs.edge_scores(graph, truth, ~is_environment)
    targets = graphs.edge_scores(graph, truth, is_environment)
    rollout_key = keys[4]
    return (
        {
            "error": jnp.mean(error),
            "error/dense": jnp.mean(dense_error),
            "error/target": target,
            "shd": wrong(graph),
            "shd/empty": wrong(jnp.zeros_like(truth)),
            "shd/dense": jnp.min(jnp.stack(list(by_threshold.values()))),
            "objects/precision": objects.precision,
            "objects/recall": objects.recall,
            "targets/precision": targets.precision,
            "targets/recall": targets.recall,
            "targets/f1": targets.f1,
            "removal": _removal(config, env, state, test, truth),
            "removal/dense": _removal(dense_config, env, dense, test, truth),
            "rollout": _rollout(jax.random.clone(rollout_key), env, model, state),
            "rollout/dense": _rollout(
                rollout_key, env, spartan(dense_config, env.spec), dense
            ),
            "multiplier": curve["multiplier"][-1],
            "saturated": curve["saturated"][-1],
            "finite": jnp.min(curve["finite"]),
        }
        | by_threshold
        | _new_environment(keys[5], env, config, model, state)
        | _global_graph(keys[6], env, config, state, test, truth, updates // 3)
    )


def _parameters(index: Array):
    """Factors of the environments with these numbers."""
    return {
        f.name: jnp.array([e.get(f.name, 0.0) for e in local_particles.ENVIRONMENTS])[
            index
        ]
        for f in local_particles.FACTORS
    }


def _draw(key, env, index, length: int = 1):
    """Fresh windows `[B, T, ...]` of these environments, and the true graphs.

    The graphs are those of the first step, `[B, N, N + 1]`.
    """

    def one(i, index):
        params = _parameters(index)
        start_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        start = env.reset(start_key, params)

        def step(state, t):
            after = env.step(jax.random.fold_in(step_key, t), state, jnp.zeros(0))
            return after, (state.obs, after.reward, after.discount, after.obs)

        _, (obs, reward, discount, after) = jax.lax.scan(
            step, start, jnp.arange(length)
        )
        numbers = jnp.full(length, index)
        extras = {"next_obs": after, "environment": numbers}
        window = Trajectory(
            obs, jnp.zeros((length, 0)), reward, discount, jnp.ones(length), extras
        )
        return window, local_particles.graph(start.physics, params)

    return jax.vmap(one)(jnp.arange(len(index)), index)


def _update(key, env, fit, state):
    """One update on fresh transitions, as many of each environment."""
    draw_key, fit_key = jax.random.split(key)
    windows, _ = _draw(draw_key, env, jnp.arange(_BATCH) % _NEW)
    return fit(fit_key, state, windows)


def _test(config: Config, env, state: ModelState, windows: Trajectory, present=None):
    """Squared errors `[B, O]` and edges of one-step windows; nothing is sampled."""
    predict, statistics = predictor(config, env.spec), state.buffers["statistics"]

    def one(window, present):
        data = rows.transitions_of(window)
        first = jax.tree.map(lambda x: x[0], data)
        environment = state.params["environment"][window.extras["environment"]]
        out = predict(
            state.params,
            statistics,
            first.obs,
            first.action,
            environment,
            None,
            present,
        )
        y = rows.encode_target(statistics, data)[0, :-1]
        return (out.change - y) ** 2, out.edges

    if present is None:
        return jax.vmap(lambda window: one(window, None))(windows)
    return jax.vmap(one)(windows, present)


def _removal(config: Config, env, state, windows, truth) -> Float[Array, ""]:
    """Relative change of the other objects' error when one that moves none is removed.

    The object is the first that is no true parent of another; states without one do
    not count.
    """
    num = truth.shape[-2]
    idle = ~jnp.any(truth[..., :num] & ~jnp.eye(num, dtype=bool), -2)  # [B, N]
    removed = jax.nn.one_hot(jnp.argmax(idle, -1), num, dtype=bool)
    counts = ~removed & jnp.any(idle, -1, keepdims=True)

    def total(present):
        error, _ = _test(config, env, state, windows, present)
        return jnp.sum(counts[..., None] * error.reshape(*counts.shape, -1))

    before = total(jnp.ones_like(removed))
    return jnp.abs(total(~removed) - before) / before


def _rollout(key, env, model: WorldModel, state: ModelState) -> Float[Array, ""]:
    """Mean distance of imagined from true states over the horizon, in deviations."""
    index = jnp.arange(512) % _NEW
    windows, _ = _draw(key, env, index, _HORIZON)
    scale = jnp.std(windows.obs, (0, 1))

    def one(window, index):
        memory = model.initial(state, index)._replace(obs=window.obs[0])
        rollout = model.imagine(
            jax.random.key(0), state, memory, window.action, _HORIZON
        )
        return jnp.linalg.norm((rollout.obs - window.obs)[1:] / scale, axis=-1)

    return jnp.mean(jax.vmap(one)(windows, index))


def _new_environment(key, env, config, model, state) -> Metrics:
    """Errors in the held-out environment, and its targets, after a few trajectories."""
    data_key, fit_key, test_key = jax.random.split(key, 3)
    windows, _ = _draw(data_key, env, jnp.full(5, _NEW), _HORIZON)
    test, truth = _draw(test_key, env, jnp.full(_TEST, _NEW))
    at = jnp.zeros((_TEST, 1), jnp.int32)
    test = test._replace(extras={**test.extras, "environment": at})
    found = {}
    for name, options in (
        ("adapted", {}),
        ("adapted_all", {"everything": True, "learning_rate": 1e-3}),
        ("adapted_mean", {"steps": 0}),
    ):
        fitted = fit_token(jax.random.clone(fit_key), model, state, windows, **options)
        error, edges = _test(config, env, fitted, test)
        found[f"error/{name}"] = jnp.mean(error)
        if name == "adapted":
            graph = jax.vmap(lambda edges: local_graph(config, edges))(edges)
            last = jnp.arange(truth.shape[-1]) == truth.shape[-2]
            found["targets/new"] = graphs.edge_scores(graph, truth, last).f1
    table = state.params["environment"]
    rows_ = [
        state._replace(params={**state.params, "environment": table[i:]})
        for i in range(len(table))
    ]
    errors = jnp.stack([jnp.mean(_test(config, env, row, test)[0]) for row in rows_])
    return found | {"error/lookup": jnp.min(errors)}


def _global_graph(key, env, config, state, test, truth, updates) -> Metrics:
    """Wrong edges and error of the best graph that is the same in every state."""
    statistics, network = state.buffers["statistics"], GlobalGraph(config.hidden)
    optimiser = optax.adam(config.learning_rate)
    num = truth.shape[-2]

    def predict(params, window, key=None):
        x = rows.encode(statistics, window.obs[0], window.action[0], env.spec.action)
        token = params["environment"][window.extras["environment"][0]]
        x = x.reshape(num, -1)
        change, mask = network.apply(params["network"], x, token, key)
        y = rows.encode_target(statistics, rows.transitions_of(window))[0, :-1]
        return jnp.mean((change.ravel() - y) ** 2), mask

    def fit(price):
        def loss(key, state, window):
            error, mask = predict(state.params, window, key)
            edges = jnp.sum(mask) - num
            return error + price * edges, (state.buffers, {})

        return optimise.fit(loss, optimiser)

    def train(price):
        x = jnp.zeros((num, test.obs.shape[-1] // num))
        init_key, token_key, fit_key = jax.random.split(jax.random.clone(key), 3)
        shape = (config.environments, 8)
        params = {
            "network": network.init(init_key, x, jnp.zeros(shape[1])),
            "environment": 0.3 * jax.random.normal(token_key, shape),
        }
        start = optimise.init_state(optimiser, params)
        update = lambda key, state, _: _update(key, env, fit(price), state)
        fitted, _ = optimise.repeat(update, start, fit_key, None, updates)
        error, mask = jax.vmap(predict, (None, 0))(fitted.params, test)
        distance = graphs.structural_hamming_distance(mask > 0.5, truth)
        return jnp.mean(error), jnp.mean(distance)

    error, distance = jax.vmap(train)(jnp.array(_PRICES))
    best = jnp.argmin(distance)
    return {"shd/global": distance[best], "error/global": error[best]}
