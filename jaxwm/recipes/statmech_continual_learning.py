"""Continual learning of binary networks in field space, by a variational principle.

Weights are +-1. What is learnt are fields: a posterior that factorises over synapses.
For each task the expected loss is minimised together with the divergence from the
posterior of the tasks before, so that a confident synapse hardly moves: plasticity is
modulated by uncertainty. For a perceptron that learns from a teacher, mean-field
theory says how far one can get.

Source: Li, Huang, Zou and Huang, "Statistical mechanics of continual learning:
variational principle and mean-field potential", Phys. Rev. E 108, 014309 (2023); the
metaplastic baseline is Laborieux et al., "Synaptic metaplasticity in binarized neural
networks", 2021.
Shapes: N inputs, P patterns, T tasks, I and U units of a layer before and after.
Departs: the two-task free energy of the paper is replaced by exact enumeration of small
perceptrons.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm.core import checks, optimise
from jaxwm.data.permuted_clusters import Tasks, permuted_clusters
from jaxwm.measures import perceptron
from jaxwm.types import Metrics

_FLOOR = 1e-6  # of the variance of a pre-activation

Fields = tuple[Float[Array, "_ _"], ...]  # theta, one array per layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: a minute on one core."""

    beta: float = 1.0  # inverse temperature of a synapse, m = tanh(beta theta)
    kl_weight: float = 1.0  # 1 is Bayes, below 1 tempered, 0 forgets (fine-tuning)
    learning_rate: float = 1e-2
    init_std: float = 0.1  # of the fields before the first task
    num_steps: int = 400  # updates per task
    batch_size: int = 128
    num_draws: int = 2  # pre-activations drawn per class score and example
    # The experiment's sizes.
    num_synapses: int = 500  # N of the perceptron
    num_small: int = 18  # N where all 2^N weights are enumerated
    num_instances: int = 20  # of the small perceptron
    num_tasks: int = 5
    num_examples: int = 2000  # per task
    num_hidden: int = 256
    separation: float = 1.0  # of the clusters, in their standard deviations
    metaplasticity: tuple[float, ...] = (1.35, 5.0, 8.0)  # mu of the baseline

    def __post_init__(self):
        checks.finite(self)
        if self.beta <= 0:
            raise ValueError(
                f"beta must be positive, got {self.beta}; 1 is the usual scale."
            )
        if self.kl_weight < 0:
            raise ValueError(
                f"kl_weight must be at least 0, got {self.kl_weight}; 0 fine-tunes."
            )
        if self.num_small > 24:
            raise ValueError(
                f"num_small must be at most 24 synapses, got {self.num_small}; all "
                "2^N weights are enumerated."
            )


TINY = Config(
    num_steps=10,
    batch_size=8,
    num_synapses=20,
    num_small=6,
    num_instances=2,
    num_tasks=2,
    num_examples=24,
    num_hidden=8,
)


def statmech_continual_learning(
    key: Key[Array, ""], tasks: Tasks, sizes: tuple[int, ...], config: Config
) -> tuple[Fields, Float[Array, "T T"]]:
    """Learns tasks one after the other; each posterior is the prior of the next.

    Args:
        key: draws the first fields, batches and pre-activations.
        tasks: the examples.
        sizes: of the layers, inputs first, classes last.
        config: the rule; `kl_weight` 0 is fine-tuning.

    Returns:
        The last fields, and `accuracy[i, j]` on task j after task i.
    """
    init_key, fit_key = jax.random.split(key)
    fields = init_fields(init_key, sizes, config)
    uniform = jax.tree.map(jnp.zeros_like, fields)

    def learn(carry, i):
        fields, prior = carry
        task_key = jax.random.fold_in(fit_key, i)
        fields = learn_task(task_key, fields, prior, tasks.x[i], tasks.y[i], config)
        predict = lambda x: scores(fields, x, config.beta)
        return (fields, fields), _accuracies(predict, tasks)

    num_tasks = tasks.x.shape[0]
    carry, accuracy = jax.lax.scan(learn, (fields, uniform), jnp.arange(num_tasks))
    return carry[0], accuracy


def learn_task(
    key: Key[Array, ""],
    fields: Fields,
    prior: Fields,
    x: Float[Array, "P N"],
    y: Array,
    config: Config,
) -> Fields:
    """Minimises `E_q[loss] + kl_weight KL(q || prior) / P` over the fields, by Adam.

    Fields are kept within 6 / beta: beyond, the slope of tanh is zero and a synapse
    would be frozen for ever.
    """
    optimiser = optax.adam(config.learning_rate)
    num = x.shape[0]
    limit = 6 / config.beta

    def step(key, state, data):
        index_key, draw_key = jax.random.split(key)
        x, y = data
        if num > config.batch_size:
            index = jax.random.randint(index_key, (config.batch_size,), 0, num)
            x, y = x[index], y[index]
        keys = jax.random.split(draw_key, x.shape[0])

        def objective(fields):
            losses = jax.vmap(loss, (0, None, 0, 0, None))(keys, fields, x, y, config)
            divergence = kl(fields, prior, config.beta)
            return jnp.mean(losses) + config.kl_weight * divergence / num

        state, metrics = optimise.gradient_step(objective, optimiser, state)
        clipped = jax.tree.map(lambda t: jnp.clip(t, -limit, limit), state.params)
        return state._replace(params=clipped), metrics

    state = optimise.init_state(optimiser, fields)
    return optimise.repeat(step, state, key, (x, y), config.num_steps)[0].params


def init_fields(key: Key[Array, ""], sizes: tuple[int, ...], config: Config) -> Fields:
    """Small random fields: every synapse nearly undecided."""
    return tuple(
        config.init_std * jax.random.normal(jax.random.fold_in(key, i), shape)
        for i, shape in enumerate(itertools.pairwise(sizes))
    )


def kl(fields: Fields, prior: Fields, beta: float) -> Float[Array, ""]:
    """Divergence of one factorised posterior from another, in nats.

        KL = sum_i [beta m_i (theta_i - theta0_i)
                    - ln cosh(beta theta_i) + ln cosh(beta theta0_i)]

    Its gradient is `beta^2 (1 - m_i^2) (theta_i - theta0_i)`: small for a confident
    synapse, as is the gradient of the data.
    """

    def of_layer(theta, theta0):
        m = jnp.tanh(beta * theta)
        change = beta * m * (theta - theta0)
        return jnp.sum(change - _log_cosh(beta * theta) + _log_cosh(beta * theta0))

    return sum(jax.tree.leaves(jax.tree.map(of_layer, fields, prior)))


def sample(key: Key[Array, ""], fields: Fields, beta: float) -> Fields:
    """One binary network from the posterior, weights +-1."""
    return tuple(
        jnp.where(
            jax.random.bernoulli(jax.random.fold_in(key, i), jax.nn.sigmoid(u)), 1.0, -1
        )
        for i, u in enumerate(2 * beta * theta for theta in fields)
    )


def binary_dense(
    theta: Float[Array, "I U"],
    mean: Float[Array, " I"],
    variance: Float[Array, " I"],
    beta: float,
) -> tuple[Float[Array, " U"], Float[Array, " U"]]:
    """Mean G and variance D^2 of the pre-activations `w^T x / sqrt(I)`.

    By the central limit theorem they are Gaussian, `z = G + D xi`.
    """
    size = theta.shape[0]
    m = jnp.tanh(beta * theta)
    spread = mean**2 @ (1 - m**2) + jnp.sum(variance)
    return mean @ m / math.sqrt(size), spread / size + _FLOOR


def sign_moments(
    g: Float[Array, " U"], d2: Float[Array, " U"]
) -> tuple[Float[Array, " U"], Float[Array, " U"]]:
    """Mean `1 - 2 H(G / D)` and variance of the sign of a Gaussian; H is its tail."""
    mean = jax.scipy.special.erf(g / jnp.sqrt(2 * d2))
    return mean, 1 - mean**2


def output_moments(
    fields: Fields, x: Float[Array, " N"], beta: float
) -> tuple[Float[Array, " U"], Float[Array, " U"]]:
    """G and D^2 of the last layer; hidden units are signs, known by their moments."""
    mean, variance = x, jnp.zeros_like(x)
    for theta in fields[:-1]:
        mean, variance = sign_moments(*binary_dense(theta, mean, variance, beta))
    return binary_dense(fields[-1], mean, variance, beta)


def scores(fields: Fields, x: Float[Array, " N"], beta: float) -> Float[Array, " U"]:
    """Mean-field output G; its sign or largest entry is the prediction."""
    return output_moments(fields, x, beta)[0]


def loss(
    key: Key[Array, ""], fields: Fields, x: Float[Array, " N"], y: Array, config: Config
) -> Float[Array, ""]:
    """Loss of one example under the posterior, in nats.

    One output: `-ln H(-y G / D)`, exact. Classes: cross-entropy of `G + D xi`, averaged
    over `num_draws` draws.
    """
    g, d2 = output_moments(fields, x, config.beta)
    if g.shape == (1,):
        return -jax.scipy.special.log_ndtr(y * g[0] / jnp.sqrt(d2[0]))
    xi = jax.random.normal(key, (config.num_draws, g.shape[0]))
    z = g + jnp.sqrt(d2) * xi
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, y[None]))


def metaplastic_update(
    u: Float[Array, "I U"], update: Float[Array, "I U"], mu: float
) -> Float[Array, "I U"]:
    """Updates that would shrink |u| are multiplied by `1 - tanh(mu u)^2`."""
    return jnp.where(u * update < 0, update * (1 - jnp.tanh(mu * u) ** 2), update)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """The perceptron against theory and enumeration, and a network on five tasks."""
    one_key, two_key, small_key, deep_key = jax.random.split(key, 4)
    return (
        _single_task(one_key, config)
        | _two_tasks(two_key, config)
        | _against_enumeration(small_key, config)
        | _permuted(deep_key, config)
    )


def _perceptron_tasks(key, size: int, num: int, num_tasks: int, overlap: float):
    """Teachers and their labelled Gaussian patterns."""
    teacher_key, x_key = jax.random.split(key)
    w = perceptron.teachers(teacher_key, size, num_tasks, overlap)
    x = jax.random.normal(x_key, (num_tasks, num, size))
    return w, x, jnp.sign(jnp.einsum("tpn,tn->tp", x, w))


def _angle(w, teacher):
    """Test error of a perceptron: the angle between weights and teacher, over pi."""
    cosine = w @ teacher / (jnp.linalg.norm(w) * jnp.linalg.norm(teacher))
    return jnp.arccos(jnp.clip(cosine, -1, 1)) / jnp.pi


def _single_task(key, config: Config) -> Metrics:
    """One task at alpha = 1 against the mean-field prediction."""
    data_key, init_key, fit_key = jax.random.split(key, 3)
    size = config.num_synapses
    w, x, y = _perceptron_tasks(data_key, size, size, 1, 1.0)
    fields = init_fields(init_key, (size, 1), config)
    whole = dataclasses.replace(config, batch_size=size)
    uniform = jax.tree.map(jnp.zeros_like, fields)
    theta = learn_task(fit_key, fields, uniform, x[0], y[0], whole)[0][:, 0]
    saddle = perceptron.saddle(1.0)
    return {
        "perceptron/binary": _angle(jnp.sign(theta), w[0]),
        "perceptron/mean": _angle(jnp.tanh(config.beta * theta), w[0]),
        "perceptron/theory_sample": saddle.error_sample,
        "perceptron/theory_mean": saddle.error_mean,
    }


def _two_tasks(key, config: Config) -> Metrics:
    """Two unrelated teachers, alpha = 1 each: what the second does to the first."""
    data_key, fit_key = jax.random.split(key)
    size = config.num_synapses
    w, x, y = _perceptron_tasks(data_key, size, size, 2, 0.0)
    metrics = {}
    for name, weight in (("variational", config.kl_weight), ("finetune", 0.0)):
        rule = dataclasses.replace(config, kl_weight=weight, batch_size=size)
        first, second = _learn_pair(jax.random.clone(fit_key), x, y, rule)
        means = [jnp.tanh(config.beta * fields[0][:, 0]) for fields in (first, second)]
        metrics |= {
            f"two/{name}_first_before": _angle(means[0], w[0]),
            f"two/{name}_first": _angle(means[1], w[0]),
            f"two/{name}_excess": _angle(means[1], w[0]) - _angle(means[0], w[0]),
            f"two/{name}_second": _angle(means[1], w[1]),
        }
    worse = metrics["two/variational_second"] - metrics["two/finetune_second"]
    return metrics | {"two/second_difference": worse}


def _learn_pair(key, x, y, config: Config) -> tuple[Fields, Fields]:
    """Fields of a perceptron after the first and after the second task."""
    init_key, first_key, second_key = jax.random.split(key, 3)
    start = init_fields(init_key, (x.shape[-1], 1), config)
    uniform = jax.tree.map(jnp.zeros_like, start)
    first = learn_task(first_key, start, uniform, x[0], y[0], config)
    return first, learn_task(second_key, first, first, x[1], y[1], config)


def _against_enumeration(key, config: Config) -> Metrics:
    """Small perceptrons: the variational result beside the exact posterior's vote."""

    def instance(i):
        data_key, fit_key, test_key = jax.random.split(jax.random.fold_in(key, i), 3)
        size = config.num_small
        w, x, y = _perceptron_tasks(data_key, size, size, 2, 0.3)
        _, (theta,) = _learn_pair(fit_key, x, y, config)
        log_post = perceptron.enumerate_posterior(x[0], y[0])
        log_post = perceptron.enumerate_posterior(x[1], y[1], log_post)
        x_test = jax.random.normal(test_key, (300, size))
        found = jnp.sign(x_test @ jnp.tanh(config.beta * theta[:, 0]))
        exact = perceptron.posterior_vote(log_post, x_test)
        right = jnp.sign(w @ x_test.T)  # [2, M]
        return jnp.mean(jnp.stack([found, exact])[:, None] != right, -1).reshape(-1)

    errors = jnp.mean(jax.lax.map(instance, jnp.arange(config.num_instances)), 0)
    return {
        "small/variational_first": errors[0],
        "small/variational_second": errors[1],
        "small/exact_first": errors[2],
        "small/exact_second": errors[3],
        "small/first_difference": jnp.abs(errors[0] - errors[2]),
    }


def _permuted(key, config: Config) -> Metrics:
    """Mean accuracy over all tasks at the end, by rule; joint training is the bound.

    `_new` is the mean of each task right after it was learnt, `_signs` of the binary
    network sign(theta). The metaplastic baseline has its published mu first, and is
    also counted with the best of those tried.
    """
    data_key, fit_key = jax.random.split(key)
    tasks = permuted_clusters(
        data_key,
        config.num_tasks,
        config.num_examples,
        separation=config.separation,
    )
    sizes = (100, config.num_hidden, 10)
    metrics = {}
    for name, weight in (("variational", config.kl_weight), ("finetune", 0.0)):
        rule = dataclasses.replace(config, kl_weight=weight)
        fields, accuracy = statmech_continual_learning(
            jax.random.clone(fit_key), tasks, sizes, rule
        )
        signs = lambda x, fields=fields: scores(_saturated(fields), x, 1.0)
        metrics |= {
            f"permuted/{name}": jnp.mean(accuracy[-1]),
            f"permuted/{name}_new": jnp.mean(jnp.diagonal(accuracy)),
            f"permuted/{name}_signs": jnp.mean(_accuracies(signs, tasks)),
        }
    for mu in config.metaplasticity:
        accuracy = _metaplastic(jax.random.clone(fit_key), tasks, sizes, mu, config)
        metrics[f"permuted/metaplastic_{mu:g}"] = jnp.mean(accuracy[-1])
    baselines = jnp.stack(
        [metrics[f"permuted/metaplastic_{mu:g}"] for mu in config.metaplasticity]
    )
    variational = metrics["permuted/variational"]
    metrics |= {
        "permuted/over_finetune": variational - metrics["permuted/finetune"],
        "permuted/over_metaplastic": variational - baselines[0],
        "permuted/over_metaplastic_tuned": variational - jnp.max(baselines),
    }
    joint = Tasks(
        tasks.x.reshape(1, -1, tasks.x.shape[-1]),
        tasks.y.reshape(1, -1),
        tasks.x_test.reshape(1, -1, tasks.x.shape[-1]),
        tasks.y_test.reshape(1, -1),
    )
    longer = dataclasses.replace(config, num_steps=config.num_steps * config.num_tasks)
    _, accuracy = statmech_continual_learning(
        jax.random.clone(fit_key), joint, sizes, longer
    )
    return metrics | {"permuted/joint": accuracy[0, 0]}


def _metaplastic(key, tasks: Tasks, sizes, mu: float, config: Config):
    """Binary networks on latent weights u, straight-through, consolidated by |u|.

    Gradients pass the sign of a weight unchanged, and the sign of a unit where its
    pre-activation is within +-1. Returns accuracies `[T, T]`.
    """
    init_key, fit_key = jax.random.split(key)
    latent = init_fields(init_key, sizes, config)
    optimiser = optax.adam(config.learning_rate)

    def forward(latent, x):
        for i, u in enumerate(latent):
            w = u + jax.lax.stop_gradient(jnp.where(u > 0, 1.0, -1.0) - u)
            x = x @ w / math.sqrt(u.shape[0])
            if i < len(latent) - 1:
                soft = jnp.clip(x, -1, 1)
                x = soft + jax.lax.stop_gradient(jnp.where(x > 0, 1.0, -1.0) - soft)
        return x

    def learn(latent, i):
        x, y = tasks.x[i], tasks.y[i]

        def step(carry, j):
            latent, opt_state = carry
            step_key = jax.random.fold_in(jax.random.fold_in(fit_key, i), j)
            index = jax.random.randint(step_key, (config.batch_size,), 0, x.shape[0])

            def objective(latent):
                z = jax.vmap(forward, (None, 0))(latent, x[index])
                losses = optax.softmax_cross_entropy_with_integer_labels(z, y[index])
                return jnp.mean(losses)

            updates, opt_state = optimiser.update(
                jax.grad(objective)(latent), opt_state, latent
            )
            updates = tuple(
                metaplastic_update(u, update, mu)
                for u, update in zip(latent, updates, strict=True)
            )
            return (optax.apply_updates(latent, updates), opt_state), None

        carry = (latent, optimiser.init(latent))
        (latent, _), _ = jax.lax.scan(step, carry, jnp.arange(config.num_steps))
        return latent, _accuracies(lambda x: forward(latent, x), tasks)

    return jax.lax.scan(learn, latent, jnp.arange(tasks.x.shape[0]))[1]


def _accuracies(predict, tasks: Tasks) -> Float[Array, " T"]:
    """Share of test examples that `predict(x) -> outputs` gets right, per task."""

    def right(x, y):
        return jnp.mean(jnp.argmax(jax.vmap(predict)(x), 1) == y)

    return jax.vmap(right)(tasks.x_test, tasks.y_test)


def _saturated(fields: Fields) -> Fields:
    """Fields of the binary network `sign theta`: no synapse is in doubt."""
    return tuple(jnp.where(theta > 0, 20.0, -20.0) for theta in fields)


def _log_cosh(x: Array) -> Array:
    """`ln cosh x` without overflow."""
    return jnp.abs(x) + jnp.log1p(jnp.exp(-2 * jnp.abs(x))) - math.log(2)
