"""Elastic laws: deformation gradient to Kirchhoff stress τ = P F', Pa.

All are isotropic and vanish at rest. F = U diag(s) V' = P R, J = det F; in 2-D they are
those of plane strain. Source: Ma et al., "Learning Neural Constitutive Laws From Motion
Observations for Generalizable PDE Dynamics", ICML 2023 (jelly, plasticine and sand,
water); Stomakhin et al., "Energetically Consistent Invertible Elasticity", 2012.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.physics.mpm import decompose
from jaxwm.physics.mpm.law import Law, check, lame

SMALLEST = 0.05  # stretch below which logarithms are not taken


def corotated(E: float = 1e5, nu: float = 0.2) -> Law:
    """Fixed corotated elasticity, jelly; finite for inverted F as well.

    ψ = μ |F - R|² + λ/2 (J - 1)²,   τ = 2μ (F - R) F' + λ J (J - 1) 1
    """

    def apply(params, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        mu, la = lame(params)
        J = jnp.linalg.det(F)
        shear = 2 * mu * (F - decompose.rotation(F)) @ F.T
        return shear + la * J * (J - 1) * jnp.eye(F.shape[0], dtype=F.dtype)

    def energy(params, F):
        mu, la = lame(params)
        away = F - decompose.rotation(F)
        return mu * jnp.sum(away**2) + 0.5 * la * (jnp.linalg.det(F) - 1) ** 2

    return _law("corotated elasticity", E, nu, apply, energy)


def neo_hookean(E: float = 1e5, nu: float = 0.2) -> Law:
    """Compressible neo-Hookean elasticity; NaN for det F <= 0, which it forbids.

    ψ = μ/2 (|F|² - d) - μ log J + λ/2 log² J,   τ = μ (F F' - 1) + λ log J 1
    """

    def apply(params, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        mu, la = lame(params)
        one = jnp.eye(F.shape[0], dtype=F.dtype)
        return mu * (F @ F.T - one) + la * jnp.log(jnp.linalg.det(F)) * one

    def energy(params, F):
        mu, la = lame(params)
        log = jnp.log(jnp.linalg.det(F))
        return 0.5 * mu * (jnp.sum(F**2) - F.shape[0]) - mu * log + 0.5 * la * log**2

    return _law("neo-Hookean elasticity", E, nu, apply, energy)


def hencky(E: float = 3e5, nu: float = 0.25) -> Law:
    """Linear in logarithmic strain e = log s: what plasticine and sand are made of.

    ψ = μ |e|² + λ/2 (Σe)²,   τ = U diag(2μ e + λ Σe) U',   s at least 0.05
    """

    def stress(params, s):
        mu, la = lame(params)
        e = jnp.log(jnp.maximum(s, SMALLEST))
        return 2 * mu * e + la * jnp.sum(e)

    def apply(params, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return decompose.spectral(stress, params, decompose.polar(F)[0])

    def energy(params, F):
        mu, la = lame(params)
        e = jnp.log(jnp.maximum(decompose.svd(F)[1], SMALLEST))
        return mu * jnp.sum(e**2) + 0.5 * la * jnp.sum(e) ** 2

    return _law("Hencky elasticity", E, nu, apply, energy)


def fluid(E: float = 1e5, nu: float = 0.3) -> Law:
    """Pressure only, water: ψ = λ/2 (J - 1)², τ = λ J (J - 1) 1."""

    def apply(params, F: Float[Array, "d d"]) -> Float[Array, "d d"]:
        J = jnp.linalg.det(F)
        return lame(params)[1] * J * (J - 1) * jnp.eye(F.shape[0], dtype=F.dtype)

    def energy(params, F):
        return 0.5 * lame(params)[1] * (jnp.linalg.det(F) - 1) ** 2

    law = _law("a fluid", E, nu, apply, energy)
    return law._replace(modulus=lambda params: lame(params)[1])


def _law(name, E, nu, apply, energy) -> Law:
    params = {"E": E, "nu": nu}
    check(params, name)

    def modulus(params):
        mu, la = lame(params)
        return la + 2 * mu

    return Law(name, params, apply, energy, modulus)
