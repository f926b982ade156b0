"""The denoising loss, and how training levels are drawn.

Shapes: one sample `x0`, any pytree.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.diffusion.levels import Level, add_noise, sigma_level, standard_normal
from jaxwm.diffusion.precondition import Denoiser, Scalings, predict_x0
from jaxwm.types import PyTree

LevelSampler = Callable[[Key[Array, ""]], Level]


def uniform(schedule: Level) -> LevelSampler:
    """Every level of a schedule with equal probability."""
    table = jax.tree.map(lambda f: jnp.asarray(f, jnp.float32), schedule)

    def draw(key):
        i = jax.random.randint(key, (), 0, table.signal.shape[0])
        return jax.tree.map(lambda field: field[i], table)

    return draw


def lognormal(
    mean: float = -1.2,
    std: float = 1.2,
    *,
    low: float = 0.0,
    high: float = float("inf"),
) -> LevelSampler:
    """Sigma levels with `ln sigma ~ N(mean, std^2)`, clipped to [low, high].

    Source: Karras et al., 2022. For trajectories of world models the published values
    put too few samples at high noise: means near -0.4 and std near 1.7, or `uniform`
    over a cosine schedule, do better.
    """

    def draw(key):
        sigma = jnp.exp(mean + std * jax.random.normal(key))
        return sigma_level(jnp.clip(sigma, low, high))

    return draw


def log_logistic(
    location: float = 0.5,
    scale: float = 0.5,
    *,
    low: float = 1e-3,
    high: float = 80.0,
) -> LevelSampler:
    """Sigma levels log-logistic around `location`, truncated to [low, high].

    `ln sigma` is logistic with mean `ln location` and scale `scale`.
    """

    def cdf(sigma):
        return jax.nn.sigmoid((jnp.log(sigma) - jnp.log(location)) / scale)

    def draw(key):
        u = jax.random.uniform(key, minval=cdf(low), maxval=cdf(high))
        return sigma_level(location * jnp.exp(scale * jax.scipy.special.logit(u)))

    return draw


def squared_error(
    denoise: Denoiser,
    level: Level,
    noise: PyTree,
    x0: PyTree,
    cond: PyTree = None,
) -> PyTree:
    """`(x0_hat - x0)^2`, entry by entry, for a given level and noise."""
    x0_hat = denoise(add_noise(level, x0, noise), level, cond)
    return jax.tree.map(lambda a, b: (a - b) ** 2, x0_hat, x0)


def loss(
    key: Key[Array, ""],
    denoise: Denoiser,
    levels: LevelSampler,
    x0: PyTree,
    cond: PyTree = None,
    *,
    weight: Callable[[Level], Array] | None = None,
    scalings: Callable[[Level], Scalings] = predict_x0,
    mask: PyTree = None,
    null: PyTree = None,
    dropout: float = 0.0,
    offset: float = 0.0,
) -> tuple[Float[Array, ""], PyTree]:
    """Weighted mean squared error of the denoised sample.

        E weight(level) |x0_hat - x0|^2,  weight = 1 / output(level)^2 by default

    With the default weight it is the mean squared error of the network's own output
    (of x0, eps, v, or EDM's target), whichever preconditioning is in use.

    Args:
        key: draws level, noise and whether the condition is dropped.
        denoise: made by `denoiser` with the same scalings.
        levels: `uniform(schedule)`, `lognormal(...)` or `log_logistic(...)`.
        x0: clean sample in the model's units.
        cond: condition.
        weight: replaces the default weight.
        scalings: the preconditioning that `denoise` was made with.
        mask: like `x0` or broadcastable to its leaves; 0 leaves entries out of the
            mean. An empty mask gives 0.
        null: condition that stands for none; needed with `dropout`.
        dropout: probability of training without the condition (classifier-free).
        offset: standard deviation of noise common to all entries of a leaf.

    Returns:
        The loss and the unweighted squared errors, shaped like `x0`.

    Raises:
        ValueError: if `dropout` is a number outside [0, 1), or needs `null`.
    """
    if dropout and null is None:
        raise ValueError(f"dropout = {dropout} needs null, the condition for none.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}.")
    level_key, noise_key, drop_key, offset_key = jax.random.split(key, 4)
    level = levels(level_key)
    noise = standard_normal(noise_key, x0)
    if offset:
        shared = standard_normal(offset_key, jax.tree.map(lambda x: jnp.zeros(()), x0))
        # Added to eps, so that it enters x as noise * offset, whatever the level.
        noise = jax.tree.map(lambda e, s: e + offset / level.noise * s, noise, shared)
    if dropout:
        drop = jax.random.bernoulli(drop_key, dropout)
        cond = jax.tree.map(lambda c, n: jnp.where(drop, n, c), cond, null)
    error = squared_error(denoise, level, noise, x0, cond)
    factor = 1 / scalings(level).output ** 2 if weight is None else weight(level)
    return factor * _mean(error, mask), error


def _mean(error: PyTree, mask: PyTree) -> Float[Array, ""]:
    """Mean over all entries of all leaves, by mask where one is given."""
    leaves = jax.tree.leaves(error)
    if mask is None:
        return sum(jnp.sum(e) for e in leaves) / sum(e.size for e in leaves)
    masks = jax.tree.leaves(
        jax.tree.map(lambda e, m: jnp.broadcast_to(m, e.shape), error, mask)
    )
    total = sum(jnp.sum(e * m) for e, m in zip(leaves, masks, strict=True))
    return total / jnp.maximum(sum(jnp.sum(m) for m in masks), 1.0)
