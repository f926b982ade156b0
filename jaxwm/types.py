"""Names and records that every room shares.

Shapes: B batch, T time (rows of one window), H imagined steps, N environments,
O observation, A action, F feature. Functions below take ONE environment or ONE
trajectory; `jax.vmap` adds the batch. Everything is in raw units (the
environment's own), never normalised.

Time: `reward[t]` and `discount[t]` belong to `(obs[t], action[t])`, so T rows hold
T - 1 complete steps. `discount` is 0 where the step reached a true terminal state
and 1 elsewhere (the learner's gamma is not in it); `truncated` marks the time limit.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
PyTree = Any
Params = PyTree
Metrics = dict[str, Array]  # scalars; keys read `group/name`

# feature [F] -> distribution over actions (core.dists): sample, log_prob, mean, stddev
Policy = Callable[[Array], Any]


class Box(NamedTuple):
    """Continuous actions: bounds per dimension, `[A]` each."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        """Number of action dimensions, A."""
        return len(self.low)


class Discrete(NamedTuple):
    """`num` actions, 0 ... num - 1."""

    num: int


class Factor(NamedTuple):
    """A factor of variation: one physical number that may differ per environment."""

    name: str  # as on the command line, e.g. "pole_mass"
    default: float
    low: float  # ends of the range that randomisation draws from, uniformly
    high: float
    unit: str  # "kg", "m", "1", "s" ...
    doc: str  # what it scales or sets, in one line


class EnvSpec(NamedTuple):
    """What is fixed about a task: sizes, bounds, clock and factors."""

    name: str
    obs: PyTree  # of jax.ShapeDtypeStruct
    action: Box | Discrete
    control_dt: float  # seconds between two actions
    time_limit: int  # steps until `truncated`
    factors: tuple[Factor, ...] = ()
    random_return: float | None = None  # mean undiscounted return of uniform actions
    best_return: float | None = None  # best known; `doc` says how it was found
    doc: str = ""

    def flat_sizes(self, who: str) -> tuple[int, int]:
        """Sizes (O, A) of a flat observation and a continuous action.

        Raises:
            ValueError: for images, nested observations or discrete actions, naming
                `who` asked and what to do.
        """
        leaves = jax.tree.leaves(self.obs)
        if len(leaves) != 1 or len(leaves[0].shape) != 1:
            shapes = [leaf.shape for leaf in leaves]
            raise ValueError(
                f"{who} needs one flat observation vector, {self.name} has {shapes}; "
                "put an encoder in front or choose a latent world model."
            )
        if not isinstance(self.action, Box):
            raise ValueError(
                f"{who} needs continuous actions, {self.name} has {self.action}; "
                "use a task with a Box action space."
            )
        return leaves[0].shape[0], self.action.size

    def default_params(self) -> dict[str, np.float32]:
        """The factors at their defaults, float32 scalars by name."""
        return {f.name: np.float32(f.default) for f in self.factors}


class EnvState(NamedTuple):
    """Everything about one environment between two steps."""

    physics: PyTree  # all that is Markov
    params: PyTree  # factors of variation of this instance
    t: Array  # [] int32, steps since reset
    obs: PyTree  # raw
    reward: Array  # [] of the step that led here
    discount: Array  # [] 0 at true termination, else 1
    truncated: Array  # [] bool, the time limit was reached
    metrics: Metrics


class Env(NamedTuple):
    """Pure functions of ONE environment; `step` never resets.

    `reset(key, params) -> EnvState`; `reset_to(physics, params) -> EnvState` puts the
    environment into a stored state; `step(key, state, action) -> EnvState`.
    `params` may be None: the factors' defaults.
    """

    spec: EnvSpec
    reset: Callable
    reset_to: Callable
    step: Callable
    # `(list of EnvState on the host, size) -> frames [T, height, width, 3] uint8`
    render: Callable | None = None


class BatchState(NamedTuple):
    """N environments that run on, and the start states they are reset to."""

    env: EnvState  # leading axis N
    pool: EnvState  # leading axis P

    def axes(self) -> "BatchState":
        """Which axis counts environments, leaf by leaf: 0, or -1 for the pool."""
        return BatchState(
            jax.tree.map(lambda _: 0, self.env), jax.tree.map(lambda _: -1, self.pool)
        )


class BatchEnv(NamedTuple):
    """N environments with automatic reset, made by `envs.batch`.

    `reset(key) -> BatchState`;
    `step(key, BatchState, actions [N, A]) -> (BatchState, final_obs [N, ...])`.
    After `step`, `state.env.reward`, `.discount` and `.truncated` belong to the step
    just taken, while `.obs`, `.physics` and `.t` are those to act on next (a fresh
    start where an episode ended); `final_obs` is the observation before that reset.
    """

    spec: EnvSpec
    num_envs: int
    reset: Callable
    step: Callable


class Transition(NamedTuple):
    """One step, or many: axes [], [T] or [B, T] in front."""

    obs: PyTree
    action: Array
    reward: Array
    discount: Array
    truncated: Array
    next_obs: PyTree  # before any reset
    mask: Array  # 1 where real, 0 where padding
    extras: dict  # "physics" before the step, "params", "log_prob" ...


class Trajectory(NamedTuple):
    """A window of one episode, `[T, ...]`; rows past its end repeat the last obs."""

    obs: PyTree
    action: Array
    reward: Array
    discount: Array
    mask: Array  # 1 for rows of the episode, 0 for padding behind a termination
    extras: dict  # "next_obs" [T, O] where the source stores it
    physics: PyTree | None = None  # simulator state of the first row


class ModelSpec(NamedTuple):
    """What a world model reads and can do."""

    obs: PyTree
    action: Box | Discrete
    feature_size: int
    horizon: int  # steps it imagines in one piece; 1 for one-step models
    context: int  # steps of history it reads
    # of {"reward", "discount", "policy", "actions", "gradient", "decode", "graph",
    #     "log_prob", "stochastic"}
    abilities: frozenset[str]
    # rows a training window must have
    window: int
    name: str = "world model"  # for messages
    tokens: tuple[str, ...] = ()  # names of what info["graph"] has edges from


class ModelState(NamedTuple):
    """Everything a model has learnt."""

    params: Params  # what the optimiser moves
    buffers: PyTree  # learnt without a gradient: normaliser, EMA, guidance scale ...
    opt_state: PyTree


class Rollout(NamedTuple):
    """An imagined trajectory of H steps."""

    obs: PyTree  # [H, ...] or None
    feature: Array  # [H, F], what actor and critic read
    action: Array  # [H, A]
    reward: Array  # [H]
    discount: Array  # [H]
    info: dict


class WorldModel(NamedTuple):
    """Pure functions for ONE trajectory, key first; statistics live in the state.

    spec:    ModelSpec
    init:    (key) -> ModelState
    loss:    (key, state, window) -> (scalar, (buffers, metrics))
    fit:     (key, state, windows [B, T, ...]) -> (state, metrics), one update
    adapt:   (state, transitions [B, ...]) -> state; takes in the statistics of newly
             collected data, each step once (normalisers)
    initial: (state, context) -> memory
    observe: (key, state, memory, obs, prev_action, is_first) -> memory
    feature: (state, memory) -> [F]
    decode:  (state, memory) -> obs, or None
    imagine: (key, state, memory, actor, horizon) -> Rollout. `actor` is a Policy or
             actions [H, A]; `horizon` is a Python int: shorter than the model's own is
             cut, longer is chained and marked in `info["chained"]`.
    tune:    (state, rollouts [B, H, ...]) -> state; takes in what its own imagined
             rollouts show (the guidance scale that keeps actions on-policy)
    """

    spec: ModelSpec
    init: Callable
    loss: Callable
    fit: Callable
    adapt: Callable
    initial: Callable
    observe: Callable
    feature: Callable
    decode: Callable | None
    imagine: Callable
    tune: Callable = lambda state, rollouts: state


class Agent(NamedTuple):
    """A learner that acts, for ONE environment.

    init:  (key) -> state
    adapt: (state, transitions [B, ...]) -> state, once per newly collected step
    step:  (key, state, sample, extra_fits) -> (state, metrics), one round: fit,
           imagine, improve. `sample(key, batch_size) -> Trajectory [B, T, ...]` draws
           from the replay; `extra_fits` (may be traced) more updates of the world
           model come first
    begin: (state) -> memory, before the first observation of an episode
    act:   (key, state, memory, obs, is_first, explore) -> (action, memory);
           `explore` False gives the deterministic action
    policy: (state) -> Policy on the world model's features, raw; None where the agent
           has no such thing
    """

    init: Callable
    adapt: Callable
    step: Callable
    begin: Callable
    act: Callable
    policy: Callable | None = None


class Learner(NamedTuple):
    """A whole training loop as two pure functions.

    init: (key) -> state
    step: (key, state, iteration) -> (state, metrics). `iteration` is a shared counter:
          not batched when seeds are vmapped, so control flow stays control flow.
    axes: (state) -> tree of ints like the state: the axis that counts environments,
          which several devices may share, or -1. None: one device per seed.
    """

    init: Callable
    step: Callable
    axes: Callable | None = None


class PolicyLearner(NamedTuple):
    """A learner that brings its environments, and how to act with what it learnt.

    learner: Learner
    act: (key, state, obs, explore) -> action, for one environment, in its bounds
    """

    learner: Learner
    act: Callable


class Predictor(NamedTuple):
    """A supervised model: `init(key, ...)`, `step(key, state, data)`, `predict`."""

    init: Callable
    step: Callable
    predict: Callable


class Planner(NamedTuple):
    """`init(key) -> state`, `plan(key, state, start) -> (actions, state)`."""

    init: Callable
    plan: Callable


Overrides = Mapping[str, float]
