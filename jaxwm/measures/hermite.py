"""Hermite polynomials and expectations under the standard normal.

Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", chapter 22, and
25.4.46 for the quadrature.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def gauss_hermite(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights with `sum_i w_i f(z_i) = E f(z)`, z standard normal.

    Exact for polynomials of degree below `2 num_nodes`. Computed on the host in
    float64; weights sum to one.

    Raises:
        ValueError: if there is no node, or more than 180 (weights then underflow).
    """
    if not 1 <= num_nodes <= 180:
        raise ValueError(
            f"num_nodes must be in 1 ... 180, got {num_nodes}; 120 are enough for "
            "smooth functions."
        )
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return nodes, weights / np.sum(weights)


def hermite(degree: int, z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Normalised probabilists' polynomial `h_k = He_k / sqrt(k!)`.

        He_0 = 1,  He_1 = z,  He_{k+1} = z He_k - k He_{k-1};  E[h_j h_k] = delta_jk

    Raises:
        ValueError: if the degree is negative.
    """
    if degree < 0:
        raise ValueError(f"degree must be at least 0, got {degree}; 0 is the constant.")
    before, now = jnp.zeros_like(z), jnp.ones_like(z)
    for k in range(degree):
        before, now = now, z * now - k * before
    return now / math.sqrt(math.factorial(degree))


def hermite_series(
    coefficients: tuple[float, ...], z: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`sum_k c_k h_k(z)`; its mean square under the normal is `sum_k c_k^2`."""
    return sum(c * hermite(k, z) for k, c in enumerate(coefficients))


def hermite_coefficients(
    fn: Callable, degree: int, *, num_nodes: int = 120
) -> Float[Array, " {degree}+1"]:
    """`c_k = E[fn(z) h_k(z)]` for k = 0 ... degree, by Gauss-Hermite quadrature.

    Args:
        fn: elementwise function of an array.
        degree: of the last coefficient.
        num_nodes: of the quadrature; functions with kinks converge slowly.
    """
    nodes, weights = gauss_hermite(num_nodes)
    values = jnp.asarray(weights) * fn(jnp.asarray(nodes))
    basis = jnp.stack([hermite(k, jnp.asarray(nodes)) for k in range(degree + 1)])
    return jnp.dot(basis, values, precision=jax.lax.Precision.HIGHEST)
