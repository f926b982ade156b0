"""PolyGRAD: imagine whole on-policy trajectories in one policy-guided diffusion pass.

Source: Rigter et al., "World Models via Policy-Guided Trajectory Diffusion", TMLR 2024,
and its reference code.
Shapes: T horizon, O observation, A action, D = O + 2; a model row is (obs, reward,
terminal), normalised. Functions take one trajectory in raw units; `vmap` adds the
batch.
Departs: by default four network calls, actions not scaled by the level but clipped to
the environment's bounds, and set to `mean + stddev * eps` with eps fixed for a whole
trajectory. `PAPER` is the published mode: every level is visited and actions climb the
policy's score by a tuned rate. For stochastic dynamics the network is told the process
noise as innovations of a one-step head, and corrects what the head rolls out with them.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from jaxwm import diffusion, nn, rl
from jaxwm.core import checks, dists, optimise, stats, tree
from jaxwm.dynamics import autoregressive_diffusion, innovations, offline
from jaxwm.dynamics.whole_trajectory import whole_trajectory
from jaxwm.envs.tasks import pendulum
from jaxwm.train import fidelity, residuals
from jaxwm.types import (
    Env,
    EnvSpec,
    Metrics,
    ModelSpec,
    ModelState,
    Rollout,
    Trajectory,
    Transition,
    WorldModel,
)

_UPDATES = 3000  # of every model in the experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores. `PAPER` is the published one."""

    horizon: int = 10  # T, environment steps per imagined trajectory
    levels: int = 128  # noise levels the denoiser is trained on
    tau: float = 1.0  # exponent of the schedule; small keeps samples clean longer
    # Network calls per imagined trajectory, at most `levels`. Four are as good as 128
    # on a pendulum and an arm; a halfcheetah over 10 steps wants 8.
    calls: int = 4
    eta: float = 1.0  # noise between the calls: 1 ancestral sampling, 0 DDIM
    denoiser: Literal["mlp", "transformer"] = "mlp"
    width: int = 128  # hidden units of the denoiser
    depth: int = 3  # residual blocks of the denoiser
    heads: int = 4  # attention heads ("transformer")
    activation: str = "silu"  # of the residual blocks ("mlp"), a name in jax.nn
    time: Literal["log_sigma", "index"] = "log_sigma"  # how it is told the level
    learning_rate: float = 3e-3
    decay_updates: int | None = None  # updates over which it falls to 0 by a cosine
    ema: float = 0.995  # decay of the weights that are sampled from
    ema_every: int = 1  # updates between two averages
    ema_start: int = 0  # updates before which the average is a plain copy
    # How actions follow the policy: "resample" (noise fixed per trajectory), "fresh"
    # (new noise at every call), "score" (the reference's rule), "none" (not at all).
    guidance: Literal["resample", "fresh", "score", "none"] = "resample"
    guidance_scale: float = 0.005  # first rate of "score", squared action units
    guidance_rate: float = 3e-3  # step of its logarithm per tuning
    clip_std: float = 3.0  # largest distance from the policy's mean ("score")
    clip_change: float | None = None  # of normalised rows per call, in the last calls
    clip_change_last: int = 11  # calls for which it is active
    scale_actions: bool = False  # scale the actions the network reads by the signal
    clip_actions: bool = True  # clip them to the environment's bounds
    soft_terminal: bool = True  # discount falls with the terminal channel, else at 0.5
    terminal_floor: float = 0.2  # smallest spread that terminals are divided by
    # Stochastic dynamics: "innovations" conditions on the whitened residuals of a
    # Gaussian one-step head, drawn once per imagined trajectory, and on what that head
    # makes of them.
    process_noise: Literal["none", "innovations"] = "none"
    head_width: int = 128  # hidden units of that head, two layers

    def __post_init__(self):
        checks.finite(self)
        if self.horizon < 2:
            raise ValueError(
                f"horizon must be at least 2 steps, got {self.horizon}; "
                "one-step models live in jaxwm.dynamics."
            )
        if not 1 <= self.calls <= self.levels:
            raise ValueError(
                f"calls must be in 1 ... {self.levels}, the number of levels, got "
                f"{self.calls}."
            )
        choices = {
            "denoiser": ("mlp", "transformer"),
            "time": ("log_sigma", "index"),
            "guidance": ("resample", "fresh", "score", "none"),
            "process_noise": ("none", "innovations"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got "
                    f"{getattr(self, name)!r}."
                )
        checks.at_least(1, self, "width", "depth", "heads", "ema_every", "head_width")
        checks.positive(
            self, "tau", "learning_rate", "guidance_scale", "terminal_floor"
        )
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}.")


# Hopper's; walker and halfcheetah have tau 1.0. Horizons 50 and 200 have width 2048.
PAPER = Config(
    tau=0.1,
    calls=128,
    width=1024,
    depth=6,
    activation="relu",
    time="index",
    learning_rate=3e-4,
    ema=0.99,
    ema_every=10,
    ema_start=2000,
    guidance="score",
    clip_change=0.25,
    scale_actions=True,
    clip_actions=False,
    soft_terminal=False,
    terminal_floor=1e-6,
)
# Of `experiment`: few updates, so their length falls towards the end.
EXPERIMENT = Config(decay_updates=_UPDATES)
TINY = Config(horizon=4, levels=8, calls=2, width=16, depth=1, head_width=16)


def polygrad(config: Config, spec: EnvSpec) -> WorldModel:
    """Builds PolyGRAD's pure functions for an environment of the given sizes.

    Args:
        config: sizes, sampler, guidance.
        spec: of the environment; observations must be one flat vector and actions
            continuous.

    Returns:
        The model. `info` of a rollout: `finite` (start and result hold no NaN),
        `adapted` (statistics of data were taken in), `chained`; with guidance "score"
        also `z` and `policy_std` `[T, A]`, which `tune` reads; with innovations
        `innovation` `[T, O]`. The ability "stochastic" says that process noise is
        modelled.

    Raises:
        ValueError: for images, nested observations or discrete actions.
    """
    obs_size, act_size = spec.flat_sizes("polygrad")
    row_size = obs_size + 2
    row_shape, act_shape = (config.horizon, row_size), (config.horizon, act_size)
    schedule = diffusion.cosine_schedule(config.levels, config.tau)
    levels = diffusion.stride(schedule, config.calls)
    steps = diffusion.ancestral(levels, eta=config.eta)
    is_known = np.zeros(row_shape, bool)
    is_known[0, :obs_size] = True
    is_reward = np.arange(row_size) == obs_size
    low, high = (
        jnp.asarray(b, jnp.float32) for b in (spec.action.low, spec.action.high)
    )
    has_noise = config.process_noise == "innovations"
    network, head = _networks(config, obs_size)
    rate = config.learning_rate
    if config.decay_updates is not None:
        rate = optax.cosine_decay_schedule(rate, config.decay_updates)
    optimiser = optax.adam(rate)

    def init(key: Key[Array, ""]) -> ModelState:
        network_key, head_key = jax.random.split(key)
        inputs = jnp.zeros((config.horizon, act_size + 2 * has_noise * obs_size))
        params = {
            "network": network.init(
                network_key, jnp.zeros(row_shape), inputs, jnp.zeros(())
            )
        }
        if has_noise:
            params["head"] = head.init(head_key, jnp.zeros(obs_size + act_size))
        floor = jnp.full(row_size, 1e-3).at[-1].set(config.terminal_floor)
        buffers = {
            "ema": jax.tree.map(jnp.copy, params),
            "rows": stats.moments(row_size)._replace(floor=floor),
            "action": stats.moments(act_size, floor=1e-3),
            "log_guidance": jnp.asarray(np.log(config.guidance_scale), jnp.float32),
            "updates": jnp.zeros((), jnp.int32),
        }
        return optimise.init_state(optimiser, params, buffers)

    def make_denoiser(params, buffers, start, innovation):
        """The denoiser of trajectories whose first observation is known."""
        bounds = [stats.normalise(buffers["action"], b) for b in (low, high)]

        def predict(x, level, action):
            if config.clip_actions:
                action = jnp.clip(action, *bounds)
            index = config.time == "index"
            time = level.time if index else diffusion.log_sigma(level)
            read = level.signal * action if config.scale_actions else action
            if not has_noise:
                return network.apply(params["network"], x, read, time)
            # Alone the network smooths what it is told; rolled out step by step, noise
            # arrives whole, and what is left to predict is the head's error.
            rolled = innovations.roll_head(
                head, buffers["ema"]["head"], start[:obs_size], action, innovation
            )
            read = jnp.concatenate([read, innovation, rolled], -1)
            rolled = jnp.pad(rolled, ((0, 0), (0, 2)))
            return rolled + network.apply(params["network"], x - rolled, read, time)

        known = lambda x: jnp.where(is_known, start, x)
        return diffusion.denoiser(predict, diffusion.predict_x0, known=known), known

    def errors(key, params, buffers, window: Trajectory):
        """Denoising loss of one window, its first observation known."""
        if window.reward.shape != (config.horizon,):
            raise ValueError(
                f"window must have {config.horizon} rows (the horizon), got "
                f"{window.reward.shape[0]}; sample windows of `spec.window` rows."
            )
        x0, mask = encode(buffers, window)
        action = stats.normalise(buffers["action"], window.action)
        innovation, head_loss = None, jnp.zeros(())
        if has_noise:
            bounded = jnp.clip(window.action, low, high)
            pairs = (
                x0[:, :obs_size],
                stats.normalise(buffers["action"], bounded),
                mask[1:, 0] * mask[:-1, 0],
            )
            key, head_key = jax.random.split(key)
            head_loss = innovations.head_loss(head_key, head, params["head"], *pairs)
            # Whitened by the averaged head, which moves least.
            innovation = innovations.innovations(head, buffers["ema"]["head"], *pairs)
        denoise, _ = make_denoiser(params, buffers, x0[0], innovation)
        value, error = diffusion.loss(
            key, denoise, diffusion.uniform(schedule), x0, action, mask=mask
        )
        error = error * mask
        metrics = {
            "obs_error": jnp.mean(error[:, :obs_size]),
            "reward_error": jnp.mean(error[:, obs_size]),
            "terminal_error": jnp.mean(error[:, -1]),
            "head_loss": head_loss,
        }
        return value + head_loss, metrics

    def encode(buffers, window: Trajectory):
        """Normalised rows `[T, D]`, and 1 for entries that are known.

        Behind a termination the terminal channel stays 1 and only the first row's
        observation counts: it was reached. The reward of padding is set to the mean,
        since a constant reward's deviation is no unit to measure a padded 0 in.
        """
        real, terminal = window.mask, 1 - window.discount
        rows = jnp.concatenate(
            [window.obs, window.reward[:, None], terminal[:, None]], -1
        )
        x0 = stats.normalise(buffers["rows"], rows)
        x0 = jnp.where(is_reward & (real[:, None] == 0), 0.0, x0)
        ended = (terminal > 0.5).astype(real.dtype)
        reached = jnp.append(real[:1], jnp.maximum(real[1:], real[:-1] * ended[:-1]))
        mask = jnp.concatenate(
            [
                jnp.broadcast_to(reached[:, None], window.obs.shape),
                real[:, None],
                jnp.maximum(real, ended)[:, None],
            ],
            -1,
        )
        return x0, mask

    def loss(key: Key[Array, ""], state: ModelState, window: Trajectory):
        value, metrics = errors(key, state.params, state.buffers, window)
        return value, (state.buffers, metrics)

    def fit(
        key: Key[Array, ""], state: ModelState, windows: Trajectory
    ) -> tuple[ModelState, Metrics]:
        """One update on a batch, then the running average of the weights."""
        keys = jax.random.split(key, windows.reward.shape[0])

        def mean_loss(params):
            values, metrics = jax.vmap(errors, (0, None, None, 0))(
                keys, params, state.buffers, windows
            )
            return jnp.mean(values), (state.buffers, stats.mean_metrics(metrics))

        state, metrics = optimise.gradient_step(
            mean_loss, optimiser, state, has_aux=True
        )
        updates = state.buffers["updates"] + 1
        # Young averages forget their random start: (1 + n) / (10 + n) below `ema`.
        decay = jnp.minimum(config.ema, (1 + updates) / (10 + updates))
        decay = jnp.where(updates < config.ema_start, 0.0, decay)
        average = jax.lax.cond(
            updates % config.ema_every == 0,
            lambda: tree.ema(state.buffers["ema"], state.params, decay),
            lambda: state.buffers["ema"],
        )
        buffers = {**state.buffers, "ema": average, "updates": updates}
        return state._replace(buffers=buffers), metrics

    def adapt(state: ModelState, data: Transition) -> ModelState:
        """Takes the statistics of newly collected steps into the normalisers."""
        rows = jnp.concatenate(
            [data.obs, data.reward[:, None], 1 - data.discount[:, None]], -1
        )
        action = (
            jnp.clip(data.action, low, high) if config.clip_actions else data.action
        )
        moments = state.buffers["rows"], state.buffers["action"]
        buffers = {
            **state.buffers,
            "rows": stats.update_moments(moments[0], rows, data.mask),
            "action": stats.update_moments(moments[1], action, data.mask),
        }
        return state._replace(buffers=buffers)

    def imagine(
        key: Key[Array, ""], state: ModelState, obs: Float[Array, " O"], actor
    ) -> Rollout:
        """Denoises T steps from `obs` while their actions follow the actor."""
        if obs.shape != (obs_size,):
            raise ValueError(
                f"obs must have shape ({obs_size},), got {obs.shape}; `jax.vmap` adds "
                "the batch."
            )
        sample_key, act_key, noise_key, start_key = jax.random.split(key, 4)
        buffers = state.buffers
        rows, act = buffers["rows"], buffers["action"]
        shift, scale = act.mean, stats.scale(act)
        start = stats.normalise(rows, jnp.pad(obs, (0, 2)))
        innovation = None
        if has_noise:
            innovation = jax.random.normal(noise_key, (config.horizon, obs_size))
            innovation = innovation.at[-1].set(0.0)
        denoise, known = make_denoiser(buffers["ema"], buffers, start, innovation)
        terms = [diffusion.inpaint(known)]
        if config.clip_change is not None:
            last = min(config.clip_change_last, config.calls)
            terms.append(diffusion.clip_change(config.clip_change, last))

        def policy(x):
            dist = jax.vmap(actor)(stats.denormalise(rows, x)[:, :obs_size])
            if dist.mean.shape != act_shape:
                raise ValueError(
                    f"actor must give {act_size} action values, got "
                    f"{dist.mean.shape[-1]}; its size is that of the environment."
                )
            return dist

        if callable(actor):
            action = jax.random.normal(start_key, act_shape)
            rule = make_rule(act_key, buffers)
            if rule is not None:
                terms.append(
                    diffusion.follow_policy(policy, rule, shift=shift, scale=scale)
                )
        else:
            action = stats.normalise(act, actor)
        result = diffusion.sample(
            sample_key, denoise, steps, row_shape, cond=action, terms=tuple(terms)
        )

        x = stats.denormalise(rows, result.x)  # [T, D], raw units again
        action = shift + scale * result.cond if callable(actor) else actor
        info = {
            "finite": tree.all_finite((obs, x, action)),
            "adapted": rows.count > 0,
        }
        if has_noise:
            info["innovation"] = innovation
        if config.guidance == "score" and callable(actor):
            dist = policy(result.x)
            info |= {"z": (action - dist.mean) / dist.stddev, "policy_std": dist.stddev}
        terminal = jnp.clip(x[:, -1], 0, 1)
        if not config.soft_terminal:
            terminal = (terminal > 0.5).astype(x.dtype)
        # Where no episode ever terminated, the channel holds nothing but error.
        discount = jnp.where(rows.mean[-1] > 0, 1 - terminal, 1.0)
        states = x[:, :obs_size]
        return Rollout(states, states, action, x[:, obs_size], discount, info)

    def make_rule(key, buffers):
        """How actions follow the policy, by `config.guidance`."""
        if config.guidance == "none":
            return None
        if config.guidance == "score":
            rate = jnp.exp(buffers["log_guidance"])
            return diffusion.climb_score(rate, clip_std=config.clip_std)
        if config.guidance == "fresh":
            return diffusion.fresh_sample(_fresh_draw)
        return diffusion.resample(_fixed_draw(key, act_shape))

    def tune(state: ModelState, rollouts: Rollout) -> ModelState:
        """Keeps the spread of imagined actions on-policy.

            log rate <- log rate + guidance_rate (v - 1)

        v is the standard deviation of `z = (a - mean) / stddev`, meaned over actions;
        actions spread too wide are guided harder. The rate stays below the policy's
        variance, where one step reaches its mean.
        """
        if config.guidance != "score" or rollouts.action.shape[1] < 2:
            return state
        spread = rl.action_spread(rollouts.info["z"][:, :-1])
        variance = jnp.min(jnp.mean(rollouts.info["policy_std"] ** 2, (0, 1)))
        log_rate = rl.update_guidance(
            state.buffers["log_guidance"],
            spread,
            config.guidance_rate,
            low=1e-4,
            high=variance,
        )
        return state._replace(buffers={**state.buffers, "log_guidance": log_rate})

    abilities = {"reward", "discount", "gradient"} | (
        {"stochastic"} if has_noise else set()
    )
    model_spec = ModelSpec(
        obs=spec.obs,
        action=spec.action,
        feature_size=obs_size,
        horizon=config.horizon,
        context=1,
        abilities=frozenset(abilities),
        window=config.horizon,
        name="PolyGRAD",
    )
    return whole_trajectory(
        model_spec, imagine, init=init, loss=loss, fit=fit, adapt=adapt, tune=tune
    )


def _networks(config: Config, obs_size: int):
    """The denoiser, and the one-step head of the process noise."""
    index = config.time == "index"
    head = nn.GaussianHead(obs_size, (config.head_width, config.head_width))
    if config.denoiser == "transformer":
        features = None if index else nn.FourierTime()
        network = nn.TransformerDenoiser(
            config.width, config.depth, config.heads, features
        )
    else:
        features = nn.RandomTime() if index else nn.FourierTime()
        network = nn.ResidualDenoiser(
            config.width,
            config.depth,
            time_features=features,
            activation=config.activation,
        )
    return network, head


def _fixed_draw(key: Key[Array, ""], shape: tuple[int, int]):
    """A function from the policy's distribution to a sample whose noise is fixed.

    Called once per network call: drawing from the same key again is the point, so the
    key is taken apart here and put together there.
    """
    eps_key, rows_key = jax.random.split(key)
    eps = jax.random.normal(eps_key, shape)
    data = jax.random.key_data(jax.random.split(rows_key, shape[0]))

    def draw(dist):
        if isinstance(dist, dists.Normal):
            return dist.mean + dist.stddev * eps
        keys = jax.random.wrap_key_data(data)
        return jax.vmap(lambda dist, key: dist.sample(key))(dist, keys)

    return draw


def _fresh_draw(key: Key[Array, ""], dist) -> Float[Array, "T A"]:
    """A sample of the policy's distribution at every step."""
    keys = jax.random.split(key, jax.tree.leaves(dist)[0].shape[0])
    return jax.vmap(lambda dist, key: dist.sample(key))(dist, keys)


def experiment(key: Key[Array, ""], config: Config = EXPERIMENT) -> Metrics:
    """What the model promises, on the pendulum.

    Every model is fitted to the same 400 x 50 steps of exploration with equally many
    updates (three times as many under process noise). Models imagine under a fixed
    random policy from 512 held-out starts; the simulator replays the imagined actions.

    Returns:
        Normalised squared errors of observations, averaged over the imagined steps:
        `error`, of `error/autoregressive` (one-step diffusion), of `error/reference`
        (the published mode: every level visited, scaled actions that climb the score
        by a tuned rate) and of `error/persistence` (repeating the start); mean and
        standard deviation of the actions' scores `z/mean`, `z/std`, `z/std_reference`
        and `z/std_unguided`, of the same model when actions ignore the policy.
        Under velocity noise and given actions `noise/...`: least and largest ratio of
        one-step residuals to the true ones over observations, largest autocorrelation,
        CRPS against the simulator's own; `noise/head_...` of its one-step head alone.
    """
    still_key, noisy_key = jax.random.split(key)
    return {**_on_policy(still_key, config), **_stochastic(noisy_key, config)}


def _on_policy(key: Key[Array, ""], config: Config) -> Metrics:
    """Errors and scores without process noise."""
    env = pendulum.pendulum()
    data_key, held_key, policy_key, fit_key, tune_key, *keys = jax.random.split(key, 7)
    steps = _explore(data_key, env, 400, 50)
    held = jax.tree.map(lambda x: x[:, 0], _explore(held_key, env, 512, 2))
    policy = _random_policy(policy_key)

    def imagine(key, model: WorldModel, state: ModelState, num: int = 512):
        one = lambda key, obs: model.imagine(key, state, obs, policy, config.horizon)
        return jax.vmap(one)(jax.random.split(key, num), held.obs[:num])

    def judge(model: WorldModel, state: ModelState):
        rollouts = imagine(keys[0], model, state)
        error = fidelity.trajectory_error(
            keys[1],
            env,
            rollouts,
            held.extras["physics"],
            variance=jnp.var(steps.obs, (0, 1)),
        )
        z = fidelity.on_policy(rollouts, policy)
        return error.normalised[1:].mean(), error.persistence_normalised[1:].mean(), z

    model = polygrad(config, env.spec)
    state = offline.fitted(fit_key, model, steps, updates=_UPDATES)
    error, persistence, z = judge(model, state)
    unguided = polygrad(dataclasses.replace(config, guidance="none"), env.spec)
    rival = autoregressive_diffusion.autoregressive_diffusion(
        autoregressive_diffusion.Config(
            levels=config.levels,
            calls=config.calls,
            width=config.width,
            depth=config.depth,
            activation=config.activation,
            learning_rate=config.learning_rate,
            decay_updates=config.decay_updates,
        ),
        env.spec,
    )
    rival_state = offline.fitted(fit_key, rival, steps, updates=_UPDATES)
    reference = polygrad(reference_mode(config), env.spec)

    def tune(state, i):
        key = jax.random.fold_in(tune_key, i)
        return reference.tune(state, imagine(key, reference, state, 64)), None

    tuned = offline.fitted(fit_key, reference, steps, updates=_UPDATES)
    tuned, _ = jax.lax.scan(tune, tuned, jnp.arange(100))
    reference_error, _, reference_z = judge(reference, tuned)
    return {
        "error": error,
        "error/persistence": persistence,
        "error/autoregressive": judge(rival, rival_state)[0],
        "error/reference": reference_error,
        "z/mean": jnp.mean(z.mean),
        "z/std": jnp.mean(z.std),
        "z/std_reference": jnp.mean(reference_z.std),
        "z/std_unguided": jnp.mean(judge(unguided, state)[2].std),
    }


def reference_mode(config: Config) -> Config:
    """The published sampler, inputs and network at the sizes of `config`."""
    return dataclasses.replace(
        config,
        calls=config.levels,
        activation=PAPER.activation,
        time=PAPER.time,
        guidance=PAPER.guidance,
        guidance_rate=0.1,
        clip_change=PAPER.clip_change,
        scale_actions=PAPER.scale_actions,
        clip_actions=PAPER.clip_actions,
        soft_terminal=PAPER.soft_terminal,
    )


def _stochastic(key: Key[Array, ""], config: Config) -> Metrics:
    """Whether the noise of a system survives, at given actions."""
    data_key, held_key, fit_key, sample_key = jax.random.split(key, 4)
    still = pendulum.pendulum()
    env = _shaken(still, 1.0)
    config = dataclasses.replace(
        config, process_noise="innovations", decay_updates=3 * _UPDATES
    )
    model = polygrad(config, env.spec)
    state = offline.fitted(
        fit_key, model, _explore(data_key, env, 400, 50), updates=3 * _UPDATES
    )
    held = _explore(held_key, env, 32, config.horizon)
    physics = jax.tree.map(lambda x: x[:, 0], held.extras["physics"])

    def mean_step(obs, action):
        angle = pendulum.Pendulum(jnp.arctan2(obs[1], obs[0]), obs[2])
        return still.step(jax.random.key(0), still.reset_to(angle), action).obs

    def imagine(key, obs, action):
        return model.imagine(key, state, obs, action, config.horizon).obs

    rows, act = state.buffers["rows"], state.buffers["action"]
    scale, mean = stats.scale(rows)[:-2], rows.mean[:-2]
    head = _networks(config, mean.shape[0])[1]

    def imagine_by_head(key, obs, action):
        rolled = innovations.roll_head(
            head,
            state.buffers["ema"]["head"],
            (obs - mean) / scale,
            stats.normalise(act, action),
            jax.random.normal(key, (config.horizon, mean.shape[0])),
        )
        return mean + scale * rolled

    metrics = {}
    for name, draw in (("noise/", imagine), ("noise/head_", imagine_by_head)):
        found = residuals.compare(
            sample_key, env, draw, mean_step, physics, None, held.action
        )
        metrics |= {
            f"{name}ratio_least": jnp.min(found.ratio),
            f"{name}ratio_largest": jnp.max(found.ratio),
            f"{name}autocorrelation": jnp.max(jnp.abs(found.autocorrelation)),
            f"{name}crps": jnp.mean(found.crps_ratio),
        }
    return metrics


def _explore(key: Key[Array, ""], env: Env, num: int, length: int) -> Transition:
    """Episodes `[num, length]` under a noise of actions that changes slowly.

    `a <- 0.8 a + 0.6 eps`, from starts all over the states.
    """

    def episode(key):
        start_key, action_key, env_key = jax.random.split(key, 3)
        theta, speed = jax.random.uniform(start_key, (2,), minval=-1.0)
        start = env.reset_to(pendulum.Pendulum(jnp.pi * theta, 4 * speed), None)

        def body(carry, i):
            state, action = carry
            eps = jax.random.normal(jax.random.fold_in(action_key, i), (1,))
            action = 0.8 * action + 0.6 * eps
            taken = jnp.clip(action, -1, 1)
            after = env.step(jax.random.fold_in(env_key, i), state, taken)
            row = Transition(
                state.obs,
                taken,
                after.reward,
                after.discount,
                i == length - 1,
                after.obs,
                jnp.ones(()),
                {"physics": state.physics},
            )
            return (after, action), row

        return jax.lax.scan(body, (start, jnp.zeros(1)), jnp.arange(length))[1]

    return jax.vmap(episode)(jax.random.split(key, num))


def _shaken(env: Env, std: float) -> Env:
    """The pendulum with a random change of speed, in rad/s, at every step."""

    def step(key, state, action):
        noise_key, env_key = jax.random.split(key)
        new = env.step(env_key, state, action)
        kick = std * jax.random.normal(noise_key)
        theta, omega = new.physics
        moved = pendulum.Pendulum(theta + pendulum.DT * kick, omega + kick)
        moved = env.reset_to(moved, state.params)
        return new._replace(physics=moved.physics, obs=moved.obs)

    return env._replace(step=step)


def _random_policy(key: Key[Array, ""]):
    """A fixed network of 32 tanh units; standard deviation 0.3."""
    inner_key, outer_key = jax.random.split(key)
    inner = jax.random.normal(inner_key, (3, 32)) / jnp.sqrt(3.0)
    outer = jax.random.normal(outer_key, (32, 1)) / jnp.sqrt(32.0)

    def policy(obs):
        return dists.Normal(jnp.tanh(jnp.tanh(obs @ inner) @ outer), jnp.full(1, 0.3))

    return policy
