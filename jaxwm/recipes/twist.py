"""TWIST: a world model that saw the simulator's state teaches one that sees images.

The teacher is a recurrent state-space model of the state s: cheap to train, and an
actor learns in its imagination. What it meets on the way is painted in random domains.
The student has the teacher's transition and heads, frozen, and learns to tell from an
image x what the teacher tells from the state behind it:

    L = mean_t KL( sg q_T(z_t | h_t, s_t) || q_S(z_t | h_t, x_t) )
        + w mean_t [ -log p_T(s_t | h_t, z_t) - log p_T(r_t | h_{t+1}, z_{t+1}) ]

with z_t drawn from q_S. No image is painted by a model. Rewards, values and the policy
read latents, so those of the teacher serve in domains where it never was.

Source: Yamada et al., "TWIST: Teacher-Student World Model Distillation for Efficient
Sim-to-Real Transfer", ICRA 2024.
Departs: the loss is our formulation. h_t is the student's carry, made of its own codes,
and the teacher is asked what it would tell there: the student learns to mend its
mistakes instead of repeating codes that fit another carry. The second term tells
mistakes that matter to the heads from those that do not.
Shapes: N episodes of T steps, S state, A action, M test episodes.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, UInt8

from jaxwm import nn
from jaxwm.agents import behaviour
from jaxwm.core import checks, loop, optimise, stats, tree
from jaxwm.dynamics import rows, rssm
from jaxwm.envs import families
from jaxwm.envs.tasks import dr_reach
from jaxwm.nn.latent import Latent
from jaxwm.train import evaluate
from jaxwm.types import (
    Env,
    EnvSpec,
    Metrics,
    ModelState,
    PyTree,
    Trajectory,
    WorldModel,
)

_ACTOR = behaviour.Config()
_MODEL = rssm.Config(context=1, length=20)
_AT, _AHEAD = 5, 10  # rewards are foreseen from that row on, for so many steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores."""

    # Of teacher, student and the model from scratch. Windows are whole episodes.
    model: rssm.Config = _MODEL
    heads: float = 1.0  # w, weight of what the teacher's heads say
    updates: int = 2000  # of the student, and of the model from scratch
    learning_rate: float = 3e-3  # of both; falls to 0 by a cosine
    # Of the experiment.
    actor: behaviour.Config = _ACTOR
    random: int = 300  # episodes of random actions to begin with
    rounds: int = 6  # of the teacher: updates, then episodes
    round_updates: int = 180  # of model and actor
    round_episodes: int = 100
    noise: float = 0.3  # of actions meanwhile, standard deviation
    views: int = 2  # domains in which every episode is painted
    batch: int = 16  # episodes of an update
    episodes: int = 128  # M, of every kind that is tested on

    def __post_init__(self):
        checks.finite(self)
        if self.heads < 0:
            raise ValueError(f"heads must not be negative, got {self.heads}.")
        checks.positive(self, "learning_rate")
        names = ("updates", "random", "rounds", "round_updates", "round_episodes")
        checks.at_least(1, self, *names, "views", "batch", "episodes")


TINY = Config(
    model=dataclasses.replace(rssm.TINY, channels=(2, 2)),
    actor=behaviour.TINY,
    updates=2,
    random=2,
    rounds=1,
    round_updates=2,
    round_episodes=2,
    batch=2,
    episodes=2,
)


def twist(config: Config, spec: EnvSpec, state_spec: EnvSpec) -> WorldModel:
    """Builds the student's pure functions.

    `taught` gives a fresh student its teacher. Training windows begin with an episode
    and hold images, and as `extras["state"]` `[T, S]` the states behind them. Memory
    and feature are those of the teacher: its actor works on both.

    Args:
        config: sizes and rates.
        spec: of the environment as the student sees it, in images.
        state_spec: of the same environment as the teacher saw it.

    Raises:
        ValueError: unless one sees images and the other one flat vector; from `loss`,
            for windows without states.
    """
    student = rssm.rssm(config.model, spec, decodes=False)
    if len(spec.obs.shape) != 3:
        raise ValueError(
            f"spec must be that of an environment in images, got observations of shape "
            f"{spec.obs.shape}; what sees the state needs no teacher."
        )
    state_spec.flat_sizes("twist's teacher")
    teacher = rssm.rssm(config.model, state_spec)
    nets = rssm.networks(config.model, spec)
    knows = rssm.networks(config.model, state_spec)  # the teacher's
    rate = optax.cosine_decay_schedule(config.learning_rate, config.updates)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.model.max_grad_norm), optax.adam(rate)
    )

    def init(key: Key[Array, ""]) -> ModelState:
        teacher_key, encoder_key = jax.random.split(key)
        state = teacher.init(teacher_key)
        encoder = nets.encoder.init(encoder_key, jnp.zeros(spec.obs.shape))
        params = {"encoder": encoder, "posterior": state.params["posterior"]}
        buffers = {"teacher": state.params, **state.buffers}
        return optimise.init_state(optimiser, params, buffers)

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        """Mean over the rows of one window; `key` draws the student's codes."""
        if "state" not in window.extras:
            raise ValueError(
                'window.extras must hold "state", the states behind the images, got '
                f"{sorted(window.extras)}; keep them while collecting."
            )
        stop, told = jax.lax.stop_gradient, state.buffers["teacher"]
        statistics = state.buffers["statistics"]
        s = rssm.read_obs(statistics.obs, window.extras["state"])
        said = rssm.filter_episode(
            key,
            nets,
            whole(state),
            spec.action,
            window.obs,
            window.action,
            jnp.arange(len(s)) == 0,
            lambda key, i, latent: stop(latent),  # every row answers for itself
        )
        known = knows.encoder.apply(told["encoder"], s)
        asked = knows.posterior.apply(told["posterior"], said.latent.h, known)
        # What a step reached is real; padding behind it teaches nothing.
        real = jnp.concatenate([window.mask[:1], window.mask[:-1]])
        divergence = jnp.mean(real * nn.code_kl(stop(asked), said.posterior))
        feature = said.latent.feature
        miss = jnp.sum((knows.obs.apply(told["obs"], feature) - s) ** 2, -1)
        miss = jnp.mean(real * miss)
        reward = knows.reward.apply(told["reward"], feature[1:])
        target = stats.normalise(statistics.reward, window.reward[:-1, None])
        square = miss + jnp.mean(real[1:] * (reward - target)[:, 0] ** 2)
        heads = 0.5 * square / config.model.obs_std**2
        metrics = {"kl": divergence, "state": miss}
        return divergence + config.heads * heads, (state.buffers, metrics)

    return student._replace(
        init=init,
        loss=loss,
        fit=optimise.fit(loss, optimiser),
        adapt=lambda state, transitions: state,  # statistics are the teacher's
        observe=lambda key, state, *rest: student.observe(key, whole(state), *rest),
        imagine=lambda key, state, *rest: student.imagine(key, whole(state), *rest),
    )


def taught(student: ModelState, teacher: ModelState) -> ModelState:
    """A fresh student, given a trained teacher.

    Raises:
        ValueError: if the teacher has other sizes than the student was built for.
    """
    shapes = [
        jax.tree.map(jnp.shape, (params, statistics))
        for params, statistics in (
            (student.buffers["teacher"], student.buffers["statistics"]),
            (teacher.params, teacher.buffers["statistics"]),
        )
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "teacher must have the latent and state sizes that the student was built "
            "for, got others; build both from one config and one state_spec."
        )
    params = {**student.params, "posterior": teacher.params["posterior"]}
    buffers = {"teacher": teacher.params, **teacher.buffers}
    return student._replace(params=params, buffers=buffers)


def whole(student: ModelState) -> ModelState:
    """The student as the state of a plain `rssm` that sees images and paints none."""
    teacher = {k: v for k, v in student.buffers["teacher"].items() if k != "obs"}
    statistics = student.buffers["statistics"]._replace(obs=None)
    return ModelState({**teacher, **student.params}, {"statistics": statistics}, ())


class Player(NamedTuple):
    """A model, an actor that reads its latents, and what both learnt."""

    model: WorldModel
    actor: behaviour.Behaviour
    model_state: ModelState
    actor_state: ModelState


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Reach a goal in looks of the world that were never trained on.

    Student and model from scratch get the same images in batches of the same size and
    equally many updates, in domains of `dr_reach.TRAINING`. The model from scratch, an
    RSSM, paints the images and learns the rewards; an actor learns in its imagination,
    with as many updates as the teacher's. Student and teacher share theirs. How well
    the model from scratch tells rewards hangs on how much pixels count beside them:
    with `pixel_std` 1 it erred little more than the student (0.27 of the variance
    against 0.20, one seed), but its actor still reached 0.02 of the goals.

    Returns:
        For `teacher` (on states), `student` and `scratch`, the latter two in images of
        `dr_reach.HELD_OUT`: `success/...`, share of episodes that end at the goal.
        `reward/...`: squared error, over its variance, of the reward told from latents
        that saw all images up to then, in episodes of random actions, where only the
        image tells where the goal is; `ahead/...` of the reward foreseen 1 to 10 steps
        from the sixth image on. `reward_acting/...`: the same as `reward/...` in
        episodes of the teacher's actor with noise, whose actions also tell.
        `.../training` as a last part: in domains trained on.
    """
    env = dr_reach.dr_reach()
    images = dr_reach.in_images(dr_reach.TRAINING)
    keys = jax.random.split(key, 9)
    teacher, data = _teach(keys[0], env, config)
    windows = _matched(keys[1], data, config.views)

    model = twist(config, images.spec, env.spec)
    state = tree.strong(taught(model.init(keys[2]), teacher.model_state))
    state = whole(_learn(keys[3], model, state, windows, config))
    scratch = _scratch(keys[4], images.spec, windows, rows.merged(data), config)
    student = Player(scratch.model, scratch.actor, state, teacher.actor_state)

    test = _tests(keys[5], env, teacher, config)
    metrics = _errors(keys[6], teacher, env.spec, _rows(test), test, config)
    metrics["success"] = _successes(keys[7], teacher, [env], config)
    metrics = {f"{name}/teacher": value[0] for name, value in metrics.items()}
    judged = _judge(keys[8], [student, scratch], test, config)
    for i, who in enumerate(("student", "scratch")):
        for j, where in enumerate(("", "/training")):
            metrics |= {f"{name}/{who}{where}": x[i, j] for name, x in judged.items()}
    return metrics


def _teach(key, env: Env, config: Config) -> tuple[Player, Trajectory]:
    """Teacher and its actor, and all that they met, `[N, T, ...]`."""
    model = rssm.rssm(config.model, env.spec)
    nets = rssm.networks(config.model, env.spec)
    actor = behaviour.behaviour(model, config.actor)
    begin_key, model_key, actor_key, rounds_key = jax.random.split(key, 4)
    data = _play(begin_key, env, (evaluate.uniform(env.spec), ()), config.random)
    state = model.adapt(model.init(model_key), rows.merged(data))
    state = tree.strong((state, actor.init(actor_key)))
    room = config.rounds * config.round_episodes
    data = jax.tree.map(
        lambda x: jnp.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1)), data
    )

    def update(key, state, stored):
        data, count = stored
        draw_key, fit_key, filter_key, improve_key = jax.random.split(key, 4)
        at = jax.random.randint(draw_key, (config.batch,), 0, count)
        windows = jax.tree.map(lambda x: x[at], data)
        model_state, metrics = model.fit(fit_key, state[0], windows)
        starts = _latents(filter_key, nets, model_state, _rows(windows), windows)
        starts = jax.tree.map(_merged, starts)
        actor_state, _ = actor.improve(improve_key, state[1], model_state, starts)
        return (model_state, actor_state), metrics

    def one_round(carry, i):
        state, data = carry
        fit_key, play_key = jax.random.split(jax.random.fold_in(rounds_key, i))
        count = config.random + i * config.round_episodes
        state, _ = optimise.repeat(
            update, state, fit_key, (data, count), config.round_updates
        )
        act = _act(Player(model, actor, *state), config.noise)
        new = _play(play_key, env, act, config.round_episodes)
        put = jax.lax.dynamic_update_slice_in_dim
        data = jax.tree.map(lambda x, y: put(x, y, count, 0), data, new)
        return ((model.adapt(state[0], rows.merged(new)), state[1]), data), None

    rounds = jnp.arange(config.rounds)
    (state, data), _ = jax.lax.scan(one_round, (state, data), rounds)
    return Player(model, actor, *state), data


def _scratch(key, spec: EnvSpec, windows: Trajectory, steps, config: Config) -> Player:
    """Model and actor that learn from the same images, with no state behind them."""
    sized = dataclasses.replace(
        config.model,
        decay_updates=config.updates,
        learning_rate=config.learning_rate,
    )
    model, nets = rssm.rssm(sized, spec, decodes=False), rssm.networks(sized, spec)
    keys = jax.random.split(key, 5)
    state = tree.strong(model.adapt(model.init(keys[0]), steps))
    state = _learn(keys[1], model, state, windows, config)
    params = {k: v for k, v in state.params.items() if k != "obs"}  # as `whole`
    state = ModelState(params, state.buffers, ())
    some = jax.tree.map(lambda x: x[:: max(1, len(x) // 256)], windows)
    starts = _latents(keys[2], nets, state, some.obs, some)
    actor = behaviour.behaviour(model, config.actor)

    def update(key, actor_state, starts):
        return actor.improve(key, actor_state, state, starts)

    begin, starts = tree.strong(actor.init(keys[3])), jax.tree.map(_merged, starts)
    num = config.rounds * config.round_updates
    actor_state, _ = optimise.repeat(update, begin, keys[4], starts, num)
    return Player(model, actor, state, actor_state)


def _learn(key, model: WorldModel, state, windows: Trajectory, config: Config):
    """Updates on episodes drawn from `windows`."""

    def update(key, state, windows):
        draw_key, fit_key = jax.random.split(key)
        at = jax.random.randint(draw_key, (config.batch,), 0, len(windows.reward))
        return model.fit(fit_key, state, jax.tree.map(lambda x: x[at], windows))

    return optimise.repeat(update, state, key, windows, config.updates)[0]


def _act(player: Player, noise: float = 0.0) -> tuple[Callable, PyTree]:
    """`(act, memory)` of an episode: the mean action, or a draw with noise on it."""
    model, state = player.model, player.model_state
    policy = player.actor.policy(player.actor_state)

    def act(key, memory, obs, is_first):
        observe_key, draw_key, noise_key = jax.random.split(key, 3)
        latent, previous = memory
        latent = model.observe(observe_key, state, latent, obs, previous, is_first)
        dist = policy(model.feature(state, latent))
        action = dist.sample(draw_key) if noise else dist.mean
        action = action + noise * jax.random.normal(noise_key, action.shape)
        action = jnp.clip(action, *map(jnp.asarray, model.spec.action))
        return action, (latent, action)

    return act, (model.initial(state, None), jnp.zeros(model.spec.action.size))


def _play(key, env: Env, act: tuple[Callable, PyTree], num: int) -> Trajectory:
    """Whole episodes `[num, T, ...]`, acted by `(act, memory)`."""
    steps = env.spec.time_limit
    one = lambda key: families.episode(key, env, None, act[0], steps, memory=act[1])
    return jax.vmap(one)(loop.fold_in_each(key, num))


def _merged(x: Array) -> Array:
    """The first two axes as one."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _rows(data: Trajectory) -> Array:
    """All observations of episodes, the last one too, `[N, T + 1, ...]`."""
    return jnp.concatenate([data.obs[:, :1], data.extras["next_obs"]], 1)


def _latents(key, nets, state: ModelState, obs: Array, data: Trajectory) -> Latent:
    """Latents of episodes whose observations are `[N, T + 1, ...]`."""

    def one(key, obs, action):
        is_first = jnp.arange(len(obs)) == 0
        return rssm.filter_episode(
            key, nets, state, dr_reach.SPEC.action, obs, action, is_first
        ).latent

    return jax.vmap(one)(loop.fold_in_each(key, len(obs)), obs, data.action)


def _painted(key, states: Float[Array, "N R S"], looks) -> UInt8[Array, "N R h w 3"]:
    """Images of the states of episodes, each in a domain of its own."""

    def one(row):
        i, states = row
        domain = dr_reach.draw_domain(jax.random.fold_in(key, i), looks)

        def paint(s):
            reach = dr_reach.Reach(s[:2], s[2:4], s[4:])
            return dr_reach.as_bytes(dr_reach.paint(reach, domain))

        return jax.vmap(paint)(states)

    return jax.lax.map(one, (jnp.arange(len(states)), states), batch_size=16)


def _matched(key, data: Trajectory, views: int) -> Trajectory:
    """Windows `[V N, T + 1, ...]`: images in training domains, the states behind."""
    rest = jax.tree.map(lambda x: jnp.concatenate([x, x[:, -1:]], 1), data[1:5])
    states, rest = jax.tree.map(
        lambda x: jnp.concatenate([x] * views), (_rows(data), rest)
    )
    images = _painted(key, states, dr_reach.TRAINING)
    return Trajectory(images, *rest, {"state": states})


def _tests(key, env: Env, teacher: Player, config: Config) -> Trajectory:
    """Episodes `[2 M, T, ...]`: of random actions, then of the noisy teacher."""
    random_key, acting_key = jax.random.split(key)
    uniform = evaluate.uniform(env.spec), ()
    both = (
        _play(random_key, env, uniform, config.episodes),
        _play(acting_key, env, _act(teacher, config.noise), config.episodes),
    )
    return jax.tree.map(lambda *x: jnp.concatenate(x), *both)


def _errors(key, player: Player, spec: EnvSpec, obs, test: Trajectory, config: Config):
    """Squared errors of rewards over their variance, from V x 2 x M episodes seen.

    Each `[V]`: `obs` shows the episodes of `test` in V ways, one behind the other.
    """
    model, state = player.model, player.model_state
    nets, now = rssm.networks(config.model, spec), slice(_AT, _AT + _AHEAD)
    filter_key, imagine_key = jax.random.split(key)
    views = len(obs) // len(test.reward)
    data = jax.tree.map(lambda x: jnp.concatenate([x] * views), test)
    latent = _latents(filter_key, nets, state, obs, data)
    told = nets.reward.apply(state.params["reward"], latent.feature[:, 1:])
    told = stats.denormalise(state.buffers["statistics"].reward, told)[..., 0]

    def imagine(key, latent, action):
        return model.imagine(key, state, latent, action, _AHEAD).reward

    start = jax.tree.map(lambda x: x[:, _AT], latent)
    keys = loop.fold_in_each(imagine_key, len(obs))
    foreseen = jax.vmap(imagine)(keys, start, data.action[:, now])
    spread = jnp.var(test.reward.reshape(2, -1), 1)

    def error(said, true):
        miss = (said - true).reshape(views, 2, -1)
        return jnp.mean(miss**2, -1) / spread

    told, foreseen = error(told, data.reward), error(foreseen, data.reward[:, now])
    return {"reward": told[:, 0], "reward_acting": told[:, 1], "ahead": foreseen[:, 0]}


def _successes(key, player: Player, envs: list[Env], config: Config) -> Array:
    """Share of M episodes that end at the goal, `[V]` for V environments."""
    act, memory = _act(player)

    def begin(i, env):
        keys = loop.fold_in_each(jax.random.fold_in(key, i), config.episodes)
        return jax.vmap(lambda key: env.reset(key, None))(keys)

    starts = [begin(i, env) for i, env in enumerate(envs)]
    starts = jax.tree.map(lambda *x: jnp.concatenate(x), *starts)

    def one(i, start):
        env = envs[0]._replace(reset=lambda key, params: start)
        step_key = jax.random.fold_in(key, len(envs) + i)
        states, _ = evaluate.record(step_key, env, act, memory=memory)
        last = jax.tree.map(lambda x: x[-1], states.physics)
        body = last if isinstance(last, dr_reach.Reach) else last[0]
        return dr_reach.succeeded(body).astype(jnp.float32)

    good = jax.vmap(one)(jnp.arange(len(starts.reward)), starts)
    return jnp.mean(good.reshape(len(envs), -1), 1)


def _judge(key, players: list[Player], test: Trajectory, config: Config) -> Metrics:
    """Of models that see images, in domains held out and in those trained on: `[P, 2]`.

    Models and actors must be alike but for what they learnt: all are judged by one
    program.
    """
    paint_key, *shared = jax.random.split(key, 3)
    views = (dr_reach.HELD_OUT, dr_reach.TRAINING)
    envs = [dr_reach.in_images(view) for view in views]
    images = [
        _painted(jax.random.fold_in(paint_key, i), _rows(test), view)
        for i, view in enumerate(views)
    ]
    images = jnp.concatenate(images)

    def one(learnt):
        player = players[0]._replace(model_state=learnt[0], actor_state=learnt[1])
        error_key, act_key = map(jax.random.clone, shared)  # all meet the same
        metrics = _errors(error_key, player, envs[0].spec, images, test, config)
        return {**metrics, "success": _successes(act_key, player, envs, config)}

    return jax.lax.map(one, tree.stack([player[2:] for player in players]))
