"""Self-Tuning Networks: hyperparameters tuned online through a best-response network.

The bilevel problem `min_λ L_V(w*(λ))`, `w*(λ) = argmin_w L_T(w, λ)` in one run: a
network carries how its weights answer to λ. Training steps fit the answer around the
current λ, perturbed per example; validation steps move λ through it. Nothing
differentiates the training loss by λ, so dropout rates, noise levels and floored counts
can be tuned.

Source: MacKay et al., "Self-Tuning Networks: Bilevel Optimization of Hyperparameters
using Structured Best-Response Functions", ICLR 2019, and its reference code; `centred`
is from Bae and Grosse, "Delta-STN", NeurIPS 2020.
Shapes: B batch, U hyperparameters, I inputs, N rows of a data set. u are unconstrained
hyperparameters, v their values, s the unconstrained widths of the perturbation.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen
from jaxtyping import Array, Float, Key

from jaxwm.core import checks, loop, optimise
from jaxwm.nn import hyper
from jaxwm.types import Metrics, Params, Predictor, PyTree

_STD_RANGE = (1e-3, 3.0)  # too narrow fits no response, too wide no local one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: a minute or two on one core."""

    batch: int = 100
    learning_rate: float = 0.03  # of the weights, SGD with momentum 0.9
    hyper_rate: float = 0.03  # of u, Adam
    scale_rate: float = 0.01  # of s, Adam
    train_steps: int = 2  # per cycle
    valid_steps: int = 1  # per cycle
    warm_up: int = 100  # cycles in which only the weights move
    decay_by: int | None = None  # cycle: all rates fall from half of it to zero there
    tau: float = 1e-3  # weight of the perturbation's entropy
    std: float = 0.5  # of the perturbation, at first
    centred: bool = True  # gates read u's perturbation from its mean, not u itself
    width: int = 64  # of the experiment's network, two hidden layers
    cycles: int = 1400  # of the experiment's network
    searches: int = 16  # runs of the random search it is compared with
    ridge_cycles: int = 6000  # of the experiment's regressions

    def __post_init__(self):
        checks.finite(self)
        names = ("batch", "train_steps", "valid_steps", "width", "searches", "decay_by")
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        low, high = _STD_RANGE
        if not low <= self.std <= high:
            raise ValueError(f"std must be in [{low}, {high}], got {self.std}.")


# CIFAR-10's, for a convolutional network with 15 hyperparameters; five epochs warm-up.
PAPER = Config(
    batch=128,
    learning_rate=0.01,
    hyper_rate=3e-3,
    scale_rate=3e-3,
    tau=1e-5,
    warm_up=782,
    centred=False,
)
TINY = Config(batch=20, width=8, warm_up=2, cycles=6, searches=2, ridge_cycles=20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperSpec:
    """A hyperparameter: its range, its first value, and whether it is a count."""

    name: str
    initial: float
    low: float = -math.inf
    high: float = math.inf
    discrete: bool = False  # floored

    def __post_init__(self):
        if math.isinf(self.low) and not math.isinf(self.high):
            raise ValueError(
                f"low of {self.name} must be finite where high is, got {self.low}; "
                "tune its negative."
            )
        if not self.low < self.initial < self.high:
            raise ValueError(
                f"initial of {self.name} must lie strictly between {self.low} and "
                f"{self.high}, got {self.initial}."
            )


def to_value(u: Float[Array, " U"], specs: Sequence[HyperSpec]) -> Float[Array, " U"]:
    """Values of unconstrained hyperparameters.

    `low + (high - low) sigmoid(u)`, `low + softplus(u)` without an upper end, u itself
    without ends. Counts are floored and carry no gradient: it belongs to the gates.
    """

    def one(u, spec):
        if math.isinf(spec.low):
            value = u
        elif math.isinf(spec.high):
            value = spec.low + jax.nn.softplus(u)
        else:
            value = spec.low + (spec.high - spec.low) * jax.nn.sigmoid(u)
        if spec.discrete:
            value = jax.lax.stop_gradient(jnp.floor(value))
        return value

    if u.shape != (len(specs),):
        raise ValueError(
            f"u must have shape ({len(specs)},), one entry per hyperparameter, got "
            f"{u.shape}; `jax.vmap` adds the batch."
        )
    return jnp.stack([one(u[i], spec) for i, spec in enumerate(specs)])


def from_value(specs: Sequence[HyperSpec]) -> Float[Array, " U"]:
    """Unconstrained hyperparameters whose values are the initial ones."""

    def one(spec):
        if math.isinf(spec.low):
            return spec.initial
        if math.isinf(spec.high):
            return _inverse_softplus(spec.initial - spec.low)
        share = (spec.initial - spec.low) / (spec.high - spec.low)
        return math.log(share / (1 - share))

    return jnp.array([one(spec) for spec in specs], jnp.float32)


def _inverse_softplus(x: float) -> float:
    return x + math.log(-math.expm1(-x))  # no overflow for large x


def perturbation_std(s: Float[Array, " U"]) -> Float[Array, " U"]:
    """`softplus(s)`, within [1e-3, 3].

    The gradient passes the ends: a width that rests on one can leave it again.
    """
    std = jax.nn.softplus(s)
    return std + jax.lax.stop_gradient(jnp.clip(std, *_STD_RANGE) - std)


def perturb_entropy(s: Float[Array, " U"]) -> Float[Array, ""]:
    """Entropy of the Gaussian perturbation in nats."""
    return jnp.sum(jnp.log(perturbation_std(s) * math.sqrt(2 * math.pi * math.e)))


def perturb(
    key: Key[Array, ""], u: Float[Array, " U"], s: Float[Array, " U"], batch: int
) -> Float[Array, "{batch} U"]:
    """One perturbed vector of hyperparameters per example."""
    noise = jax.random.normal(key, (batch, u.size))
    return u + perturbation_std(s) * noise


class StnState(NamedTuple):
    """Weights with their response, hyperparameters, and their optimisers."""

    params: Params
    u: Float[Array, " U"]
    s: Float[Array, " U"]
    opt_params: PyTree
    opt_hyper: PyTree
    cycle: Array  # [] int32


class Split(NamedTuple):
    """Rows to fit the response with, and others to tune by."""

    train_x: Float[Array, "N I"]
    train_y: Array
    valid_x: Float[Array, "M I"]
    valid_y: Array


def self_tuning_networks(
    config: Config,
    specs: Sequence[HyperSpec],
    init_params: Callable,
    train_loss: Callable,
    valid_loss: Callable,
) -> Predictor:
    """Builds the pure functions of a network that tunes itself.

    Args:
        config: rates and schedule.
        specs: the hyperparameters.
        init_params: `(key, gate [U]) -> params`.
        train_loss: `(key, params, gate, v, x, y) -> loss` of ONE example with
            regularisation v. `gate` is what response layers read.
        valid_loss: `(params, gate, x, y) -> loss` of one example, unregularised.

    Returns:
        `init(key) -> StnState`; `step(key, state, Split) -> (state, metrics)`, a cycle
        of training and validation steps; `predict(state, x, y)`: `valid_loss` at the
        mean hyperparameters.

    Raises:
        ValueError: without hyperparameters; for a `Split` without validation rows.
    """
    if not specs:
        raise ValueError(
            "specs must name at least one hyperparameter, got none; "
            "train without tuning by core.optimise."
        )
    num, names = len(specs), [spec.name for spec in specs]

    def rate(peak, per_cycle, first):
        """Of an optimiser that makes its steps from cycle `first` on."""
        if config.decay_by is None:
            return peak
        cycle = lambda count: first + count / per_cycle
        return lambda count: (
            peak * jnp.clip(2 - 2 * cycle(count) / config.decay_by, 0, 1)
        )

    hyper_rate = lambda peak: rate(peak, config.valid_steps, config.warm_up)
    optimiser = optax.sgd(rate(config.learning_rate, config.train_steps, 0), 0.9)
    hyper_optimiser = optax.multi_transform(
        {
            "u": optax.adam(hyper_rate(config.hyper_rate)),
            "s": optax.adam(hyper_rate(config.scale_rate)),
        },
        {"u": "u", "s": "s"},
    )
    centre = lambda u: jax.lax.stop_gradient(u) if config.centred else jnp.zeros(num)
    values = jax.vmap(lambda u: to_value(u, specs))

    def init(key: Key[Array, ""]) -> StnState:
        params = init_params(key, jnp.zeros(num))
        u, s = from_value(specs), jnp.full(num, _inverse_softplus(config.std))
        opt_hyper = hyper_optimiser.init({"u": u, "s": s})
        return StnState(
            params, u, s, optimiser.init(params), opt_hyper, jnp.zeros((), jnp.int32)
        )

    def train_step(key, state: StnState, data: Split):
        """Fits the weights and their response around u."""
        rows_key, noise_key, loss_key = jax.random.split(key, 3)
        x, y = _rows(rows_key, data.train_x, data.train_y, config.batch)
        u = perturb(noise_key, state.u, state.s, config.batch)
        gate, keys = u - centre(state.u), loop.fold_in_each(loss_key, config.batch)

        def loss(params):
            each = jax.vmap(train_loss, (0, None, 0, 0, 0, 0))
            return jnp.mean(each(keys, params, gate, values(u), x, y))

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_params = optimiser.update(grads, state.opt_params)
        params = optax.apply_updates(state.params, updates)
        state = state._replace(params=params, opt_params=opt_params)
        return state, {"train_loss": value}

    def valid_step(key, state: StnState, data: Split):
        """Moves u and s down the validation loss, through the gates alone."""
        rows_key, noise_key = jax.random.split(key)
        x, y = _rows(rows_key, data.valid_x, data.valid_y, config.batch)

        def loss(moved):
            gate = perturb(noise_key, moved["u"], moved["s"], config.batch)
            gate = gate - centre(state.u)
            each = jax.vmap(valid_loss, (None, 0, 0, 0))
            value = jnp.mean(each(state.params, gate, x, y))
            return value - config.tau * perturb_entropy(moved["s"]), value

        moved = {"u": state.u, "s": state.s}
        grads, value = jax.grad(loss, has_aux=True)(moved)
        updates, opt_hyper = hyper_optimiser.update(grads, state.opt_hyper)
        moved = jax.tree.map(jnp.add, moved, updates)
        moved["s"] = jnp.clip(moved["s"], *map(_inverse_softplus, _STD_RANGE))
        state = state._replace(u=moved["u"], s=moved["s"], opt_hyper=opt_hyper)
        return state, {"valid_loss": value, "slope": grads["u"]}

    def step(key: Key[Array, ""], state: StnState, data: Split):
        """T_train training steps, then T_valid validation steps after the warm-up."""
        if data.valid_x.shape[0] == 0 or data.train_x.shape[0] == 0:
            raise ValueError(
                "data must hold training and validation rows, got "
                f"{data.train_x.shape[0]} and {data.valid_x.shape[0]}; split them."
            )
        train_key, valid_key = jax.random.split(key)
        state, trained = optimise.repeat(
            train_step, state, train_key, data, config.train_steps
        )
        tuned, validated = optimise.repeat(
            valid_step, state, valid_key, data, config.valid_steps
        )
        is_tuning = state.cycle >= config.warm_up
        state = jax.tree.map(lambda a, b: jnp.where(is_tuning, a, b), tuned, state)
        # Means over the steps; "slope" [U] is that of the validation loss by u.
        metrics = jax.tree.map(lambda x: jnp.mean(x, 0), trained | validated)
        metrics |= dict(zip(names, to_value(state.u, specs), strict=True))
        return state._replace(cycle=state.cycle + 1), metrics

    def predict(state: StnState, x, y):
        gate = state.u - centre(state.u)
        return valid_loss(state.params, gate, x, y)

    return Predictor(init, step, predict)


def _rows(key, x, y, batch):
    index = jax.random.randint(key, (batch,), 0, x.shape[0])
    return x[index], y[index]


# --- regression with an L2 penalty, whose best response is known --------------


def exact_ridge_response(
    x: Float[Array, "N I"], y: Float[Array, " N"], penalty: Float[Array, ""]
) -> Float[Array, " I"]:
    """`argmin_w mean (y - x w)² + λ |w|² = (XᵀX + λ N)⁻¹ Xᵀ y`."""
    num, size = x.shape
    return jnp.linalg.solve(x.T @ x + penalty * num * jnp.eye(size), x.T @ y)


def ridge(config: Config, log_penalty: float, size: int) -> Predictor:
    """A linear self-tuning network whose one hyperparameter is log λ."""
    layer = hyper.ResponseDense(1, use_bias=False)

    def squared_error(params, gate, x, y):
        return (layer.apply(params, x, gate)[0] - y) ** 2

    def train_loss(key, params, gate, v, x, y):
        del key  # nothing is drawn
        weight = jax.vmap(lambda x: layer.apply(params, x, gate))(jnp.eye(size))
        penalty = jnp.exp(v[0])
        loss = squared_error(params, gate, x, y) + penalty * jnp.sum(weight**2)
        return loss / (1 + penalty)  # has the same minimum, and bounded curvature

    return self_tuning_networks(
        config,
        [HyperSpec(name="log_penalty", initial=log_penalty)],
        lambda key, gate: layer.init(key, jnp.zeros(size), gate),
        train_loss,
        squared_error,
    )


def _regression(key, config: Config) -> Metrics:
    """Hypergradients at fixed penalties, and tuning from far too small and large."""
    size, num_train, num_valid = 40, 60, 200
    weight_key, x_key, noise_key, run_key = jax.random.split(key, 4)
    weight = jax.random.normal(weight_key, (size,)) / size**0.5
    x = jax.random.normal(x_key, (num_train + num_valid, size))
    y = x @ weight + jax.random.normal(noise_key, x.shape[:1])
    data = Split(x[:num_train], y[:num_train], x[num_train:], y[num_train:])

    def exact(log_penalty):
        w = exact_ridge_response(data.train_x, data.train_y, jnp.exp(log_penalty))
        return jnp.mean((data.valid_x @ w - data.valid_y) ** 2)

    # The first penalties are so far off that a narrower perturbation sees no slope.
    config = dataclasses.replace(
        config, std=1.0, tau=1e-2, hyper_rate=0.01, decay_by=config.ridge_cycles
    )
    model = ridge(config, 0.0, size)
    init_key, step_key = jax.random.split(run_key)

    def run(log_penalty, cycle):
        state = model.init(init_key)._replace(u=log_penalty[None], cycle=cycle)
        state, rows = optimise.repeat(
            model.step, state, step_key, data, config.ridge_cycles
        )
        each = jax.vmap(model.predict, (None, 0, 0))
        return jnp.mean(each(state, data.valid_x, data.valid_y)), rows["slope"]

    # Five that never leave the warm-up, and two that tune.
    penalties = [math.log(10.0) * power for power in (-3, -2, -1, 0, 1)]
    starts = [math.log(1e-4), math.log(1e2)]
    cycles = [-config.ridge_cycles] * len(penalties) + [0, 0]
    valid, slopes = jax.vmap(run)(jnp.array(penalties + starts), jnp.array(cycles))
    slopes = jnp.mean(slopes[: len(penalties), -200:], (1, 2))
    exact_slopes = jax.vmap(jax.grad(exact))(jnp.array(penalties))
    grid = jax.vmap(exact)(jnp.linspace(math.log(1e-4), math.log(1e2), 41))
    return {
        "ridge/cosine": _cosine(slopes, exact_slopes),
        "ridge/slope_ratio": jnp.linalg.norm(slopes) / jnp.linalg.norm(exact_slopes),
        "ridge/valid_from_small": valid[-2],
        "ridge/valid_from_large": valid[-1],
        "ridge/valid_grid": jnp.min(grid),
        "ridge/valid_small": grid[0],
        "ridge/valid_large": grid[-1],
    }


def _cosine(a, b):
    return jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


# --- a classifier whose dropout rates and input noise tune themselves ---------


class Classifier(linen.Module):
    """Two hidden layers; dropout in front of every layer, noise on the input."""

    width: int
    num_classes: int

    @linen.compact
    def __call__(self, x, gate, regularised=None):
        """Logits; `regularised` is a key and v = (three rates, noise), or None."""
        if regularised is not None:
            key, v = regularised
            key, noise_key = jax.random.split(key)
            x = x + v[3] * jax.random.normal(noise_key, x.shape)
        for i, size in enumerate((self.width, self.width, self.num_classes)):
            x = x if i == 0 else jax.nn.relu(x)
            if regularised is not None:
                x = hyper.dropout(jax.random.fold_in(key, i), x, v[i])
            x = hyper.ResponseDense(size)(x, gate)
        return x


CLASSIFIER_SPECS = (
    *(
        HyperSpec(name=f"dropout{i}", initial=0.05, low=0.0, high=0.95)
        for i in range(3)
    ),
    HyperSpec(name="noise", initial=0.05, low=0.0),
)


def classifier(config: Config, num_inputs: int, num_classes: int) -> Predictor:
    """A self-tuning network for labelled vectors; losses are in nats."""
    network = Classifier(config.width, num_classes)
    entropy = optax.softmax_cross_entropy_with_integer_labels

    def train_loss(key, params, gate, v, x, y):
        return entropy(network.apply(params, x, gate, (key, v)), y)

    return self_tuning_networks(
        config,
        CLASSIFIER_SPECS,
        lambda key, gate: network.init(key, jnp.zeros(num_inputs), gate),
        train_loss,
        lambda params, gate, x, y: entropy(network.apply(params, x, gate), y),
    )


def _mixture(key, num: int):
    """Ten classes of three Gaussians through a random network; a fifth mislabelled."""
    names = ("centre", "first", "second", "which", "label", "x", "flip", "wrong")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    size, hidden = 32, 64
    centres = 1.5 * jax.random.normal(keys["centre"], (10, 3, size))
    label = jax.random.randint(keys["label"], (num,), 0, 10)
    which = jax.random.randint(keys["which"], (num,), 0, 3)
    x = centres[label, which] + jax.random.normal(keys["x"], (num, size))
    first = jax.random.normal(keys["first"], (size, hidden)) / size**0.5
    second = jax.random.normal(keys["second"], (hidden, size)) / hidden**0.5
    x = jnp.tanh(x @ first) @ second
    x = (x - x.mean(0)) / x.std(0)
    is_wrong = jax.random.bernoulli(keys["flip"], 0.2, (num,))
    wrong = jax.random.randint(keys["wrong"], (num,), 0, 10)
    return x, jnp.where(is_wrong, wrong, label)


def _classification(key, config: Config) -> Metrics:
    """Test loss of one self-tuning run, beside random search and the first setting."""
    data_key, init_key, run_key, search_key = jax.random.split(key, 4)
    x, y = _mixture(data_key, 7000)
    data = Split(x[:1000], y[:1000], x[1000:2000], y[1000:2000])
    config = dataclasses.replace(config, decay_by=config.cycles)
    model = classifier(config, x.shape[1], 10)

    def run(model, state):
        state, rows = optimise.repeat(model.step, state, run_key, data, config.cycles)
        each = jax.vmap(model.predict, (None, 0, 0))
        valid = jnp.mean(each(state, data.valid_x, data.valid_y))
        return valid, jnp.mean(each(state, x[2000:], y[2000:])), rows

    _, tuned, rows = run(model, model.init(init_key))
    plain = dataclasses.replace(config, std=_STD_RANGE[0], warm_up=config.cycles)
    plain = classifier(plain, x.shape[1], 10)
    state = plain.init(init_key)
    # Rates and noise uniform in [0, 0.8] and [0, 1]; the first run keeps its setting.
    drawn = jax.random.uniform(search_key, (config.searches, 4))
    rates = jax.scipy.special.logit(drawn[:, :3] * 0.8 / 0.95)
    noise = jnp.log(jnp.expm1(drawn[:, 3:]))
    u = jnp.concatenate([state.u[None], jnp.concatenate([rates, noise], -1)])
    valid, test = jax.vmap(lambda u: run(plain, state._replace(u=u))[:2])(u)
    found = {f"network/{s.name}": rows[s.name][-1] for s in CLASSIFIER_SPECS}
    return {
        **found,
        "network/test": tuned,
        "network/test_search": test[1:][jnp.argmin(valid[1:])],
        "network/test_first": test[0],
    }


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """What the response is worth: hypergradients, penalties, rates and noise found.

    `ridge/cosine` compares hypergradients at five penalties with the exact ones;
    `ridge/valid_from_*` are validation losses after tuning from λ = 1e-4 and 1e2,
    beside the best of a grid solved exactly. `network/test` is the test loss of one run
    that tunes itself, beside the best of a random search by validation loss (as many
    steps each) and the setting it began with.
    """
    ridge_key, network_key = jax.random.split(key)
    return _regression(ridge_key, config) | _classification(network_key, config)
