"""Plastic laws: what of a trial deformation is elastic; the rest is forgotten.

    F_trial = U diag(s) V',   e = log s,   ê = e - mean(e),   F = U diag(exp e') V'

e' is e returned to the yield surface. Source: Ma et al., ICML 2023 (plasticine, sand,
water); Klár et al., "Drucker-Prager Elastoplasticity for Sand Animation", 2016.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.physics.mpm import decompose
from jaxwm.physics.mpm.elasticity import SMALLEST
from jaxwm.physics.mpm.law import Law, check, lame


def identity() -> Law:
    """Forgets nothing: a purely elastic body."""
    return Law("identity", {}, lambda params, F: F)


def von_mises(E: float = 3e5, nu: float = 0.25, sigma_y: float = 5e3) -> Law:
    """Yields where shear reaches the strength sigma_y, Pa: metal, plasticine.

    δ = |ê| - σ_y / 2μ;   e' = e - δ ê/|ê| where δ > 0
    """

    def stretch(params, s):
        e, away, length = _strain(s)
        mu, _ = lame(params)
        excess = length - params["sigma_y"] / (2 * mu)
        return jnp.exp(e - jnp.maximum(excess, 0.0) * away / _safe(length))

    return _law("von Mises plasticity", stretch, E=E, nu=nu, sigma_y=sigma_y)


def drucker_prager(
    E: float = 1e6, nu: float = 0.2, phi: float = 0.4363, cohesion: float = 0.0
) -> Law:
    """Friction of grains at the angle phi, rad; no tension beyond the cohesion: sand.

    a = √(2/3) 2 sin φ / (3 - sin φ);   where Σe < d c:
    δ = |ê| + (d λ + 2μ)/(2μ) (Σe - d c) a,   e' = e - max(δ, 0) ê/|ê|
    elsewhere e' = c
    """

    def stretch(params, s):
        e, away, length = _strain(s)
        mu, la = lame(params)
        d, c, sine = len(s), params["cohesion"], jnp.sin(params["phi"])
        friction = (2 / 3) ** 0.5 * 2 * sine / (3 - sine)
        pressed = jnp.sum(e) - d * c
        excess = length + (d * la + 2 * mu) / (2 * mu) * pressed * friction
        held = e - jnp.maximum(excess, 0.0) * away / _safe(length)
        return jnp.exp(jnp.where(pressed < 0, held, c))

    return _law(
        "Drucker-Prager plasticity", stretch, E=E, nu=nu, phi=phi, cohesion=cohesion
    )


def fluid() -> Law:
    """Forgets all but the volume: F = J^(1/d) 1; J at least 0.05^d."""

    def apply(params, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        del params
        d = F.shape[0]
        J = jnp.maximum(jnp.linalg.det(F), SMALLEST**d)
        return J ** (1 / d) * jnp.eye(d, dtype=F.dtype)

    return Law("fluid plasticity", {}, apply)


def _law(name, stretch, **params) -> Law:
    check(params, name)

    def apply(params, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        P, R = decompose.polar(F)
        return decompose.spectral(stretch, params, P) @ R

    return Law(name, params, apply)


def _strain(s: Array):
    """Logarithmic strain, its deviator and the deviator's length."""
    e = jnp.log(jnp.maximum(s, SMALLEST))
    away = e - jnp.mean(e)
    squares = jnp.sum(away**2)
    # The root has no slope at 0, where nothing yields.
    length = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return e, away, length


def _safe(length: Array) -> Array:
    return jnp.where(length > 0, length, 1.0)
