"""Lazy-to-rich grokking: generalisation delayed by an output scale, no weight decay.

A two-layer network fits a quadratic target by gradient descent. With a large output
scale it first regresses with the kernel it was born with, which is misaligned with the
target: the training error vanishes and the test error does not. Features move slowly,
the tangent kernel turns towards the target, and the test error falls long after.

Source: Kumar et al., "Grokking as the Transition from Lazy to Rich Training Dynamics",
ICLR 2024; the closed-form test loss is a Gaussian moment computation.
Shapes: D inputs, P training points, N hidden units. Errors are mean squares divided by
the mean square of the targets.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm.core import checks, optimise
from jaxwm.measures import kernels
from jaxwm.types import Metrics, ModelState, Predictor

_SWEEP = (0.25, 1.0, 4.0, 16.0)  # output scales of the experiment, rich to lazy
_FITTED = 0.05  # training error below which the data count as fitted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: a minute on one core. `PAPER` is the published one."""

    num_inputs: int = 40  # D
    num_train: int = 160  # P; grokking needs D < P << D^2
    num_test: int = 500
    width: int = 200  # N
    alpha: float = 1.0  # output scale; large is lazy, small is rich
    eps: float = 0.25  # curvature of the units; small starts misaligned
    step_size: float = 0.5  # of gradient descent, times the width
    num_steps: int = 20_000
    record_every: int = 100  # steps between two points of the curve
    centred: bool = True  # whether the output at the start is subtracted
    linearised: bool = False  # train the first-order expansion: features stay

    def __post_init__(self):
        checks.finite(self)
        if self.alpha <= 0:
            raise ValueError(
                f"alpha must be positive, got {self.alpha}; small is rich, large lazy."
            )
        if self.eps < 0:
            raise ValueError(
                f"eps must be at least 0, got {self.eps}; 0 leaves linear units."
            )
        if self.num_test < 2:
            raise ValueError(
                f"num_test must be at least 2 points, got {self.num_test}; the "
                "alignment compares points."
            )
        if self.num_steps < self.record_every or self.record_every < 1:
            raise ValueError(
                f"record_every must be in 1 ... {self.num_steps}, the number of "
                f"steps, got {self.record_every}."
            )


PAPER = Config(num_inputs=100, num_train=550, num_test=1000, width=500, num_steps=60000)
TINY = Config(
    num_inputs=6, num_train=12, num_test=16, width=8, num_steps=20, record_every=5
)


class Task(NamedTuple):
    """Training and test points of `y = (beta . x)^2 / D`, x standard normal."""

    x: Float[Array, "P D"]
    y: Float[Array, " P"]
    x_test: Float[Array, "M D"]
    y_test: Float[Array, " M"]
    beta: Float[Array, " D"]


class Curve(NamedTuple):
    """Errors along training, one row every `record_every` steps (T rows)."""

    train: Float[Array, " T"]
    test: Float[Array, " T"]
    finite: Float[Array, " T"]  # 0 from the first diverged step on


class Statistics(NamedTuple):
    """What the test loss depends on, for standard normal inputs."""

    mean_weight: Float[Array, " D"]  # w_bar, the linear part
    overlap: Float[Array, ""]  # beta^T M beta / (D tr M), in [0, 1]
    mismatch: Float[Array, ""]  # |A|_F, the quadratic part left to learn
    test_loss: Float[Array, ""]  # E[(f - y)^2]


def lazy_to_rich_grokking(config: Config) -> Predictor:
    """Gradient descent on the quadratic network.

    `init(key) -> ModelState`, with the weights of the start as buffers;
    `step(key, state, Task) -> (state, metrics)`, one step on all training points;
    `predict(state, x [D]) -> []`.
    """
    optimiser = optax.sgd(config.step_size * config.width)

    def init(key: Key[Array, ""]) -> ModelState:
        w = jax.random.normal(key, (config.width, config.num_inputs))
        return optimise.init_state(optimiser, w, buffers=w)

    def loss(w, start, x, y):
        return (_model(config, start)(w, x) - y) ** 2 / config.alpha**2

    def step(key, state: ModelState, task: Task):
        del key  # all points at every step
        whole = jax.vmap(loss, (None, None, 0, 0))
        return optimise.gradient_step(
            lambda w, *data: jnp.mean(whole(w, *data)),
            optimiser,
            state,
            state.buffers,
            task.x,
            task.y,
        )

    def predict(state: ModelState, x: Float[Array, " D"]) -> Float[Array, ""]:
        return _model(config, state.buffers)(state.params, x)

    return Predictor(init, step, predict)


def network(
    w: Float[Array, "N D"], x: Float[Array, " D"], eps: float
) -> Float[Array, ""]:
    """`mean_i phi(h_i)`, `h = W x / sqrt(D)`, `phi(h) = h + eps/2 h^2`."""
    h = w @ x / jnp.sqrt(1.0 * x.shape[0])
    return jnp.mean(h + 0.5 * eps * h**2)


def polynomial_task(key: Key[Array, ""], config: Config = Config()) -> Task:
    """Draws the points and a direction beta of length sqrt(D)."""
    beta_key, train_key, test_key = jax.random.split(key, 3)
    size = config.num_inputs
    beta = jax.random.normal(beta_key, (size,))
    beta *= jnp.sqrt(size) / jnp.linalg.norm(beta)
    x = jax.random.normal(train_key, (config.num_train, size))
    x_test = jax.random.normal(test_key, (config.num_test, size))
    return Task(x, (x @ beta) ** 2 / size, x_test, (x_test @ beta) ** 2 / size, beta)


def quadratic_net_statistics(
    w: Float[Array, "N D"],
    beta: Float[Array, " D"],
    config: Config,
    start: Float[Array, "N D"] | None = None,
) -> Statistics:
    """Exact test loss for standard normal inputs.

        w_bar = mean_i W_i / sqrt(D),  M = W^T W / (N D)
        A = alpha eps/2 M - beta beta^T / D
        E[(f - y)^2] = alpha^2 |w_bar|^2 + 2 |A|_F^2 + (tr A)^2

    Args:
        w: weights.
        beta: the target's direction.
        config: gives alpha and eps.
        start: weights whose output is subtracted (the centred network): w_bar and M
            of the start are then subtracted in the loss. None: nothing is.
    """
    size = w.shape[1]

    def parts(w):
        return jnp.mean(w, 0) / jnp.sqrt(size), w.T @ w / w.size

    w_bar, m = parts(w)
    overlap = beta @ m @ beta / (size * jnp.trace(m))
    if start is not None:
        w_bar, m = jax.tree.map(jnp.subtract, (w_bar, m), parts(start))
    a = 0.5 * config.alpha * config.eps * m - jnp.outer(beta, beta) / size
    square = jnp.sum(a**2)
    loss = config.alpha**2 * jnp.sum(w_bar**2) + 2 * square + jnp.trace(a) ** 2
    return Statistics(w_bar, overlap, jnp.sqrt(square), loss)


def train_curve(
    key: Key[Array, ""], task: Task, config: Config
) -> tuple[ModelState, Curve]:
    """Trains from a random start; errors every `record_every` steps."""
    system = lazy_to_rich_grokking(config)
    init_key, fit_key = jax.random.split(key)

    def chunk(state, i):
        state, metrics = optimise.repeat(
            system.step,
            state,
            jax.random.fold_in(fit_key, i),
            task,
            config.record_every,
        )

        def error(x, y):
            f = jax.vmap(system.predict, (None, 0))(state, x)
            return jnp.mean((f - y) ** 2) / jnp.mean(y**2)

        train, test = error(task.x, task.y), error(task.x_test, task.y_test)
        return state, Curve(train, test, jnp.min(metrics["finite"]))

    rows = jnp.arange(config.num_steps // config.record_every)
    return jax.lax.scan(chunk, system.init(init_key), rows)


def tangent_kernel(
    w: Float[Array, "N D"], x: Float[Array, "M D"], config: Config
) -> Float[Array, "M M"]:
    """The tangent kernel of the unscaled network on points x."""
    return kernels.empirical_ntk(lambda w, x: network(w, x, config.eps), w, x, x)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Test error and alignment against the output scale; grokking; the lazy limit.

    `test/<alpha>` and `alignment/<alpha>` are of the end of training, on test points;
    `grok/...` follows one run at alpha 1 with eps 0.1, where the start is hardly
    aligned; `lazy/...` is the same run of the linearised network, `kernel/...` is
    ridgeless regression with the tangent kernel at the start. `at_fit` is the moment
    at which the training error of the `grok` run first lies below 0.05.
    """
    task_key, init_key, check_key = jax.random.split(key, 3)
    task = polynomial_task(task_key, config)
    metrics = {}
    for alpha in _SWEEP:
        scaled = dataclasses.replace(config, alpha=alpha)
        state, curve = train_curve(jax.random.clone(init_key), task, scaled)
        before = tangent_kernel(state.buffers, task.x_test, scaled)
        after = tangent_kernel(state.params, task.x_test, scaled)
        metrics |= {
            f"train/{alpha:g}": curve.train[-1],
            f"test/{alpha:g}": curve.test[-1],
            f"alignment/{alpha:g}": kernels.kernel_alignment(after, task.y_test),
            f"drift/{alpha:g}": kernels.kernel_drift(before, after),
            f"finite/{alpha:g}": jnp.min(curve.finite),
        }
        if alpha == 1:
            metrics |= _closed_form_check(check_key, state, task.beta, scaled)
            metrics["alignment/start"] = kernels.kernel_alignment(before, task.y_test)

    followed = dataclasses.replace(config, alpha=1.0, eps=0.1)
    _, grok = train_curve(jax.random.clone(init_key), task, followed)
    linear = dataclasses.replace(followed, linearised=True)
    born, lazy = train_curve(jax.random.clone(init_key), task, linear)
    fitted = grok.train < _FITTED
    fit = jnp.where(jnp.any(fitted), jnp.argmax(fitted), len(fitted) - 1)
    return metrics | {
        "grok/fit_step": (1.0 + fit) * config.record_every,
        "grok/train": grok.train[-1],
        "grok/test_at_fit": grok.test[fit],
        "grok/test_peak": jnp.max(grok.test),
        "grok/test": grok.test[-1],
        "lazy/train": lazy.train[-1],
        "lazy/test_at_fit": lazy.test[fit],
        "lazy/test": lazy.test[-1],
        "kernel/test": _kernel_regression(born.buffers, task, followed),
    }


def _model(config: Config, start):
    """The network trained: scaled, centred and linearised as configured."""

    def apply(w, x):
        return network(w, x, config.eps)

    if config.centred:
        model = kernels.centred_scaled(apply, start, config.alpha)
    else:
        model = lambda w, x: config.alpha * apply(w, x)
    return kernels.linearised(model, start) if config.linearised else model


def _kernel_regression(w, task: Task, config: Config) -> Float[Array, ""]:
    """Test error of ridgeless regression with the tangent kernel at w."""
    num = len(task.y)
    kernel = tangent_kernel(w, jnp.concatenate([task.x, task.x_test]), config)
    dual = kernels.kernel_ridge(kernel[:num, :num], task.y)
    error = kernel[num:, :num] @ dual - task.y_test
    return jnp.mean(error**2) / jnp.mean(task.y_test**2)


def _closed_form_check(key, state, beta, config: Config) -> Metrics:
    """The exact test loss beside a mean over 200 000 fresh points."""
    x = jax.random.normal(key, (200_000, beta.shape[0]))
    predict = lazy_to_rich_grokking(config).predict

    def errors(x):
        return (
            jax.vmap(predict, (None, 0))(state, x) - (x @ beta) ** 2 / len(beta)
        ) ** 2

    sampled = jnp.mean(jax.lax.map(errors, x.reshape(200, -1, x.shape[1])))
    start = state.buffers if config.centred else None
    exact = quadratic_net_statistics(state.params, beta, config, start).test_loss
    return {"closed_form/exact": exact, "closed_form/ratio": exact / sampled}
