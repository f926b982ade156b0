"""Gradient estimators of `F(θ) = E_w f(θ + w)`, `w ~ N(0, σ² I)`, and of f itself.

    g1 = mean_i ∇f(θ + w_i)                                    first order
    g0 = mean_i (f(θ + w_i) - f(θ - w_i)) w_i / (2 σ²)         zeroth order
    g  = α g1 + (1 - α) g0                                     alpha order

With s1, s0 the variances of the two means (summed over coordinates), D = ||g1 - g0||
and ε = 1.96 sqrt(s0) the radius within which g0 is known:

    α = s0 / (s0 + s1), but at most (γ - ε) / D; and 0 where ε > γ

so that the bias is at most about γ. Shapes: P parameters in all, N samples.

Source: Suh et al., "Do Differentiable Simulators Give Better Policy Gradients?", ICML
2022.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxwm.types import PyTree

Objective = Callable[[PyTree, Key[Array, ""]], Array]  # (theta, key) -> scalar
Estimator = Callable[[PyTree, Key[Array, ""]], "GradEstimate"]


class GradEstimate(NamedTuple):
    """An estimated gradient, how far it may be off, and what it cost."""

    grad: PyTree  # like theta
    value: Float[Array, ""]  # of F, or of f
    variance: Float[Array, ""]  # of `grad`, summed over coordinates; 0 without samples
    alpha: Float[Array, ""]  # weight of the first-order part, in [0, 1]
    n_forward: int  # evaluations of f
    n_backward: int  # reverse passes


def first_order(objective: Objective, *, num: int, sigma: float) -> Estimator:
    """Mean of derivatives at N perturbed points.

    Args:
        objective: differentiable in reverse mode.
        num: N, at least 2, so that there is a variance.
        sigma: standard deviation of the perturbation; 0 only draws new keys.

    Raises:
        ValueError: for settings outside these bounds.
    """
    _check(num, sigma, smallest=0.0)

    def estimate(theta, key):
        values, grads, _ = _first(objective, theta, key, num, sigma)
        grad, variance = _mean(grads)
        return _estimate(theta, grad, values, variance, 1.0, num, num)

    return estimate


def zeroth_order(objective: Objective, *, num: int, sigma: float) -> Estimator:
    """Mean over N antithetic pairs; needs no derivative of f.

    Args:
        objective: any function; not finite values count as they are.
        num: N pairs, at least 2.
        sigma: standard deviation of the perturbation, above 0.
    """
    _check(num, sigma, smallest=None)

    def estimate(theta, key):
        values, grads, _ = _zeroth(objective, theta, key, num, sigma)
        grad, variance = _mean(grads)
        return _estimate(theta, grad, values, variance, 0.0, 2 * num, 0)

    return estimate


def alpha_order(
    objective: Objective, *, num: int, sigma: float, gamma: float | None = None
) -> Estimator:
    """The mixture with the smallest variance whose bias stays below gamma.

    Args:
        objective: differentiable in reverse mode.
        num: N samples of the first and N pairs of the zeroth order.
        sigma: standard deviation of the perturbation, above 0.
        gamma: largest bias, in units of the gradient; None is three standard errors of
            the zeroth-order mean.
    """
    _check(num, sigma, smallest=None)
    if gamma is not None and not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}.")

    def estimate(theta, key):
        first_key, zeroth_key = jax.random.split(key)
        _, first_grads, _ = _first(objective, theta, first_key, num, sigma)
        values, zeroth_grads, _ = _zeroth(objective, theta, zeroth_key, num, sigma)
        first_mean, first_variance = _mean(first_grads)
        zeroth_mean, zeroth_variance = _mean(zeroth_grads)
        error = jnp.sqrt(zeroth_variance)
        bound = 3 * error if gamma is None else gamma
        radius = 1.96 * error
        apart = jnp.linalg.norm(first_mean - zeroth_mean)
        total = zeroth_variance + first_variance
        best = zeroth_variance / jnp.where(total > 0, total, 1.0)
        best = jnp.where(total > 0, best, 1.0)
        most = (bound - radius) / jnp.where(apart > 0, apart, 1.0)
        alpha = jnp.where(apart > 0, jnp.minimum(best, most), best)
        alpha = jnp.where(radius > bound, 0.0, alpha)
        # A first order that is not finite must not spoil the rest through 0 * inf.
        usable = jnp.isfinite(first_variance) & jnp.all(jnp.isfinite(first_mean))
        alpha = jnp.where(usable, alpha, 0.0)
        safe = jnp.where(usable, first_mean, 0.0)
        grad = alpha * safe + (1 - alpha) * zeroth_mean
        variance = (1 - alpha) ** 2 * zeroth_variance
        variance += alpha**2 * jnp.where(usable, first_variance, 0.0)
        return _estimate(theta, grad, values, variance, alpha, 3 * num, num)

    return estimate


def finite_difference(objective: Objective, *, step: float) -> Estimator:
    """Central differences of f, one coordinate after another.

    Args:
        objective: any function.
        step: of each coordinate. In float32 about 1e-3 of a parameter's size: smaller
            ones drown in rounding.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}.")

    def estimate(theta, key):
        flat, unravel = ravel_pytree(theta)
        shifts = step * jnp.eye(flat.size, dtype=flat.dtype)
        value = lambda x: objective(unravel(x), key)
        slopes = jax.lax.map(
            lambda shift: (value(flat + shift) - value(flat - shift)) / (2 * step),
            shifts,
        )
        values = value(flat)[None]
        cost = 2 * flat.size + 1
        return _estimate(theta, slopes, values, jnp.zeros(()), 1.0, cost, 0)

    return estimate


def forward_mode(objective: Objective) -> Estimator:
    """Exact derivative of f by one tangent per coordinate; passes `while_loop`s."""

    def estimate(theta, key):
        flat, unravel = ravel_pytree(theta)
        value = lambda x: objective(unravel(x), key)
        grad = jax.jacfwd(value)(flat)
        zero = jnp.zeros(())
        return _estimate(theta, grad, value(flat)[None], zero, 1.0, flat.size + 1, 0)

    return estimate


def _first(objective, theta, key, num, sigma):
    """Values `[N]`, derivatives `[N, P]` and perturbations at perturbed points."""
    flat, unravel = ravel_pytree(theta)

    def one(key):
        noise_key, own_key = jax.random.split(key)
        w = sigma * jax.random.normal(noise_key, flat.shape, flat.dtype)
        value = lambda x: objective(unravel(x), own_key)
        return *jax.value_and_grad(value)(flat + w), w

    return jax.vmap(one)(jax.random.split(key, num))


def _zeroth(objective, theta, key, num, sigma):
    """Values `[N]`, single estimates `[N, P]` and perturbations of antithetic pairs."""
    flat, unravel = ravel_pytree(theta)

    def one(key):
        noise_key, own_key = jax.random.split(key)
        w = sigma * jax.random.normal(noise_key, flat.shape, flat.dtype)
        ends = jax.vmap(lambda s: objective(unravel(flat + s * w), own_key))
        up, down = ends(jnp.array([1.0, -1.0], flat.dtype))
        return (up + down) / 2, (up - down) / (2 * sigma**2) * w, w

    return jax.vmap(one)(jax.random.split(key, num))


def _mean(grads: Float[Array, "N P"]):
    """Mean, and the variance of the mean summed over coordinates."""
    variance = jnp.sum(jnp.var(grads, 0, ddof=1)) / grads.shape[0]
    return jnp.mean(grads, 0), variance


def _estimate(theta, flat, values, variance, alpha, n_forward, n_backward):
    _, unravel = ravel_pytree(theta)
    return GradEstimate(
        unravel(flat),
        jnp.mean(values),
        variance,
        jnp.asarray(alpha, jnp.result_type(float)),
        n_forward,
        n_backward,
    )


def _check(num: int, sigma: float, smallest: float | None) -> None:
    if num < 2:
        raise ValueError(
            f"num must be at least 2 samples, got {num}; one has no variance."
        )
    if smallest is None and not sigma > 0:
        raise ValueError(
            f"sigma must be positive, got {sigma}; without a perturbation there are "
            "no differences to take."
        )
    if not sigma >= 0:
        raise ValueError(f"sigma must not be negative, got {sigma}.")
