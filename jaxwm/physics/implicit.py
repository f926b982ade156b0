"""Derivatives of solutions of equations, without differentiating the solver.

    g(x*, θ) = 0   =>   dx*/dθ = -(∂g/∂x)⁻¹ ∂g/∂θ

One Newton step from the frozen solution, its matrix frozen too, has exactly this
derivative, in forward and in reverse mode, and leaves the value where it is up to the
solver's own error. Shapes: N unknowns.

Source: Bai et al., "Deep Equilibrium Models", NeurIPS 2019; Blondel et al., "Efficient
and Modular Implicit Differentiation", NeurIPS 2022.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Residual = Callable[[Float[Array, " N"]], Float[Array, " N"]]


def differentiable(
    residual: Residual, solution: Float[Array, " N"]
) -> Float[Array, " N"]:
    """Attaches the implicit derivative to a solution found by any means.

    Args:
        residual: `x -> g(x, θ)`, which closes over the parameters θ.
        solution: x*; its own derivative is ignored.
    """
    x = jax.lax.stop_gradient(solution)
    # The matrix at frozen parameters: what depends on θ in it is of second order.
    matrix = jax.lax.stop_gradient(jax.jacfwd(residual)(x))
    correction = jnp.linalg.solve(matrix, residual(x))
    return x - correction


def newton(
    residual: Residual, first: Float[Array, " N"], *, iterations: int
) -> Float[Array, " N"]:
    """Solves `g(x) = 0` by Newton's method; the derivative is that of the solution.

    Args:
        residual: `x -> g(x, θ)`, smooth.
        first: where to start; needs no derivative.
        iterations: fixed number of steps, the last of which is `differentiable`'s.
    """

    def body(_, x):
        step = jnp.linalg.solve(jax.jacfwd(residual)(x), residual(x))
        return x - jax.lax.stop_gradient(step)

    x = jax.lax.fori_loop(0, iterations - 1, body, jax.lax.stop_gradient(first))
    return differentiable(residual, x)
