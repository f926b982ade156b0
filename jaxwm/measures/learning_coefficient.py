"""The local learning coefficient: how fast the set of equally good weights shrinks.

Source: Lau et al., "The Local Learning Coefficient: A Singularity-Aware Complexity
Measure", AISTATS 2025 (arXiv 2308.12108).
Shapes: K chains, S steps of a chain.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from jaxwm.types import Params


class LearningCoefficient(NamedTuple):
    """An estimate and what it was made of."""

    value: Float[Array, ""]  # mean over the chains
    chains: Float[Array, " K"]
    # Whether the weights looked like a minimum: a negative chain found lower losses
    # nearby, or one that is not finite diverged, and the value means nothing then.
    is_minimum: Bool[Array, ""]
    losses: Float[Array, "K S"]  # on the way, nats


def local_learning_coefficient(
    key: Key[Array, ""],
    params: Params,
    loss: Callable,
    num_examples: int,
    *,
    batch_loss: Callable | None = None,
    num_chains: int = 4,
    num_steps: int = 1000,
    burn_in: int = 500,
    step_size: float = 1e-5,
    pull: float = 100.0,
    beta: float | None = None,
) -> LearningCoefficient:
    """Samples weights near a minimum by Langevin dynamics and compares losses.

        lambda = n beta (E[L(w)] - L(w*)),   beta = 1 / ln n
        w <- w - eps / 2 (n beta grad L(w) + gamma (w - w*)) + sqrt(eps) N(0, 1)

    A regular minimum in d dimensions has d / 2, degenerate ones less. The pull
    gamma keeps chains near w*; directions in which `n beta` times the curvature is
    small beside it count as flat.

    Args:
        key: one fold per chain and step.
        params: w*, a minimum of `loss`; floating-point leaves only.
        loss: `(params) -> scalar`, mean loss in nats on all n examples.
        num_examples: n, at least 2.
        batch_loss: `(key, params) -> scalar` on a drawn minibatch: its gradient moves
            the chains then (SGLD), while `loss` still measures. None: `loss`.
        num_chains: K.
        num_steps: S, counted after `burn_in`.
        burn_in: steps that are not averaged.
        step_size: eps, stable below about 2 / (n beta times the largest curvature).
        pull: gamma.
        beta: inverse temperature; None gives 1 / ln n.

    Returns:
        The estimate; negative chains are flagged by `is_minimum`, not clipped.

    Raises:
        ValueError: for sizes that are not positive.
    """
    if num_examples < 2:
        raise ValueError(f"num_examples must be at least 2, got {num_examples}.")
    for name, value in (
        ("num_chains", num_chains),
        ("num_steps", num_steps),
        ("step_size", step_size),
    ):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    weight = num_examples * (1 / math.log(num_examples) if beta is None else beta)

    def one_loss(step_key, w):
        return loss(w) if batch_loss is None else batch_loss(step_key, w)

    def chain(chain_key):
        def step(w, i):
            noise_key, batch_key = jax.random.split(jax.random.fold_in(chain_key, i))
            grads = jax.grad(one_loss, 1)(batch_key, w)
            noise = optax.tree.random_like(noise_key, w, jax.random.normal)

            def move(w, w_star, g, e):
                drift = weight * g + pull * (w - w_star)
                return w - step_size / 2 * drift + math.sqrt(step_size) * e

            w = jax.tree.map(move, w, params, grads, noise)
            return w, loss(w)

        return jax.lax.scan(step, params, jnp.arange(burn_in + num_steps))[1]

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_chains))
    losses = jax.vmap(chain)(keys)
    chains = weight * (jnp.mean(losses[:, burn_in:], 1) - loss(params))
    is_minimum = jnp.all((chains >= 0) & jnp.isfinite(chains))
    return LearningCoefficient(jnp.mean(chains), chains, is_minimum, losses)
