"""NCLaw: learn a material's law from how it moves, inside a differentiable simulator.

Momentum balance is known, the material is not. Two small networks take the places of
stress and plasticity in the material point method and are trained through it, from one
recorded trajectory. They see rotation invariants of the deformation gradient F = R S
only and have no biases, so that turning with the body and being free of stress at rest
are built in, and the law carries over to other shapes and motions.

    z = (s - 1, vec(F'F - 1), J - 1)            s singular values, J = det F
    elasticity   τ = R sym(MLP(z)) F'           plasticity   F <- F + α R MLP(z)

Source: Ma et al., "Learning Neural Constitutive Laws From Motion Observations for
Generalizable PDE Dynamics", ICML 2023.
Departs: stress is in units of `stress_scale`, with a learning rate to match; the paper
has 1 Pa and a rate of 1. Windows start from the recording, so they run side by side.
Shapes: T steps, N particles, d dimensions, W steps of a window.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm import physics
from jaxwm.core import checks, optimise
from jaxwm.physics import mpm
from jaxwm.types import Metrics, ModelState, Params, Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: jelly in the plane, minutes on one core."""

    dim: int = 2  # d
    side: int = 10  # particles along an edge of the block
    cells: int = 16  # of the grid, per axis
    dt: float = 1e-3  # s
    steps: int = 200  # T
    E: float = 1e5  # Pa, of the recorded jelly
    nu: float = 0.2
    widths: tuple[int, ...] = (32, 32)
    invariant: bool = True  # False: the plain network that is compared with
    stress_scale: float = 1e5  # Pa
    alpha: float = 1e-4  # size of plastic corrections; 1e-3 drifts in 100 epochs
    epochs: int = 100
    elasticity_lr: float = 1e-2
    plasticity_lr: float = 1e-2
    clip: float = 0.1  # of either network's gradient
    first_window: int = 10  # steps between two returns to the recording, at first
    window: int = 50  # W, and in the end

    def __post_init__(self):
        checks.finite(self)
        if self.dim not in (2, 3):
            raise ValueError(f"dim must be 2 or 3, got {self.dim}.")
        if self.steps % self.window:
            raise ValueError(
                f"window must divide steps = {self.steps}, got {self.window}; "
                "shorten the recording or the window."
            )
        if not 1 <= self.first_window <= self.window:
            raise ValueError(
                f"first_window must be in [1, window = {self.window}], got "
                f"{self.first_window}."
            )
        checks.positive(self, "epochs", "stress_scale", "clip")


PAPER = Config(
    dim=3,
    side=10,
    cells=20,
    dt=5e-4,
    steps=1000,
    widths=(64, 64),
    stress_scale=1.0,
    alpha=1e-3,
    epochs=300,
    elasticity_lr=1.0,
    plasticity_lr=0.1,
    first_window=25,
    window=200,
)
TINY = Config(
    side=4, cells=12, steps=8, widths=(8,), epochs=2, first_window=2, window=4
)


def features(F: Float[Array, "d d"]) -> Float[Array, " Z"]:
    """Invariants of F under rotations of the body, all 0 at rest."""
    d = F.shape[0]
    stretch = mpm.decompose.svd(F)[1] - 1
    strain = F.T @ F - jnp.eye(d, dtype=F.dtype)
    volume = jnp.linalg.det(F) - 1
    return jnp.concatenate([stretch, strain.reshape(-1), volume[None]])


class Network(nn.Module):
    """R and X of one particle; dense layers without biases, so that 0 goes to 0.

    The plain network sees F - 1 instead of invariants, and R is 1.
    """

    widths: tuple[int, ...]
    invariant: bool

    @nn.compact
    def __call__(
        self, F: Float[Array, "d d"]
    ) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
        one = jnp.eye(F.shape[0], dtype=F.dtype)
        z = features(F) if self.invariant else (F - one).reshape(-1)
        xavier = nn.initializers.xavier_uniform()
        for width in self.widths:
            z = nn.gelu(nn.Dense(width, use_bias=False, kernel_init=xavier)(z))
        X = nn.Dense(F.size, use_bias=False, kernel_init=xavier)(z).reshape(F.shape)
        return mpm.decompose.rotation(F) if self.invariant else one, X


class NeuralElasticity(nn.Module):
    """Kirchhoff stress of one particle, in units of the scale: `R sym(X) F'`."""

    widths: tuple[int, ...] = (64, 64)
    invariant: bool = True

    @nn.compact
    def __call__(self, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        R, X = Network(self.widths, self.invariant)(F)
        X = 0.5 * (X + X.T) if self.invariant else X
        return R @ X @ F.T


class NeuralPlasticity(nn.Module):
    """What of a trial deformation is kept: `F + α R X`."""

    alpha: float = 1e-3
    widths: tuple[int, ...] = (64, 64)
    invariant: bool = True

    @nn.compact
    def __call__(self, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        R, X = Network(self.widths, self.invariant)(F)
        return F + self.alpha * R @ X


class Laws(NamedTuple):
    """The two networks as laws that `mpm.mpm` takes."""

    elastic: mpm.Law
    plastic: mpm.Law


class Recording(NamedTuple):
    """A trajectory: where it starts, and all states it passes."""

    body: mpm.Body
    states: mpm.State  # [T + 1, N, ...]


def laws(config: Config) -> Laws:
    """Neural laws, their params still missing: those of `nclaw(config).init`."""
    elastic, plastic = _networks(config)

    def stress(params, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return config.stress_scale * elastic.apply(params, F)

    return Laws(
        mpm.Law("neural elasticity", None, stress),
        mpm.Law("neural plasticity", None, plastic.apply),
    )


def nclaw(config: Config) -> Predictor:
    """Builds the learner: `step` is an epoch over one `Recording`.

    `predict(params, F [d, d])` is the Kirchhoff stress, Pa; `record` simulates any body
    under `laws(config)` and the learnt params.
    """
    neural = laws(config)
    optimiser = optax.multi_transform(
        {
            name: optax.chain(
                optax.clip_by_global_norm(config.clip),
                optax.adam(optax.cosine_decay_schedule(rate, config.epochs)),
            )
            for name, rate in (
                ("elastic", config.elasticity_lr),
                ("plastic", config.plasticity_lr),
            )
        },
        {"elastic": "elastic", "plastic": "plastic"},
    )

    def init(key: Key[Array, ""]) -> ModelState:
        elastic_key, plastic_key = jax.random.split(key)
        elastic, plastic = _networks(config)
        params = {
            "elastic": elastic.init(elastic_key, jnp.eye(config.dim)),
            "plastic": plastic.init(plastic_key, jnp.eye(config.dim)),
        }
        return optimise.init_state(optimiser, params, {"epoch": jnp.int32(0)})

    def loss(params: Params, recording: Recording, every: Array) -> Float[Array, ""]:
        """Error of positions, each window returned to the truth every so many steps."""
        dynamics = _simulation(config, recording.body, neural)
        known = {**dynamics.params, **params}
        num, W = config.steps // config.window, config.window
        windows = lambda x: x.reshape(num, W, *x.shape[1:])
        before = jax.tree.map(lambda x: windows(x[:-1]), recording.states)
        after = windows(recording.states.x[1:])

        def window(before, after):
            def teacher_step(state, rows):
                t, truth, target = rows
                state = jax.tree.map(
                    lambda a, b: jnp.where(t % every == 0, a, b), truth, state
                )
                state = dynamics.step(known, state, jnp.zeros(0))
                return state, jnp.mean((state.x - target) ** 2)

            start = jax.tree.map(lambda x: x[0], before)
            rows = (jnp.arange(W), before, after)
            return jnp.sum(jax.lax.scan(jax.checkpoint(teacher_step), start, rows)[1])

        return 1e4 / every * jnp.sum(jax.vmap(window)(before, after))

    def step(
        key, state: ModelState, recording: Recording
    ) -> tuple[ModelState, Metrics]:
        del key  # the recording is taken whole
        epoch = state.buffers["epoch"]
        grown = 0.5 - 0.5 * jnp.cos(jnp.pi * epoch / config.epochs)
        room = config.window - config.first_window
        every = config.first_window + jnp.round(grown * room).astype(int)
        state, metrics = optimise.gradient_step(
            loss, optimiser, state, recording, every
        )
        return state._replace(buffers={"epoch": epoch + 1}), metrics

    def predict(params: Params, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return neural.elastic.apply(params["elastic"], F)

    return Predictor(init, step, predict)


def record(config: Config, body: mpm.Body, known: Laws, params: Params) -> Recording:
    """Simulates T steps of a body under given laws."""
    dynamics = _simulation(config, body, known)
    all_params = {**dynamics.params, **params}
    start = dynamics.init(None, all_params)
    _, path = physics.rollout(dynamics, all_params, start, jnp.zeros((config.steps, 0)))
    join = lambda first, rest: jnp.concatenate([first[None], rest])
    return Recording(body, jax.tree.map(join, start, path.state))


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Learns jelly from one trajectory; predicts another motion and another shape.

    Returns:
        `error/velocity` and `error/shape`: mean squared error of positions at the end,
        m², of the learnt law; `..._plain` of a network on F - 1, trained alike;
        `..._wrong` of the true law with a third of its stiffness. A simulation that
        blew up counts as an error of 1. `loss`, `loss_plain`: of the last epoch.
        `stress/turned`: change of τ by turning the body, relative to its size.
    """
    fit_key, test_key, shape_key, turn_key = jax.random.split(key, 4)
    block = _block(config)
    true = Laws(
        mpm.elasticity.corotated(config.E, config.nu), mpm.plasticity.identity()
    )
    exact = {"elastic": {"E": config.E, "nu": config.nu}, "plastic": {}}
    soft = {"elastic": {"E": config.E / 3, "nu": config.nu}, "plastic": {}}
    down = jnp.array([1.0, -1.5, -2.0])[: config.dim]
    spin = 4.0 if config.dim == 2 else jnp.full(3, 4.0)
    recording = record(config, mpm.moving(block, down, spin), true, exact)

    learnt = {}
    for name, invariant in (("", True), ("_plain", False)):
        init_key, loop_key = jax.random.split(jax.random.fold_in(fit_key, invariant))
        own = dataclasses.replace(config, invariant=invariant)
        model = nclaw(own)
        state, metrics = optimise.repeat(
            model.step, model.init(init_key), loop_key, recording, config.epochs
        )
        learnt[name] = (laws(own), state.params, metrics["loss"][-1])

    found = {f"loss{name}": fitted[2] for name, fitted in learnt.items()}
    bodies = {
        "velocity": _thrown(test_key, block),
        "shape": _thrown(shape_key, _ball(config)),
    }
    for what, body in bodies.items():
        truth = record(config, body, true, exact).states.x[-1]
        trials = {name: fitted[:2] for name, fitted in learnt.items()}
        trials["_wrong"] = (true, soft)
        for name, (known, params) in trials.items():
            end = record(config, body, known, params).states.x[-1]
            error = jnp.mean((end - truth) ** 2)
            found[f"error/{what}{name}"] = jnp.where(jnp.isfinite(error), error, 1.0)

    F = jnp.eye(config.dim) + 0.1 * jax.random.normal(turn_key, (config.dim,) * 2)
    Q = mpm.decompose.rotation(F[::-1])
    stress = lambda F: nclaw(config).predict(learnt[""][1], F)
    away = jnp.linalg.norm(stress(Q @ F) - Q @ stress(F) @ Q.T)
    return found | {"stress/turned": away / jnp.linalg.norm(stress(F))}


def _networks(config: Config) -> tuple[NeuralElasticity, NeuralPlasticity]:
    return (
        NeuralElasticity(config.widths, config.invariant),
        NeuralPlasticity(config.alpha, config.widths, config.invariant),
    )


def _simulation(config: Config, body: mpm.Body, known: Laws) -> physics.Dynamics:
    return mpm.mpm(body, known.elastic, known.plastic, cells=config.cells, dt=config.dt)


def _block(config: Config) -> mpm.Body:
    d = config.dim
    return mpm.block((0.5,) * d, (0.5,) * d, (config.side,) * d)


def _ball(config: Config) -> mpm.Body:
    return mpm.ball((0.5,) * config.dim, 0.25, 0.5 / config.side)


def _thrown(key: Key[Array, ""], body: mpm.Body) -> mpm.Body:
    """Any direction at up to 2 m/s per axis, any spin up to 6 rad/s."""
    speed_key, spin_key = jax.random.split(key)
    d = body.x.shape[1]
    speed = jax.random.uniform(speed_key, (d,), minval=-2.0, maxval=2.0)
    spin = jax.random.uniform(spin_key, () if d == 2 else (3,), minval=-6, maxval=6)
    return mpm.moving(body, speed, spin)
