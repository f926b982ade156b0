"""Perceptrons with weights +-1: mean-field theory and exact enumeration.

A teacher labels Gaussian patterns; how much of it do P = alpha N examples give away?

Source: Engel and Van den Broeck, "Statistical Mechanics of Learning", 2001, chapters 2
and 7; Gyorgyi, "First-order transition to perfect generalization in a neural network
with binary synapses", 1990.
Shapes: N inputs, P patterns, T tasks, W = 2^N weight vectors, M test patterns.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxwm.measures import hermite

_CEILING = 1 - 1e-6  # of the overlap, where the saddle point has run into the teacher
_BLOCK = 4096  # weight vectors looked at together when all are enumerated


class Saddle(NamedTuple):
    """A replica-symmetric solution of the teacher-student perceptron."""

    q: Float[Array, ""]  # overlap of two posterior samples, and with the teacher
    error_sample: Float[Array, ""]  # test error of one sample, arccos(q) / pi
    error_mean: Float[Array, ""]  # of the posterior mean, arccos(sqrt q) / pi


def saddle(alpha: float, *, start: float = 0.01, num_steps: int = 3000) -> Saddle:
    """Bayes-optimal learning of a binary perceptron from `alpha N` examples.

        q = int Dz tanh(qhat + sqrt(qhat) z)
        qhat = alpha / (pi sqrt(1 - q^2)) int Ds 1 / H(s sqrt(q / (1 + q)))

    The second is the textbook's `int Dt exp(-q t^2 / (1-q)) / H(t sqrt(q / (1-q)))`
    with its Gaussians merged, so that nothing narrows as q goes to 1. Damped by a half,
    120 nodes. There are two branches: from a `start` near 0 the poor one up to its end
    at alpha about 1.49, where q runs to 1 (the teacher is found); from a start near 1
    the teacher's.

    Raises:
        ValueError: if alpha is negative or the start is not an overlap in (0, 1).
    """
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0 examples, got {alpha}.")
    if not 0 < start < 1:
        raise ValueError(f"start must be in (0, 1), got {start}; 0.01 or 0.999.")
    host_nodes, host_weights = hermite.gauss_hermite(120)
    nodes = jnp.asarray(host_nodes, jnp.float32)
    weights = jnp.asarray(host_weights, jnp.float32)
    log_weights = jnp.asarray(np.log(host_weights), jnp.float32)

    def body(q, _):
        # In logarithms: far out the weights underflow and 1 / H overflows.
        log_tail = jax.scipy.special.log_ndtr(-nodes * jnp.sqrt(q / (1 + q)))
        q_hat = alpha * jnp.sum(jnp.exp(log_weights - log_tail))
        q_hat /= jnp.pi * jnp.sqrt((1 - q) * (1 + q))
        new = jnp.dot(weights, jnp.tanh(q_hat + jnp.sqrt(q_hat) * nodes))
        return jnp.clip(0.5 * (q + new), 0.0, _CEILING), None

    q, _ = jax.lax.scan(body, jnp.asarray(start), length=num_steps)
    return Saddle(q, jnp.arccos(q) / jnp.pi, jnp.arccos(jnp.sqrt(q)) / jnp.pi)


def enumerate_posterior(
    x: Float[Array, "P N"],
    y: Float[Array, " P"],
    log_prior: Float[Array, " W"] | None = None,
    *,
    noise: float = 1e-3,
) -> Float[Array, " W"]:
    """Exact log posterior of all W = 2^N weight vectors of a perceptron.

    Args:
        x: patterns.
        y: labels +-1.
        log_prior: of every weight vector, in the order of `binary_weights`; None is
            uniform. The posterior of one task is the prior of the next.
        noise: probability that the teacher's label was flipped. Positive, because two
            teachers may leave no weight vector that satisfies both.

    Raises:
        ValueError: if N exceeds 24, `noise` is outside (0, 0.5), or labels known
            outside of a trace are not +-1.
    """
    size = x.shape[1]
    if size > 24:
        raise ValueError(
            f"x must have at most 24 inputs, got {size}; all 2^N weights are visited."
        )
    if not 0 < noise < 0.5:
        raise ValueError(f"noise must be in (0, 0.5), got {noise}; for example 1e-3.")
    if not isinstance(y, jax.core.Tracer) and not jnp.all(jnp.abs(y) == 1):
        raise ValueError(f"labels y must be +-1, got {jnp.unique(y)}; use 2 y - 1.")

    def log_likelihood(index):
        wrong = jnp.sum(jnp.sign(binary_weights(index, size) @ x.T) != y, 1)
        return wrong * math.log(noise / (1 - noise))

    log_post = _over_weights(log_likelihood, size).reshape(-1)
    log_post = log_post if log_prior is None else log_post + log_prior
    return jax.nn.log_softmax(log_post)


def binary_weights(index: Int[Array, " B"], size: int) -> Float[Array, "B {size}"]:
    """Weight vectors of these numbers: bit i of the number is weight i."""
    return 2.0 * ((index[:, None] >> jnp.arange(size)) & 1) - 1.0


def posterior_vote(
    log_post: Float[Array, " W"], x: Float[Array, "M N"]
) -> Float[Array, " M"]:
    """Labels by the vote of all weight vectors, weighted by their posterior."""
    size = x.shape[1]

    def votes(index):
        return jnp.exp(log_post[index]) @ jnp.sign(binary_weights(index, size) @ x.T)

    return jnp.sign(jnp.sum(_over_weights(votes, size), 0))


def teachers(
    key: Key[Array, ""], size: int, num_tasks: int, overlap: float
) -> Float[Array, "T N"]:
    """Binary teachers; later ones agree with the first on `(1 + overlap) / 2`."""
    first_key, flip_key = jax.random.split(key)
    first = jax.random.rademacher(first_key, (size,), jnp.float32)
    keep = jax.random.bernoulli(flip_key, (1 + overlap) / 2, (num_tasks, size))
    return first * jnp.where(keep.at[0].set(True), 1.0, -1.0)


def _over_weights(fn, size: int):
    """`fn(numbers)` for blocks of all 2^N weight vectors, stacked."""
    numbers = jnp.arange(2**size).reshape(-1, min(_BLOCK, 2**size))
    return jax.lax.map(fn, numbers)
