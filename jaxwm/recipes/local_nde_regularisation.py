"""Neural ODEs that are cheap to solve, from one more solver step at a random time.

    loss = task + λ(t) R,   R = h E(t_1, y(t_1)),   t_1 ~ U(t_0, t_2)

Solver regularisation sums the error of every step and must look into the solver. Here
the main solve stays closed, with any adjoint: one fresh step of the same method starts
from its solution at a random time, and only its error (or stiffness) is added to the
loss. In evaluation that step does not exist.

Source: Pal et al., "Locally Regularized Neural Differential Equations: Some Black Boxes
Were Meant to Remain Closed!", ICML 2023. Departs: the task is two noisy rings, every
batch is solved as one system, and the extra step has the mean length of the solve's own
("mean"). The paper's is the solver's first guess ("initial"), chosen so that E is about
a hundredth: its penalty is some hundred times smaller and wants that much more weight.
Shapes: B points, D state (2 inputs and zeros beside them), T times.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxwm.core import checks, loop, optimise
from jaxwm.nn import MLP
from jaxwm.physics import ode, step_error
from jaxwm.types import Metrics, ModelState, Params, Predictor, PyTree

_ORDER = 5  # of Tsit5, for the length of the extra step


def _check(sampling: str, kind: str, length: str = "mean"):
    if sampling not in ("unbiased", "biased"):
        raise ValueError(f'sampling must be "unbiased" or "biased", got {sampling!r}.')
    if kind not in ("error", "stiffness"):
        raise ValueError(f'kind must be "error" or "stiffness", got {kind!r}.')
    if length not in ("mean", "initial"):
        raise ValueError(f'length must be "mean" or "initial", got {length!r}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A minute on one core for the experiment's three runs."""

    sampling: str = "unbiased"  # "biased" draws among the solver's own times
    kind: str = "error"  # or "stiffness"
    length: str = "mean"  # of the extra step; "initial": the solver's first guess
    weight: float = 1.0  # λ at the start
    final_weight: float = 1.0  # λ at the end, reached exponentially
    num_samples: int = 1  # extra steps per solve, averaged
    global_weight: float = 0.1  # of the summed errors, which the experiment compares to
    width: int = 32
    size: int = 4  # D
    tolerance: float = 1e-5
    max_steps: int = 48
    learning_rate: float = 1e-2
    steps: int = 400
    batch: int = 128

    def __post_init__(self):
        checks.finite(self)
        _check(self.sampling, self.kind, self.length)
        if self.weight < 0 or self.final_weight < 0 or self.global_weight < 0:
            raise ValueError(
                "weight, final_weight and global_weight must be at least 0, got "
                f"{self.weight}, {self.final_weight} and {self.global_weight}."
            )
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}.")


# The digits of the paper.
PAPER = Config(
    length="initial",
    weight=2.5,
    width=100,
    size=784,
    tolerance=1.4e-8,
    max_steps=10_000,
    learning_rate=1e-3,
    steps=7500,
    batch=512,
)
TINY = Config(width=4, steps=2, batch=8, tolerance=1e-2, max_steps=16)


def local_error(
    vf: ode.VectorField,
    params: Params,
    y: PyTree,
    t: float | Float[Array, ""],
    h: float | Float[Array, ""],
    *,
    solver: str = "tsit5",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    kind: str = "error",
) -> Float[Array, ""]:
    """`h E` or S of one step of length `h` from `(t, y)`.

    Gradients flow to `params` and `y`; `t` and `h` are constants.
    """
    _check("unbiased", kind)
    found = step_error.step_error(
        vf, params, y, t, h, solver=solver, rtol=rtol, atol=atol
    )
    if kind == "stiffness":
        return found.stiffness
    return jax.lax.stop_gradient(h) * found.error


def odeint_locreg(
    vf: ode.VectorField,
    params: Params,
    y0: PyTree,
    ts: Float[Array, " T"],
    key: Key[Array, ""] | None = None,
    *,
    train: bool,
    sampling: str = "unbiased",
    kind: str = "error",
    length: str = "mean",
    num_samples: int = 1,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    adjoint: str = "checkpoint",
    max_steps: int = 4096,
) -> tuple[PyTree, Float[Array, ""], ode.Stats]:
    """Solves as `ode.odeint`, and in training estimates the mean local error.

    Args:
        vf: `(t, y, params) -> dy/dt`.
        params: gradients flow, through the solve and through the extra step.
        y0: state at `ts[0]`.
        ts: times at which the state is wanted; the last one ends the solve.
        key: of the random time; only for training.
        train: without it there is no extra step, and the penalty is 0.
        sampling: "unbiased": uniform in time, an extra save point of the solve that its
            result does not show. "biased": one of the solver's own times, more of them
            where steps are small; it stores the steps, so the adjoint must be
            "checkpoint".
        kind: "error" (times the step's length) or "stiffness".
        length: of the extra step, a constant: "mean", the solve's time over its
            accepted steps, or "initial", the solver's first guess at that state.
        num_samples: extra steps, averaged.
        rtol: relative tolerance, of the solve and of the scaled error.
        atol: absolute tolerance.
        adjoint: of the main solve.
        max_steps: of the main solve.

    Returns:
        States `[T, ...]`, the penalty, and the main solve's cost.

    Raises:
        ValueError: for training without a key, "biased" with another adjoint, and
            unknown names.
    """
    _check(sampling, kind, length)
    options = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    if not train:
        ys, stats = ode.odeint(vf, params, y0, ts, adjoint=adjoint, **options)
        return ys, jnp.zeros(()), stats
    if key is None:
        raise ValueError("key must be given in training, got None; train=False skips.")
    ts = jnp.asarray(ts)
    if sampling == "biased":
        if adjoint != "checkpoint":
            raise ValueError(
                'sampling="biased" stores the steps and needs adjoint="checkpoint", '
                f'got {adjoint!r}; sampling="unbiased" takes any.'
            )
        ys, steps, stats = ode.odeint_steps(vf, params, y0, ts, **options)
        # Step j begins at an accepted time; the last time begins none.
        rows = jax.random.randint(key, (num_samples,), 0, stats.num_accepted)
        t1, y1 = jax.tree.map(lambda x: x[rows], (steps.t, steps.y))
    else:
        t1 = jax.random.uniform(
            key, (num_samples,), ts.dtype, minval=ts[0], maxval=ts[-1]
        )
        # Sorting changes the order of rows: each is found again by its rank.
        order = jnp.argsort(jnp.concatenate([ts, t1]), stable=True)
        rank = jnp.argsort(order)
        merged = jnp.concatenate([ts, t1])[order]
        all_ys, stats = ode.odeint(vf, params, y0, merged, adjoint=adjoint, **options)
        take = lambda rows: jax.tree.map(lambda y: y[rows], all_ys)
        ys, y1 = take(rank[: ts.shape[0]]), take(rank[ts.shape[0] :])

    def one(t, y):
        h = (ts[-1] - ts[0]) / jnp.maximum(stats.num_accepted, 1)
        if length == "initial":
            h = ode.starting_step(vf, params, t, y, _ORDER, rtol=rtol, atol=atol)
        h = jnp.minimum(h, ts[-1] - t)  # never beyond what the field was made for
        return local_error(vf, params, y, t, h, rtol=rtol, atol=atol, kind=kind)

    return ys, jnp.mean(jax.vmap(one)(t1, y1)), stats


def local_nde_regularisation(config: Config, method: str = "local") -> Predictor:
    """A classifier whose features flow along a learnt field for unit time.

    Args:
        config: its settings.
        method: "local"; the experiment also trains "none", and "global": the summed
            errors of all steps.

    `init(key) -> ModelState`, whose buffers count the updates;
    `step(key, state, (x [B, 2], label [B])) -> (state, metrics)`;
    `predict(params, x [B, 2]) -> (logits [B, 2], Stats)`, one solve for the batch.
    """
    if method not in ("local", "none", "global"):
        raise ValueError(f'method must be "local", "none" or "global", got {method!r}.')
    network = MLP((config.width, config.size), activation="tanh")
    optimiser = optax.adam(config.learning_rate)
    ratio = config.final_weight / config.weight if config.weight else 1.0
    options = {
        "rtol": config.tolerance,
        "atol": config.tolerance,
        "max_steps": config.max_steps,
    }

    def field(t, y: Float[Array, "B D"], params) -> Float[Array, "B D"]:
        time = jnp.broadcast_to(t, (*y.shape[:-1], 1))
        return network.apply(params["field"], jnp.concatenate([y, time], -1))

    def init(key: Key[Array, ""]) -> ModelState:
        field_key, out_key = jax.random.split(key)
        params = {
            "field": network.init(field_key, jnp.zeros(config.size + 1)),
            "out": jax.random.normal(out_key, (config.size, 2)) / config.size,
        }
        return optimise.init_state(optimiser, params, jnp.int32(0))

    def flow(params, x: Float[Array, "B I"], key, train: bool):
        y0 = jnp.pad(x, ((0, 0), (0, config.size - x.shape[1])))
        if train and method == "global":
            y1, sums = step_error.ode_with_heuristics(
                field, params, y0, 0.0, 1.0, **options
            )
            return y1 @ params["out"], sums.error_sum, None
        ys, penalty, stats = odeint_locreg(
            field,
            params,
            y0,
            jnp.array([0.0, 1.0]),
            key,
            train=train and method == "local",
            sampling=config.sampling,
            kind=config.kind,
            length=config.length,
            num_samples=config.num_samples,
            **options,
        )
        return ys[-1] @ params["out"], penalty, stats

    def predict(params, x: Float[Array, "B I"]):
        logits, _, stats = flow(params, x, None, False)
        return logits, stats

    def step(key, state: ModelState, data):
        x, label = data
        share = jnp.minimum(state.buffers, config.steps) / config.steps
        weight = config.weight * ratio**share
        if method != "local":
            weight = config.global_weight if method == "global" else 0.0

        def loss(params):
            logits, penalty, _ = flow(params, x, key, True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            task = jnp.mean(losses)
            metrics = {"task": task, "penalty": penalty}
            return task + weight * penalty, (state.buffers + 1, metrics)

        return optimise.gradient_step(loss, optimiser, state, has_aux=True)

    return Predictor(init, step, predict)


def two_rings(
    key: Key[Array, ""], num: int
) -> tuple[Float[Array, "B 2"], Int[Array, " B"]]:
    """Noisy rings of radius 0.7 and 1.5, not separable by a line."""
    keys = loop.fold_in_each(key, 3)
    label = jax.random.bernoulli(keys[0], 0.5, (num,)).astype(jnp.int32)
    angle = jax.random.uniform(keys[1], (num,), maxval=2 * jnp.pi)
    radius = jnp.where(label == 1, 1.5, 0.7)
    x = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    return x + 0.12 * jax.random.normal(keys[2], x.shape), label


def train(
    key: Key[Array, ""], config: Config, method: str = "local"
) -> tuple[ModelState, Metrics]:
    """Trains on fresh batches; metrics per update."""
    init_key, loop_key = jax.random.split(key)
    model = local_nde_regularisation(config, method)

    def step(key, state, _):
        data_key, step_key = jax.random.split(key)
        return model.step(step_key, state, two_rings(data_key, config.batch))

    return optimise.repeat(step, model.init(init_key), loop_key, None, config.steps)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Solver steps and accuracy on fresh points: local, global, and no penalty.

    Returns:
        `steps/...`, `evaluations/...` of one solve of 1024 points and `accuracy/...`,
        for "none", "local" and "global".
    """
    train_key, test_key = jax.random.split(key)
    x, label = two_rings(test_key, 1024)
    metrics = {}
    for method in ("none", "local", "global"):
        # The same start and the same batches for all.
        state, _ = train(jax.random.clone(train_key), config, method)
        model = local_nde_regularisation(config, method)
        logits, stats = model.predict(state.params, x)
        metrics |= {
            f"steps/{method}": stats.num_accepted.astype(jnp.float32),
            f"evaluations/{method}": stats.num_evaluations.astype(jnp.float32),
            f"accuracy/{method}": jnp.mean((jnp.argmax(logits, -1) == label) * 1.0),
        }
    return metrics
