"""Generalized teacher forcing: fit an RNN to chaotic data without exploding gradients.

A recurrent model `z_{t+1} = F(z_t)` shall reproduce a whole attractor, not just the
next step. Run freely during training, its gradients explode as orbits part; forced onto
the data at every step (teacher forcing), it never sees its own errors. Mixing the two,

    z~_t = (1 - α) z_t + α z̄_t,     z_{t+1} = F(z~_t)

scales the product of T Jacobians by (1 - α)^T, which is bounded once α > 1 - 1/|J|: the
smallest such α is read from the Jacobians on the data and followed while training.

Source: Hess, Monfared, Brenner and Durstewitz, "Generalized Teacher Forcing for
Learning Chaotic Dynamics", ICML 2023. Shapes: T time steps, N observed and M latent
dimensions. Series are standardised: the bound on α is worthless otherwise.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from jaxwm import nn
from jaxwm.core import checks, optimise
from jaxwm.measures import attractor
from jaxwm.physics import chaos
from jaxwm.types import Metrics, ModelState, Params, Predictor

_DT = 0.01  # of the experiment's samples, in Lorenz's time units
_BINS = 20  # of its histograms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: a minute on two cores. `PAPER` is the published one."""

    hidden: int = 50  # H, units of the piecewise-linear cell
    latent: int | None = None  # M; None: as many as observed
    affine: bool = False  # observe x = B z; else x is the first N of z
    length: int = 100  # T, steps of a training window
    batch: int = 16  # windows per update
    forcing: float = 1.0  # α at the start, share of the data in the state
    adapt_every: int = 5  # updates between two looks at the Jacobians; 0 keeps α
    decay: float = 0.999  # γ, with which α follows a bound that sinks
    penalty: float = 1e-5  # on the distance of weights from the identity map
    num_updates: int = 12_000  # over which the learning rate falls
    learning_rate: float = 2e-3
    last_learning_rate: float = 2e-5
    noise: float = 0.05  # of the experiment's training data, standard deviations
    num_samples: int = 20_000  # of the experiment's orbits, for training and for test

    def __post_init__(self):
        checks.finite(self)
        if not 0 <= self.forcing <= 1:
            raise ValueError(
                f"forcing must be in [0, 1], got {self.forcing}; 1 is teacher forcing, "
                "0 plain back-propagation through time."
            )
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {self.decay}.")
        if self.length < 2:
            raise ValueError(
                f"length must be at least 2 steps, got {self.length}; a window holds a "
                "state and what follows it."
            )


PAPER = Config(
    hidden=100,
    length=200,
    num_updates=250_000,
    learning_rate=1e-3,
    last_learning_rate=1e-6,
)
TINY = Config(hidden=8, length=10, batch=4, num_updates=20, num_samples=200)


def generalized_teacher_forcing(config: Config) -> Predictor:
    """Builds the pure functions of a recurrent model trained with partial forcing.

    `init(key, obs_size) -> ModelState`; α and the number of updates are its buffers.
    `step(key, state, series [S, N]) -> (state, metrics)`: one update on windows drawn
    from the series. `predict(params, x [N], num_steps) -> [num_steps, N]`: what follows
    x, run freely.
    """
    cell = nn.PiecewiseLinearCell(config.hidden)
    schedule = optax.exponential_decay(
        config.learning_rate,
        config.num_updates,
        config.last_learning_rate / config.learning_rate,
    )
    optimiser = optax.radam(schedule)

    def init(key: Key[Array, ""], obs_size: int) -> ModelState:
        cell_key, observe_key = jax.random.split(key)
        size = obs_size if config.latent is None else config.latent
        if size < obs_size and not config.affine:
            raise ValueError(
                f"latent must be at least the {obs_size} observed dimensions, got "
                f"{size}; affine=True observes fewer."
            )
        params = {"cell": cell.init(cell_key, jnp.zeros(size))}
        if config.affine:
            matrix = jax.random.normal(observe_key, (obs_size, size)) / size**0.5
            params["observe"] = matrix  # B
        elif size > obs_size:  # what the data say about the other units
            params["lift"] = jnp.zeros((size - obs_size, obs_size))
        buffers = {"forcing": config.forcing, "updates": jnp.zeros((), jnp.int32)}
        return optimise.init_state(optimiser, params, buffers)

    def lift(params: Params, x: Float[Array, "*T N"]) -> Float[Array, "*T M"]:
        """The forcing signal z̄: B⁺ x, or x itself and a guess at what is hidden."""
        if config.affine:
            return x @ jnp.linalg.pinv(params["observe"]).T
        if "lift" not in params:
            return x
        return jnp.concatenate([x, x @ params["lift"].T], -1)

    def observe(params: Params, z: Float[Array, "*T M"], size: int):
        return z @ params["observe"].T if config.affine else z[..., :size]

    def transition(params: Params, z: Float[Array, " M"]) -> Float[Array, " M"]:
        return cell.apply(params["cell"], z)

    def loss(params: Params, forcing, x: Float[Array, "T N"]) -> Float[Array, ""]:
        """Mean squared error of every prediction; forcing acts on the next one."""
        z_bar = lift(params, x)
        is_forced = jnp.arange(z_bar.shape[1]) < x.shape[1]  # hidden units run free
        share = forcing * (is_forced | config.affine)
        z = gtf_rollout(lambda z: transition(params, z), z_bar, share)
        return jnp.mean((observe(params, z, x.shape[1]) - x[1:]) ** 2)

    def step(key: Key[Array, ""], state: ModelState, series: Float[Array, "S N"]):
        x = windows(key, series, config.length, config.batch)  # [B, T, N]
        forcing, updates = state.buffers["forcing"], state.buffers["updates"]

        def look(forcing):
            jacobian = jax.jacfwd(lambda z: transition(state.params, z))
            least = jax.vmap(lambda x: alpha_star(jacobian, lift(state.params, x)))(x)
            least = jnp.max(least)
            slow = config.decay * forcing + (1 - config.decay) * least
            return jnp.where(least > forcing, least, slow)

        if config.adapt_every:
            due = updates % config.adapt_every == 0
            forcing = jax.lax.cond(due, look, lambda forcing: forcing, forcing)

        def penalised(params, x):
            each = jax.vmap(loss, (None, None, 0))(params, forcing, x)
            return jnp.mean(each) + config.penalty * _size(params["cell"]["params"])

        state, metrics = optimise.gradient_step(penalised, optimiser, state, x)
        buffers = {"forcing": forcing, "updates": updates + 1}
        return state._replace(buffers=buffers), metrics | {"forcing": forcing}

    def predict(params: Params, x: Float[Array, " N"], num_steps: int):
        z = transition(params, lift(params, x))
        z = chaos.orbit(lambda z: transition(params, z), z, num_steps)
        return observe(params, z, x.shape[0])

    return Predictor(init, step, predict)


def gtf_rollout(
    step: Callable, z_bar: Float[Array, "T M"], forcing: Array | float
) -> Float[Array, "T-1 M"]:
    """`z_{t+1} = F((1 - α) z_t + α z̄_t)` from z̄_1: predictions of z̄_2 ... z̄_T.

    Args:
        step: F, `z [M] -> z [M]`: any recurrent step, differentiable.
        z_bar: the forcing signal.
        forcing: α, one number or one per dimension. At 1 the gradient is that of
            one-step regression.
    """

    def forced(z, z_bar_t):
        z = step((1 - forcing) * z + forcing * z_bar_t)
        return z, z

    return jax.lax.scan(forced, z_bar[0], z_bar[:-1])[1]


def alpha_star(jacobian: Callable, z_bar: Float[Array, "T M"]) -> Float[Array, ""]:
    """`max(0, 1 - 1/n)`, n the geometric mean of `|J(z̄_t)|` along a sequence.

    Departs: the paper takes the singular values; `spectral_norm` is an upper bound
    within a hundredth, which errs on the side of bounded gradients.
    """
    norms = jax.vmap(lambda z: spectral_norm(jacobian(z)))(z_bar)
    return jnp.maximum(0.0, 1 - jnp.exp(-jnp.mean(jnp.log(norms))))


def spectral_norm(
    matrix: Float[Array, "M M"], *, squarings: int = 6
) -> Float[Array, ""]:
    """`tr[(JᵀJ)^p]^(1/2p)`, p = 2^squarings: at least |J|, at most M^(1/2p) |J|.

    Products of small matrices, where a singular value decomposition per time step
    would cost more than the update.
    """
    tiny = jnp.finfo(matrix.dtype).tiny
    gram = matrix.T @ matrix
    log_scale = jnp.zeros((), matrix.dtype)  # of the power taken so far
    for _ in range(squarings):
        scale = jnp.maximum(jnp.trace(gram), tiny)
        log_scale = 2 * (log_scale + jnp.log(scale))
        gram = (gram / scale) @ (gram / scale)
    log_trace = log_scale + jnp.log(jnp.maximum(jnp.trace(gram), tiny))
    return jnp.exp(log_trace / 2 ** (squarings + 1))


def windows(
    key: Key[Array, ""], series: Float[Array, "S N"], length: int, num: int
) -> Float[Array, "{num} {length} N"]:
    """Stretches of a series, their starts drawn uniformly.

    Raises:
        ValueError: if the series is shorter than a window, or holds NaN (seen only
            outside `jit`).
    """
    if length > series.shape[0]:
        raise ValueError(
            f"length must be at most the {series.shape[0]} steps of the series, got "
            f"{length}; shorten the windows."
        )
    if not isinstance(series, jax.core.Tracer) and not np.isfinite(series).all():
        raise ValueError(
            "series must be finite, got NaN or infinity; cut the series there or fill "
            "the gap."
        )
    start = jax.random.randint(key, (num,), 0, series.shape[0] - length + 1)
    take = lambda i: jax.lax.dynamic_slice_in_dim(series, i, length)
    return jax.vmap(take)(start)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Lorenz-63 under observation noise, with adaptive, full and no forcing.

    Trained on one noisy orbit, scored on another, clean one: `divergence` between
    histograms of it and of a free run as long (nats; 15 where the run left the box),
    `spectrum` the distance of their power spectra, `error` the mean squared error 20
    steps ahead, `lyapunov` the largest exponent. `.../teacher` is α = 1, `.../free` is
    α = 0. `grad_norm` is the largest seen while training; one that is not finite counts
    as 1e12.
    """
    names = ("train", "test", "noise", "run")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    x = chaos.lorenz63(keys["train"], config.num_samples, dt=_DT)
    mean, std = x.mean(0), x.std(0)
    noise = jax.random.normal(keys["noise"], x.shape)
    train = (x - mean) / std + config.noise * noise
    test = (chaos.lorenz63(keys["test"], config.num_samples, dt=_DT) - mean) / std

    def score(model: Predictor, state: ModelState, rows: Metrics):
        predict = lambda x, num: model.predict(state.params, x, num)
        step = lambda z: predict(z, 1)[0]
        run = predict(test[0], len(test))
        ahead = jax.vmap(lambda x: predict(x, 20)[-1])(test[:-20])
        norm = jnp.where(jnp.isfinite(rows["grad_norm"]), rows["grad_norm"], 1e12)
        return {
            "divergence": attractor.state_space_divergence(test, run, bins=_BINS),
            "spectrum": attractor.power_spectrum_error(test, run),
            "error": jnp.mean((ahead - test[20:]) ** 2),
            "grad_norm": jnp.max(norm),
            "lyapunov": attractor.lyapunov_exponents(
                step, test[0], len(test), dt=_DT, num=1
            )[0],
            "forcing": state.buffers["forcing"],
        }

    def train_and_score(config: Config, forcing):
        model = generalized_teacher_forcing(config)
        start_key, fit_key = jax.random.split(jax.random.clone(keys["run"]))
        state = model.init(start_key, train.shape[1])  # the same start for all
        state.buffers["forcing"] = forcing
        state, rows = optimise.repeat(
            model.step, state, fit_key, train, config.num_updates
        )
        return score(model, state, rows)

    metrics = train_and_score(config, jnp.float32(config.forcing))
    fixed = dataclasses.replace(config, adapt_every=0)
    others = jax.vmap(lambda forcing: train_and_score(fixed, forcing))(jnp.eye(2)[0])
    for i, name in enumerate(("teacher", "free")):
        metrics |= {
            f"{k}/{name}": others[k][i]
            for k in ("divergence", "grad_norm", "error", "lyapunov")
        }
    truth = chaos.flow(chaos.lorenz63_rate, _DT)
    exponent = attractor.lyapunov_exponents(
        truth, mean + std * test[0], len(test), dt=_DT, num=1
    )
    return metrics | {"lyapunov/truth": exponent[0]}


def _size(cell: Params) -> Float[Array, ""]:
    """`|1 - A|² + |W1|² + |W2|² + |h1|² + |h2|²`: zero at the identity map."""
    cell = {**cell, "A": 1 - cell["A"]}
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(cell))
