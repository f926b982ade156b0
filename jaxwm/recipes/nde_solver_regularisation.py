"""Neural ODEs that are cheap to solve: the solver's own error, added to the loss.

    loss = task + λ_E(t) R_E + λ_S R_S,   R_E = Σ_j h_j E_j,   R_S = Σ_j S_j

E_j is the error of step j in units of the tolerance and S_j its stiffness, which an
adaptive solver computes anyway (`physics.step_error`). Where many flows solve the task,
the penalty picks one that needs few steps. λ falls exponentially over training.

Source: Pal et al., "Opening the Blackbox: Accelerating Neural Differential Equations by
Regularizing Internal Solver Heuristics", ICML 2021. Baselines on the same network:
higher derivatives (Kelly et al., 2020), kinetic energy and Jacobian (Finlay et al.,
2020), random end time (Ghosh et al., 2020). Departs: the task is two noisy rings, and
every batch is solved as one system.
Shapes: B points, D state (2 inputs and zeros beside them).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxwm.core import checks, optimise
from jaxwm.nn import MLP
from jaxwm.physics import step_error
from jaxwm.types import Metrics, ModelState, Predictor

# What may be added to the loss, and a weight that suits the rings.
REGULARISERS = {
    "none": 0.0,
    "error": 0.1,  # R_E
    "error_sq": 0.1,  # Σ E_j²
    "stiffness": 0.01,  # R_S
    "taylor": 0.01,  # ∫ |d³y/dt³|² dt
    "kinetic": 0.1,  # ∫ |f|² + |ε^T ∂f/∂y|² dt
    "random_end": 0.0,  # t_1 ~ U(1 - b, 1 + b)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A minute on one core for the experiment's three runs."""

    regulariser: str = "error"
    weight: float = 0.1  # λ at the start
    final_weight: float = 0.1  # λ at the end
    end_spread: float = 0.5  # b of "random_end"
    width: int = 32
    size: int = 4  # D
    tolerance: float = 1e-5
    max_steps: int = 48
    learning_rate: float = 1e-2
    steps: int = 400
    batch: int = 128

    def __post_init__(self):
        checks.finite(self)
        if self.regulariser not in REGULARISERS:
            raise ValueError(
                f"regulariser must be one of {', '.join(REGULARISERS)}, got "
                f"{self.regulariser!r}."
            )
        if self.weight < 0 or self.final_weight < 0:
            raise ValueError(
                "weight and final_weight must be at least 0, got "
                f"{self.weight} and {self.final_weight}."
            )
        if not 0 <= self.end_spread < 1:
            raise ValueError(f"end_spread must be in [0, 1), got {self.end_spread}.")
        if self.size < 2:
            raise ValueError(
                f"size must be at least 2, the inputs' dimensions, got {self.size}."
            )


# The digits of the paper's successor; `two_rings` gives way to the images.
PAPER = Config(
    weight=2.5,
    final_weight=1.0,
    width=100,
    size=784,
    tolerance=1.4e-8,
    max_steps=512,
    learning_rate=1e-3,
    steps=7500,
    batch=512,
)
TINY = Config(width=4, steps=2, batch=8, tolerance=1e-2, max_steps=16)


def exp_decay(first: float, last: float, total: int) -> optax.Schedule:
    """`first (last / first)^(i / total)`; constant 0 where both are 0.

    Raises:
        ValueError: if one of the two weights is 0 and the other is not, or negative.
    """
    if first == last:
        return optax.constant_schedule(first)
    if first <= 0 or last <= 0:
        raise ValueError(
            f"weights must be positive to decay exponentially, got {first} to {last}."
        )
    return lambda i: first * (last / first) ** (jnp.minimum(i, total) / total)


def nde_solver_regularisation(config: Config) -> Predictor:
    """A classifier whose features flow along a learnt field for unit time.

    `init(key) -> ModelState`, whose buffers count the updates;
    `step(key, state, (x [B, 2], label [B])) -> (state, metrics)`;
    `predict(params, x [B, 2]) -> (logits [B, 2], Heuristics)`, one solve for the batch.
    """
    network = MLP((config.width, config.size), activation="tanh")
    optimiser = optax.adam(config.learning_rate)
    decay = exp_decay(config.weight, config.final_weight, config.steps)
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

    def augmented(x: Float[Array, "B I"]) -> Float[Array, "B D"]:
        return jnp.pad(x, ((0, 0), (0, config.size - x.shape[1])))

    def predict(params, x: Float[Array, "B I"], end: float | Array = 1.0):
        y1, heuristics = step_error.ode_with_heuristics(
            field, params, augmented(x), 0.0, end, **options
        )
        return y1 @ params["out"], heuristics

    def penalised(key, params, x):
        """Logits and the penalty of the regulariser chosen."""
        kind = config.regulariser
        if kind in ("taylor", "kinetic"):
            rate = _integrand(kind, field, jax.random.normal(key, augmented(x).shape))
            both = lambda t, y, params: (
                field(t, y[0], params),
                rate(t, y[0], params),
            )
            start = (augmented(x), jnp.zeros(()))
            (y1, total), heuristics = step_error.ode_with_heuristics(
                both, params, start, 0.0, 1.0, **options
            )
            return y1 @ params["out"], total, heuristics
        spread = config.end_spread if kind == "random_end" else 0.0
        end = 1 + spread * jax.random.uniform(key, minval=-1.0, maxval=1.0)
        logits, heuristics = predict(params, x, end)
        penalty = {
            "error": heuristics.error_sum,
            "error_sq": heuristics.error_sq_sum,
            "stiffness": heuristics.stiffness_sum,
        }.get(kind, 0.0)
        return logits, penalty, heuristics

    def step(key, state: ModelState, data):
        x, label = data

        def loss(params):
            logits, penalty, heuristics = penalised(key, params, x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            task = jnp.mean(losses)
            weight = 0.0 if config.regulariser == "none" else decay(state.buffers)
            metrics = {"task": task, "steps": heuristics.num_accepted}
            return task + weight * penalty, (state.buffers + 1, metrics)

        return optimise.gradient_step(loss, optimiser, state, has_aux=True)

    return Predictor(init, step, predict)


def _integrand(kind: str, field, probe: Float[Array, "B D"]):
    """What the two older regularisers integrate along the flow, per example."""

    def taylor(t, y, params):
        # d/dt along the flow, twice: y' = f, y'' = f_t + f_y f, y''' likewise.
        rate = lambda t, y: field(t, y, params)
        along = lambda g: (
            lambda t, y: jax.jvp(g, (t, y), (jnp.ones_like(t), rate(t, y)))[1]
        )
        return jnp.mean(jnp.sum(along(along(rate))(t, y) ** 2, -1))

    def kinetic(t, y, params):
        rate, pull = jax.vjp(lambda y: field(t, y, params), y)
        return jnp.mean(jnp.sum(rate**2 + pull(probe)[0] ** 2, -1))

    return {"taylor": taylor, "kinetic": kinetic}[kind]


def two_rings(
    key: Key[Array, ""], num: int
) -> tuple[Float[Array, "B 2"], Int[Array, " B"]]:
    """Noisy rings of radius 0.7 and 1.5, not separable by a line."""
    label_key, angle_key, noise_key = jax.random.split(key, 3)
    label = jax.random.bernoulli(label_key, 0.5, (num,)).astype(jnp.int32)
    angle = jax.random.uniform(angle_key, (num,), maxval=2 * jnp.pi)
    radius = jnp.where(label == 1, 1.5, 0.7)
    x = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    return x + 0.12 * jax.random.normal(noise_key, x.shape), label


def train(key: Key[Array, ""], config: Config) -> tuple[ModelState, Metrics]:
    """Trains on fresh batches; metrics per update."""
    init_key, loop_key = jax.random.split(key)
    model = nde_solver_regularisation(config)

    def step(key, state, _):
        data_key, step_key = jax.random.split(key)
        return model.step(step_key, state, two_rings(data_key, config.batch))

    return optimise.repeat(step, model.init(init_key), loop_key, None, config.steps)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Solver steps and accuracy on fresh points, without and with the penalties.

    Returns:
        `steps/...`, `evaluations/...`, `error_sum/...` (of one solve of 1024 points)
        and `accuracy/...`, for "none", "error" and "stiffness".
    """
    train_key, test_key = jax.random.split(key)
    x, label = two_rings(test_key, 1024)
    metrics = {}
    for name in ("none", "error", "stiffness"):
        weight = config.weight if name == "error" else REGULARISERS[name]
        final = config.final_weight if name == "error" else weight
        own = dataclasses.replace(
            config, regulariser=name, weight=weight, final_weight=final
        )
        # The same start and the same batches for all.
        state, _ = train(jax.random.clone(train_key), own)
        logits, found = nde_solver_regularisation(own).predict(state.params, x)
        metrics |= {
            f"steps/{name}": found.num_accepted.astype(jnp.float32),
            f"evaluations/{name}": found.num_evaluations.astype(jnp.float32),
            f"error_sum/{name}": found.error_sum,
            f"accuracy/{name}": jnp.mean((jnp.argmax(logits, -1) == label) * 1.0),
        }
    return metrics
