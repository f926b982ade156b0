"""Guidance terms that edit the estimate, the mean or the denoiser.

Every `scale` is a number, a traced scalar, or a function of the `Step`.
Shapes: one sample `x`, any pytree.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.diffusion.sample import Step, Term
from jaxwm.types import PyTree

Scale = float | Float[Array, ""] | Callable[[Step], Array]


def inpaint(known: Callable[[PyTree], PyTree]) -> Term:
    """Holds what is known of the clean sample.

    Args:
        known: `(x) -> x` overwrites the known entries with their clean values, in the
            estimate and in the noisy sample alike: the network must have been trained
            with those entries clean. With a preconditioning that scales the network's
            input, give the same function to `denoiser` as well.
    """
    return Term(on_x0=lambda x0, cond, step: known(x0), on_x=known)


def clip(low: float = -1.0, high: float = 1.0) -> Term:
    """Limits the estimate of the clean sample."""
    limit = lambda x0: jnp.clip(x0, low, high)
    return Term(on_x0=lambda x0, cond, step: jax.tree.map(limit, x0))


def clip_change(most: float | Float[Array, ""], last: int = 11) -> Term:
    """Limits how far the mean moves from the noisy sample in the last calls.

    Args:
        most: largest change per entry.
        last: number of calls it is active for, counted from the end.

    Source: Rigter et al., TMLR 2024, reference code (levels 10 ... 0 of 128).
    """

    def on_mean(mean, step):
        limit = jnp.where(step.left < last, most, jnp.inf)
        return jax.tree.map(
            lambda m, x: x + jnp.clip(m - x, -limit, limit), mean, step.x
        )

    return Term(on_mean=on_mean)


def energy(cost: Callable[[PyTree], Array], scale: Scale) -> Term:
    """Moves the estimate down a cost: `x0 - scale * grad cost(x0)`."""

    def on_x0(x0, cond, step):
        grads = jax.grad(cost)(x0)
        return jax.tree.map(lambda x, g: x - _value(scale, step) * g, x0, grads)

    return Term(on_x0=on_x0)


def energy_on_mean(cost: Callable[[PyTree], Array], scale: Scale) -> Term:
    """Moves the mean down a cost: `mean - scale * spread^2 * grad cost(mean)`.

    `spread` is the posterior's standard deviation of the step, as in classifier
    guidance. Source: Dhariwal and Nichol, 2021, algorithm 1.
    """

    def on_mean(mean, step):
        rate = _value(scale, step) * step.spread**2
        return jax.tree.map(lambda m, g: m - rate * g, mean, jax.grad(cost)(mean))

    return Term(on_mean=on_mean)


def energy_through_network(
    cost: Callable[[PyTree], Array], scale: float | Array
) -> Term:
    """Moves the estimate down `cost(x0_hat(x))`, differentiated through the denoiser.

        x0_hat - scale * noise^2 / signal * grad_x cost(x0_hat(x))

    which shifts the score of the noisy sample by the cost's gradient (Tweedie). Twice
    the work of a call. Source: Chung et al., "Diffusion Posterior Sampling", 2023.
    """

    def wrap(denoise):
        def guided(x, level, cond):
            value = lambda x: (cost(x0 := denoise(x, level, cond)), x0)
            grads, x0 = jax.grad(value, has_aux=True)(x)
            rate = scale * level.noise**2 / level.signal
            return jax.tree.map(lambda x, g: x - rate * g, x0, grads)

        return guided

    return Term(wrap=wrap)


def classifier(log_prob: Callable, scale: float | Array) -> Term:
    """Adds `scale` times the score of a classifier of noisy samples.

        x0_hat + scale * noise^2 / signal * grad_x log_prob(x, level)

    With an exact denoiser and `scale` 1 this is the exact conditional denoiser.
    Source: Dhariwal and Nichol, 2021.
    """

    def wrap(denoise):
        def guided(x, level, cond):
            grads = jax.grad(log_prob)(x, level)
            rate = scale * level.noise**2 / level.signal
            x0 = denoise(x, level, cond)
            return jax.tree.map(lambda x, g: x + rate * g, x0, grads)

        return guided

    return Term(wrap=wrap)


def classifier_free(scale: float | Array, null: PyTree) -> Term:
    """Amplifies the condition: `x0(null) + scale * (x0(cond) - x0(null))`.

    Both are evaluated in one batch of two.

    Args:
        scale: 0 ignores the condition, 1 is plain conditional sampling.
        null: the condition that stands for none in training (`loss`'s `null`).

    Source: Ho and Salimans, 2022.
    """

    def wrap(denoise):
        def guided(x, level, cond):
            both = jax.tree.map(lambda c, n: jnp.stack([c, n]), cond, null)
            out = jax.vmap(lambda c: denoise(x, level, c))(both)
            return jax.tree.map(lambda o: o[1] + scale * (o[0] - o[1]), out)

        return guided

    return Term(wrap=wrap)


def _value(scale: Scale, step: Step):
    return scale(step) if callable(scale) else scale
