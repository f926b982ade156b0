"""Complexity dynamics of grokking: a network's information content rises, then falls.

A network first memorises half a table and only much later generalises. Its complexity,
the size of its smallest code that keeps the loss, peaks in between. Without a
regulariser it stays high; the norm and compressors of the raw weights see nothing.

Source: DeMoss et al., "The Complexity Dynamics of Grokking", Physica D 482, 2025
(arXiv 2412.09810), and its reference code.
Shapes: n examples, V symbols, K records along training, C of them measured.
Departs: the cross-entropy is not clipped; minibatches are drawn anew at every step
instead of by epochs; the gradient of the spectral entropy is taken at the weights
themselves, also where the other gradients are taken at noisy ones.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxwm import data, measures, nn
from jaxwm.core import checks, optimise
from jaxwm.types import Metrics, ModelState, Params, Predictor, PyTree

# Tables with one row per pair; "permutation" composes the p = k! permutations.
OPERATIONS = ("add", "sub", "mul", "div", "squares", "quadratic", "permutation")
_FACTORIALS = {math.factorial(k): k for k in range(2, 7)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: memorises by step 60 and groks by 1000, seconds on one core."""

    p: int = 59  # modulus
    op: str = "add"  # of OPERATIONS
    fraction: float = 0.4  # of the table for training
    network: str = "mlp"  # or "transformer"
    embed: int = 64
    hidden: tuple[int, ...] = (128,)  # of the MLP; width of the transformer's MLPs
    activation: str = "relu"  # of the MLP, or "square"
    num_blocks: int = 1  # of the transformer
    learning_rate: float = 1e-2
    b2: float = 0.98  # Adam's second decay
    weight_decay: float = 1.0
    noise: float = 0.0  # standard deviation of the weight noise
    spectral: float = 0.0  # coefficient of the spectral entropy, per nat
    every: int = 20  # steps between two decompositions
    method: str = "svd"  # or "gram", "renyi2"; see measures.spectral_entropy
    hold: bool = True  # keep its gradient between them, see spectral_entropy_decay
    batch_size: int | None = None  # None: all training pairs at every step
    steps: int = 2000  # some seeds grok as late as 1200
    record_every: int = 20  # steps between two records
    num_measured: int = 10  # C, records whose complexity is measured, log-spaced
    epsilon: float = 1.0  # nats that the loss may rise by

    def __post_init__(self):
        checks.finite(self)
        if self.op not in OPERATIONS:
            raise ValueError(
                f"op must be one of {', '.join(OPERATIONS)}, got {self.op!r}."
            )
        if self.op == "permutation" and self.p not in _FACTORIALS:
            raise ValueError(
                f"p must be k! for k = 2 ... 6 with permutations, got {self.p}; "
                f"one of {', '.join(map(str, _FACTORIALS))}."
            )
        if self.network not in ("mlp", "transformer"):
            raise ValueError(
                f'network must be "mlp" or "transformer", got {self.network!r}.'
            )
        if self.steps % self.record_every:
            raise ValueError(
                f"record_every must divide steps = {self.steps}, got "
                f"{self.record_every}."
            )
        if not 2 <= self.num_measured <= self.steps // self.record_every:
            raise ValueError(
                "num_measured must be in 2 ... steps / record_every = "
                f"{self.steps // self.record_every}, got {self.num_measured}."
            )
        checks.positive(self, "learning_rate", "epsilon")
        checks.at_least(0, self, "weight_decay", "noise", "spectral")


# Addition; 10 000 epochs of 5 minibatches. Two blocks and noise 1e-3 for "sub", "div".
PAPER = Config(
    p=113,
    fraction=0.2,
    network="transformer",
    embed=128,
    hidden=(512,),
    learning_rate=1e-3,
    noise=1e-2,
    spectral=0.1,
    every=1,
    method="svd",
    hold=False,
    batch_size=512,
    steps=50_000,
    record_every=250,
    num_measured=30,
)
TINY = Config(
    p=7, embed=8, hidden=(16,), fraction=0.6, steps=60, record_every=10, num_measured=4
)


class History(NamedTuple):
    """Training as K records, every `record_every` steps."""

    steps: Int[Array, " K"]
    params: PyTree  # [K, ...]
    metrics: Metrics  # [K] each: loss and accuracy on both parts of the table


def complexity_grokking(config: Config) -> Predictor:
    """Builds the network and its regularised training step.

    Returns:
        `init(key)`; `step(key, state, examples) -> (state, metrics)`, with AdamW on
        loss + spectral entropy and gradients at noisy weights;
        `predict(params, x [I]) -> logits [V]`.
    """
    num_symbols = config.p + 2 if config.network == "transformer" else config.p
    if config.network == "transformer":
        width = config.hidden[0]
        network = nn.GrokTransformer(
            num_symbols,
            num_symbols,
            config.embed,
            num_blocks=config.num_blocks,
            width=width,
        )
        example = jnp.zeros(4, jnp.int32)
    else:
        network = nn.GrokMLP(
            num_symbols, config.p, config.embed, config.hidden, config.activation
        )
        example = jnp.zeros(2, jnp.int32)
    optimiser = optax.adamw(
        config.learning_rate, b2=config.b2, weight_decay=config.weight_decay
    )
    if config.spectral:
        penalty = measures.spectral_entropy_decay(
            config.spectral,
            every=config.every,
            method=config.method,
            hold=config.hold,
        )
        optimiser = optax.chain(penalty, optimiser)

    def init(key: Key[Array, ""]) -> ModelState:
        return optimise.init_state(optimiser, network.init(key, example))

    def predict(params: Params, x: Int[Array, " I"]) -> Float[Array, " V"]:
        return network.apply(params, x)

    noisy_loss = measures.weight_noise(
        lambda params, train: cross_entropy(predict, params, train), config.noise
    )

    def step(
        key: Key[Array, ""], state: ModelState, train: data.Examples
    ) -> tuple[ModelState, Metrics]:
        """One update."""
        batch_key, noise_key = jax.random.split(key)
        if config.batch_size is not None:
            num = train.y.shape[0]
            size = min(config.batch_size, num // 2)
            rows = jax.random.choice(batch_key, num, (size,), replace=False)
            train = jax.tree.map(lambda x: x[rows], train)

        return optimise.gradient_step(
            lambda params: noisy_loss(noise_key, params, train), optimiser, state
        )

    return Predictor(init, step, predict)


def cross_entropy(predict, params: Params, examples: data.Examples) -> Float[Array, ""]:
    """Mean over examples, in nats."""
    logits = jax.vmap(predict, (None, 0))(params, examples.x)
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, examples.y
    ).mean()


def accuracy(predict, params: Params, examples: data.Examples) -> Float[Array, ""]:
    """Share of examples whose label has the largest logit."""
    logits = jax.vmap(predict, (None, 0))(params, examples.x)
    return jnp.mean(jnp.argmax(logits, -1) == examples.y, dtype=jnp.float32)


def task_of(key: Key[Array, ""], config: Config) -> data.Task:
    """The split table of a setting."""
    tokens = config.network == "transformer"
    if config.op == "permutation":
        k = _FACTORIALS[config.p]
        return data.permutation_task(key, k, config.fraction, tokens=tokens)
    return data.modular_task(key, config.p, config.op, config.fraction, tokens=tokens)


def train_grok(key: Key[Array, ""], config: Config, task: data.Task) -> History:
    """Trains one network and keeps a record every so often."""
    model = complexity_grokking(config)
    init_key, fit_key = jax.random.split(key)

    def record(state, i):
        state, _ = optimise.repeat(
            model.step,
            state,
            jax.random.fold_in(fit_key, i),
            task.train,
            config.record_every,
        )
        metrics = {}
        for name, part in (("train", task.train), ("test", task.test)):
            metrics[f"{name}/loss"] = cross_entropy(model.predict, state.params, part)
            metrics[f"{name}/accuracy"] = accuracy(model.predict, state.params, part)
        return state, (state.params, metrics)

    num_records = config.steps // config.record_every
    _, (params, metrics) = jax.lax.scan(
        record, model.init(init_key), jnp.arange(num_records)
    )
    return History(
        config.record_every * jnp.arange(1, num_records + 1), params, metrics
    )


def measured_records(config: Config) -> np.ndarray:
    """Indices of the records to measure, log-spaced, with the last one."""
    num_records = config.steps // config.record_every
    spaced = np.geomspace(1, num_records, config.num_measured).round().astype(int)
    return np.unique(spaced) - 1


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Complexity along training with the configured regulariser and with none.

    Returns:
        `complexity/...` in bytes: peak and final value, each also `_unregularised`;
        `step/...`: of memorisation (99 % of the training pairs), of the peak, of
        grokking (95 % of the others); `accuracy/...` on the test pairs at the end;
        `raw/...`: largest relative distance of two cheap measures from their final
        value since memorisation; `integers/...`: how far bz2 of the coarse-grained
        integers is from the entropy, and how alike they rank all checkpoints.
    """
    task_key, train_key = jax.random.split(key)
    task = task_of(task_key, config)
    none = dataclasses.replace(config, weight_decay=0.0, noise=0.0, spectral=0.0)
    history = train_grok(train_key, config, task)
    free = train_grok(jax.random.clone(train_key), none, task)  # from the same start
    at = measured_records(config)
    predict = complexity_grokking(config).predict
    loss = lambda params: cross_entropy(predict, params, task.train)
    params = jax.tree.map(
        lambda a, b: jnp.concatenate([a[at], b[at]]), history.params, free.params
    )
    found = measures.complexity_trajectory(params, loss, (config.epsilon,))

    def sizes(row):
        weights, tau, delta = row
        return {
            "bz2": measures.raw_byte_size(weights),
            "norm": measures.l2_norm(weights),
            "integers": measures.integer_byte_size(weights, tau, delta),
        }

    size = jax.lax.map(sizes, (params, found.tau[:, 0], found.delta[:, 0]))
    num_bytes = found.bits[:, 0] / 8
    with_, without = jnp.split(num_bytes, 2)
    steps = history.steps[at]
    memorised = first_step(history.steps, history.metrics["train/accuracy"] >= 0.99)

    def change(x):
        x = x[: len(at)]
        return jnp.max(jnp.where(steps >= memorised, jnp.abs(x / x[-1] - 1), 0.0))

    return {
        "complexity/peak": with_.max(),
        "complexity/final": with_[-1],
        "complexity/peak_unregularised": without.max(),
        "complexity/final_unregularised": without[-1],
        "complexity/feasible": jnp.mean(found.feasible, dtype=jnp.float32),
        "step/memorised": memorised,
        "step/peak": steps[jnp.argmax(with_)].astype(jnp.float32),
        "step/grokked": first_step(
            history.steps, history.metrics["test/accuracy"] >= 0.95
        ),
        "accuracy/test": history.metrics["test/accuracy"][-1],
        "accuracy/test_unregularised": free.metrics["test/accuracy"][-1],
        "raw/bz2_change": change(size["bz2"]),
        "raw/norm_change": change(size["norm"]),
        "integers/difference": jnp.max(jnp.abs(size["integers"] / num_bytes - 1)),
        "integers/spearman": spearman(size["integers"], num_bytes),
    }


def first_step(steps: Int[Array, " K"], reached: Array) -> Float[Array, ""]:
    """The first step at which a condition holds; NaN if it never does."""
    return jnp.where(jnp.any(reached), steps[jnp.argmax(reached)], jnp.nan)


def spearman(x: Float[Array, " C"], y: Float[Array, " C"]) -> Float[Array, ""]:
    """Correlation of ranks."""
    rank = lambda v: jnp.argsort(jnp.argsort(v)).astype(jnp.float32)
    return jnp.corrcoef(rank(x), rank(y))[0, 1]
