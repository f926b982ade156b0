"""Transfer harness: what each kind of knowledge from one task buys in another.

Knowledge is what was learnt on a source task: data, dynamics, reward, value, policy.
Each row carries over ONE of them, by one mechanism, to a target task that differs in
nothing, in its reward, in its dynamics or in both; its score is the gain over the same
learner from scratch (`measures.transfer`).

    planning in a learnt model   data       half of each batch is the source's, its
                                            rewards as seen there or relabelled
                                 dynamics   the network starts from the source's; frozen
                                            or learnt on
                                 reward     the network starts from the source's
    PPO                          value      shaping, r + gamma V(s') - V(s)
                                 policy     actor and its normaliser start from it

Each learner has a row from scratch and a control, whose "knowledge" was never trained.

Source: Wulfmeier et al., "Foundations for Transfer in Reinforcement Learning: A
Taxonomy of Knowledge Modalities", 2023. The survey proposes no software: tasks,
mechanisms and scores are ours, its axes are the kinds of knowledge and of change.
Departs: the expert that scores 1 is a known controller. G is that of the mean areas
over seeds, since a mean of ratios is ruled by the seed whose scratch learns at once.
The motors turn with the place: where they do not, the dynamics are learnt from a few
episodes, the goal is what takes time to find, and transferred dynamics buy little.
Not found: that a value helps. In the same task shaping by it gained -0.06, -0.10 and
-0.07 on the seeds reported; with motors that do not turn and NEAR 0.3 it was 0.3.
Shapes: S seeds, R rows, P points of a curve, T steps of an episode, O observation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm import envs, nn
from jaxwm.agents import mpc, ppo
from jaxwm.core import checks, loop, optimise, stats, tree
from jaxwm.dynamics import modular
from jaxwm.envs import families
from jaxwm.envs.tasks import dr_reach
from jaxwm.measures import transfer
from jaxwm.train import evaluate
from jaxwm.types import Env, Metrics, ModelState, PyTree, Trajectory

AXES = ("same", "reward", "dynamics", "both")  # what differs in the target
MODEL_ROWS = ("data", "data_relabelled", "frozen", "dynamics", "reward", "control")
POLICY_ROWS = ("value", "policy", "untrained")
TURN = 3.0  # rad per m to the right, by which the motors turn
NEAR = 0.45  # m, within which a state earns most
LEVEL = 0.99  # of an interval; the matrix has 36 of them
_RADIUS = 0.6  # m from the middle to a goal
_MODEL = modular.Config()
_PLAN = mpc.Config(horizon=8, num=32, elites=6, iterations=2, explore=0.15)
_PPO = ppo.Config(
    steps=20, epochs=6, minibatches=4, gamma=0.95, learning_rate=2e-3, hidden=(32, 32)
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Minutes on two cores. Budgets count interactions with the target task."""

    seeds: int = 10  # S, each with tasks of its own
    points: int = 5  # P - 1, evaluations after the first interaction
    episodes: int = 3  # between two evaluations, planning
    source: int = 6  # how many times as long the source is learnt
    updates: int = 60  # of the model after each episode
    first_updates: int = 300  # before the first one, on the source's data if any
    batch: int = 32  # transitions of an update
    model: modular.Config = _MODEL  # of the world
    plan: mpc.Config = _PLAN  # CEM in the model
    iterations: int = 5  # of PPO between two evaluations
    num_envs: int = 16  # that PPO collects from
    learner: ppo.Config = _PPO
    tests: int = 6  # episodes of an evaluation

    def __post_init__(self):
        checks.finite(self)
        for name in ("points", "episodes", "source", "updates", "batch", "tests"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}; a "
                    "budget of nothing has no learning curve."
                )
        if self.seeds < 5:
            raise ValueError(
                f"seeds must be at least 5, got {self.seeds}; fewer give no interval."
            )


TINY = Config(
    seeds=5,
    points=1,
    episodes=1,
    source=1,
    updates=1,
    first_updates=1,
    batch=4,
    model=modular.TINY,
    plan=mpc.Config(horizon=2, num=4, elites=2, iterations=1),
    iterations=1,
    num_envs=2,
    learner=ppo.Config(steps=20, epochs=1, minibatches=1, hidden=(4,)),
    tests=1,
)


class Task(NamedTuple):
    """A point mass in the plane that shall come to a goal it does not see.

    Its motors turn with where it is, so that the dynamics take data to learn:

        force = R(TURN x_0) (gain a),   reward = exp(-|x' - goal|^2 / (2 NEAR^2))
    """

    goal: Float[Array, "2"]  # m; the reward
    gain: Float[Array, "2"]  # on each action; the dynamics


class Knowledge(NamedTuple):
    """What a source leaves behind, all in raw units but for the normaliser it lists."""

    model: ModelState  # params "dynamics" and "reward"
    data: Trajectory  # [N, 1, ...]
    actor_critic: PyTree  # params "actor" and "critic"
    normaliser: stats.Moments  # of what both read
    value_scale: Array  # of what the critic says


class Harness(NamedTuple):
    """Pure functions for one pair of tasks.

    extract: (key) -> Knowledge, learnt on the source task alone
    run:     (key, knowledge) -> {row: scores [P]}, rows "scratch", "ppo_scratch",
             `MODEL_ROWS` and `POLICY_ROWS`, all from the same starts
    """

    extract: Callable
    run: Callable


def transfer_taxonomy(
    config: Config,
    source: Env,
    target: Env,
    reward: Callable,
    *,
    random: float | Array | None = None,
    expert: float | Array | None = None,
) -> Harness:
    """Builds the harness of one pair of tasks.

    Args:
        config: learners and budgets.
        source: where knowledge is learnt; episodes never terminate.
        target: where it is used; the same observations and actions.
        reward: `(next_obs) -> scalar`, the target's, which relabels data.
        random: the target's return under random actions: score 0.
        expert: the best known return: score 1.

    Raises:
        ValueError: if the tasks' observations or actions differ, and without both
            references.
    """
    if random is None or expert is None:
        raise ValueError(
            "a score needs both references of the target, got "
            f"random={random} and expert={expert}; measure them."
        )
    if (source.spec.obs, source.spec.action) != (target.spec.obs, target.spec.action):
        raise ValueError(
            "source and target must agree in observations and actions, got "
            f"{source.spec.obs}, {source.spec.action} and {target.spec.obs}, "
            f"{target.spec.action}."
        )
    spec = target.spec
    model = modular.modular(config.model, spec)
    agent = mpc.mpc(model, config.plan)
    score = lambda returns: (returns - random) / (expert - random)

    def on_the_way(step, judge, carry, num):
        """Scores `[P]` of `carry[0]` during `num` steps, and the carry in the end."""

        def block(carry, order):
            carry = jax.lax.scan(step, carry, order)[0]
            return carry, carry[0]

        order = jnp.arange(num).reshape(config.points, -1)
        last, rest = jax.lax.scan(block, carry, order)
        join = lambda x, y: jnp.concatenate([x[None], y])
        return jax.vmap(judge)(jax.tree.map(join, carry[0], rest)), last

    def plan_and_learn(key, test_key, env: Env, state: ModelState, data, mix, times):
        """Scores `[P]`, the model in the end, and the transitions seen.

        `mix` 1: half of each batch comes from `data`, all of it before the first
        episode; 0: none.
        """
        horizon = env.spec.time_limit
        size = config.points * config.episodes * times * horizon
        blank = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:])), data)

        def fit(key, state, own, filled, num):
            def update(key, state, _):
                own_key, data_key, mix_key, fit_key = jax.random.split(key, 4)

                def pick(key, rows, num):
                    row = jax.random.randint(key, (config.batch,), 0, num)
                    return jax.tree.map(lambda x: x[row], rows)

                mine = pick(own_key, own, jnp.maximum(filled, 1))
                theirs = pick(data_key, data, len(data.reward))
                share = mix * jnp.where(filled > 0, 0.5, 1.0)
                chosen = jax.random.bernoulli(mix_key, share, (config.batch,))
                # Blank rows are masked, so nothing is learnt from nothing.
                return model.fit(fit_key, state, tree.where(chosen, theirs, mine))

            return optimise.repeat(update, state, key, None, num)[0]

        def judge(state):
            act, memory = evaluate.act_of(agent, mpc.MPCState(state))
            found = evaluate.returns(test_key, env, act, config.tests, memory=memory)
            return score(jnp.mean(found.returns))

        def episode(carry, i):
            state, own = carry
            play_key, fit_key = jax.random.split(jax.random.fold_in(key, i))
            act, memory = evaluate.act_of(agent, mpc.MPCState(state), explore=True)
            seen = families.episode(play_key, env, None, act, horizon, memory=memory)
            own = jax.tree.map(
                lambda x, new: jax.lax.dynamic_update_slice_in_dim(
                    x, new[:, None].astype(x.dtype), i * horizon, 0
                ),
                own,
                seen,
            )
            filled = (i + 1) * horizon
            return (fit(fit_key, state, own, filled, config.updates), own), None

        first_key = jax.random.fold_in(key, size)
        state = fit(first_key, state, blank, jnp.int32(0), config.first_updates)
        scores, (last, own) = on_the_way(
            episode, judge, (state, blank), size // horizon
        )
        return scores, last, own

    def improve(key, test_key, env: Env, begin: Callable, potential: Callable, times):
        """PPO: scores `[P]` and its last state. `begin` changes the first state."""
        learner = ppo.ppo(
            envs.batch(
                envs.shaped(env, potential, config.learner.gamma), config.num_envs
            ),
            config.learner,
        )
        init_key, run_key = jax.random.split(key)
        state = begin(learner.learner.init(init_key))

        def judge(state):
            def act(key, memory, obs, is_first):
                return learner.act(key, state, obs, False), memory

            found = evaluate.returns(test_key, env, act, config.tests)
            return score(jnp.mean(found.returns))

        def step(carry, i):
            step_key = jax.random.fold_in(run_key, i)
            return (learner.learner.step(step_key, carry[0], i)[0],), None

        num = config.points * config.iterations * times
        scores, (last,) = on_the_way(step, judge, (state,), num)
        return scores, last

    def no_data():
        obs_size, action_size = spec.flat_sizes("transfer_taxonomy")
        obs, action = jnp.zeros(obs_size), jnp.zeros(action_size)
        one = jnp.zeros(())
        row = Trajectory(obs, action, one, one, one, {"next_obs": obs})
        return jax.tree.map(lambda x: x[None, None], row)

    nothing = lambda obs: 0.0 * obs[0]

    def extract(key: Key[Array, ""]) -> Knowledge:
        init_key, plan_key, ppo_key, test_key = jax.random.split(key, 4)
        other_key = jax.random.fold_in(test_key, 1)
        _, state, data = plan_and_learn(
            plan_key, test_key, source, model.init(init_key), no_data(), 0.0,
            config.source,
        )  # fmt: skip
        _, learnt = improve(
            ppo_key, other_key, source, lambda state: state, nothing, config.source
        )
        scale = stats.scale(learnt.returns)[0]
        return Knowledge(state, data, learnt.model.params, learnt.obs, scale)

    def run(key: Key[Array, ""], known: Knowledge) -> dict[str, Float[Array, " P"]]:
        init_key, other_key, plan_key, ppo_key, test_key = jax.random.split(key, 5)
        fresh = model.init(init_key)
        stranger = model.init(other_key)
        theirs = known.model.params

        def start(frozen=0.0, **params):
            buffers = {"frozen": jnp.asarray(frozen)}
            return fresh._replace(params=fresh.params | params, buffers=buffers)

        relabelled = known.data._replace(
            reward=jax.vmap(jax.vmap(reward))(known.data.extras["next_obs"])
        )
        starts = {
            "scratch": (start(), known.data, 0.0),
            "data": (start(), known.data, 1.0),
            "data_relabelled": (start(), relabelled, 1.0),
            "frozen": (start(1.0, dynamics=theirs["dynamics"]), known.data, 0.0),
            "dynamics": (start(dynamics=theirs["dynamics"]), known.data, 0.0),
            "reward": (start(reward=theirs["reward"]), known.data, 0.0),
            "control": (start(**stranger.params), known.data, 0.0),
        }
        curves = jax.vmap(
            lambda begun: plan_and_learn(plan_key, test_key, target, *begun, 1)[0]
        )(tree.stack(list(starts.values())))
        found = dict(zip(starts, curves, strict=True))

        critic = nn.Critic(config.learner.hidden, config.learner.activation)

        def value(obs):
            normed = stats.normalise(known.normaliser, obs)
            return known.value_scale * critic.apply(
                known.actor_critic["critic"], normed
            )

        def policy_row(use_value, use_policy, turn):
            def begin(state):
                params, theirs = state.model.params, known.actor_critic["actor"]
                actor = tree.where(use_policy, theirs, params["actor"])
                params = params | {"actor": actor}
                normaliser = tree.where(use_policy, known.normaliser, state.obs)
                model = state.model._replace(params=params)
                return state._replace(model=model, obs=normaliser)

            own_key = jax.random.fold_in(ppo_key, turn)
            potential = lambda obs: jnp.where(use_value, value(obs), 0.0)
            score_key = jax.random.fold_in(test_key, 1)
            return improve(own_key, score_key, target, begin, potential, 1)[0]

        names = ("ppo_scratch", *POLICY_ROWS)
        # The control differs from scratch in its draws alone.
        turn = jnp.array([0, 0, 0, 1])
        uses = [jnp.array([name == use for name in names]) for use in POLICY_ROWS[:2]]
        return found | dict(zip(names, jax.vmap(policy_row)(*uses, turn), strict=True))

    return Harness(extract, run)


def navigation(task: Task) -> Env:
    """`dr_reach` with the task's motors and reward: sees (x, v), `[4]`, 20 steps."""
    base = dr_reach.dr_reach()
    spec = base.spec._replace(
        name="navigation", obs=jax.ShapeDtypeStruct((4,), base.spec.obs.dtype)
    )
    reward = goal_reward(task)

    def reset_to(physics, params=None):
        state = base.reset_to(physics._replace(goal=task.goal), params)
        return state._replace(obs=state.obs[:4])

    def reset(key, params=None):
        return reset_to(base.reset(key, params).physics, params)

    def step(key, state, action):
        after = base.step(key, state, turned(state.obs) @ (task.gain * action))
        obs = after.obs[:4]
        return after._replace(obs=obs, reward=reward(obs))

    return Env(spec, reset, reset_to, step)


def turned(obs: Float[Array, "4"]) -> Float[Array, "2 2"]:
    """R, from the motors' directions to the plane's."""
    cos, sin = jnp.cos(TURN * obs[0]), jnp.sin(TURN * obs[0])
    return jnp.array([[cos, -sin], [sin, cos]])


def goal_reward(task: Task) -> Callable:
    """`(next_obs) -> scalar`, the reward of `navigation`."""

    def reward(next_obs: Float[Array, "4"]) -> Float[Array, ""]:
        square = jnp.sum((next_obs[:2] - task.goal) ** 2)
        return jnp.exp(-0.5 * square / NEAR**2)

    return reward


def tasks_of(key: Key[Array, ""]) -> tuple[Task, Task]:
    """A source and the targets of all `AXES`, `[4, ...]`.

    A changed reward puts the goal opposite, changed dynamics flip the first action.
    """
    angle = jax.random.uniform(key, maxval=2 * jnp.pi)
    goal = _RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    flip = jnp.array([-1.0, 1.0])
    source = Task(goal, jnp.ones(2))
    moved = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    gains = jnp.stack([jnp.ones(2), jnp.ones(2), flip, flip])
    return source, Task(moved * goal, gains)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """The whole matrix, kind of knowledge by kind of change.

    Returns:
        `AXIS/gain/ROW`: G over all seeds, with `AXIS/low/ROW` and `AXIS/high/ROW`, the
        ends of its 99 % interval; `AXIS/jump_start/ROW` and `AXIS/asymptote/ROW`,
        mean scores before the first and after the last interaction; `AXIS/area/...` of
        both learners from scratch.
    """
    run_key, boot_key = jax.random.split(key)

    def one_seed(key):
        task_key, extract_key, target_key = jax.random.split(key, 3)
        source, targets = tasks_of(task_key)
        home = navigation(source)

        def harness(target: Task, random=0.0, expert=1.0):
            return transfer_taxonomy(
                config, home, navigation(target), goal_reward(target),
                random=random, expert=expert,
            )  # fmt: skip

        known = harness(source).extract(extract_key)

        def one_pair(key, target: Task):
            random_key, expert_key, key = jax.random.split(key, 3)
            return harness(target, *references(random_key, expert_key, target)).run(
                key, known
            )

        return jax.vmap(one_pair)(loop.fold_in_each(target_key, len(AXES)), targets)

    scores = jax.vmap(one_seed)(loop.fold_in_each(run_key, config.seeds))
    return gains(boot_key, scores)  # of [S, axes, P]


def references(random_key, expert_key, task: Task) -> tuple[Array, Array]:
    """Mean returns of random actions and of a controller that knows the task."""
    env = navigation(task)

    def expert(key, memory, obs, is_first):
        push = 12 * (task.goal - obs[:2]) - 1.5 * obs[2:]
        return jnp.clip(task.gain * (turned(obs).T @ push), -1, 1), memory

    mean = lambda key, act: jnp.mean(evaluate.returns(key, env, act, 64).returns)
    return mean(random_key, evaluate.uniform(env.spec)), mean(expert_key, expert)


def gains(key: Key[Array, ""], scores: Mapping[str, Array]) -> Metrics:
    """What the curves `[S, axes, P]` of all rows say; see `experiment`."""
    points = jnp.arange(scores["scratch"].shape[-1], dtype=jnp.float32)
    names = (*MODEL_ROWS, *POLICY_ROWS)
    bases = ["scratch" if name in MODEL_ROWS else "ppo_scratch" for name in names]
    every = jax.vmap(jax.vmap(jax.vmap(lambda s: transfer.curve(s, points))))
    read = every(jnp.stack([scores[name] for name in names]))  # [R, S, axes]
    base = every(jnp.stack([scores[name] for name in bases])).area
    interval = lambda area, base: transfer.bootstrap_gain(key, area, base, level=LEVEL)
    gain, low, high = jax.vmap(jax.vmap(interval, 1))(read.area, base)  # [R, axes]
    tables = {
        "gain": gain,
        "low": low,
        "high": high,
        "jump_start": jnp.mean(read.jump_start, 1),
        "asymptote": jnp.mean(read.asymptote, 1),
    }
    metrics = {
        f"{axis}/{what}/{name}": table[i, j]
        for what, table in tables.items()
        for i, name in enumerate(names)
        for j, axis in enumerate(AXES)
    }
    areas = jnp.mean(base, 1)  # [R, axes]
    for j, axis in enumerate(AXES):
        metrics[f"{axis}/area/scratch"] = areas[0, j]
        metrics[f"{axis}/area/ppo_scratch"] = areas[-1, j]
    return metrics


def to_markdown(metrics: Mapping[str, float]) -> str:
    """The matrix as a table: G with its interval, kinds of knowledge by changes."""
    lines = ["| knowledge | " + " | ".join(AXES) + " |", "|---" * 5 + "|"]
    for name in (*MODEL_ROWS, *POLICY_ROWS):
        cells = [
            "{:.2f} [{:.2f}, {:.2f}]".format(
                *(float(metrics[f"{axis}/{x}/{name}"]) for x in ("gain", "low", "high"))
            )
            for axis in AXES
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
