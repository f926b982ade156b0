"""Fixed points as layers: z* = F(z*, x), and their derivative without the iterations.

    dz*/dθ = (I - ∂F/∂z)⁻¹ ∂F/∂θ   at z*

The way forward is Anderson acceleration; the way back solves the transposed linear
system without forming it, so memory does not grow with the number of iterations.
Shapes: N unknowns (any shape, one array).

Source: Bai et al., "Deep Equilibrium Models", NeurIPS 2019; Kidger, "On Neural
Differential Equations", 2022, section on implicit layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxwm.types import Params, PyTree


class FixedPoint(NamedTuple):
    """Where the iteration stopped."""

    z: Array  # like the first guess
    residual: Float[Array, ""]  # |F(z) - z| / (1 + |z|); large: F does not contract
    num_iterations: Int[Array, ""]


def fixed_point_layer(
    f: Callable[[Params, PyTree, Array], Array],
    params: Params,
    x: PyTree,
    z0: Array,
    *,
    memory: int = 5,
    tol: float = 1e-5,
    max_iterations: int = 100,
    backward: str = "gmres",
    backward_iterations: int = 50,
) -> FixedPoint:
    """Solves `z = f(params, x, z)`.

    Args:
        f: the map; should contract in z near the solution.
        params: gradients flow.
        x: input of the layer; gradients flow.
        z0: first guess; no gradient.
        memory: past iterates that Anderson's step combines; 1 iterates plainly.
        tol: stop at this residual.
        max_iterations: stop after so many calls of `f`.
        backward: "gmres", or "neumann": the series Σ (∂F/∂z)^T^k g, which converges
            where F contracts.
        backward_iterations: of GMRES at most, or terms of the series.

    Returns:
        The point and its residual. Where the residual stayed above `tol` the map may
        not contract: look before trusting value or gradient.

    Raises:
        ValueError: for settings that are not positive and an unknown `backward`.
    """
    for name, value in (
        ("memory", memory),
        ("max_iterations", max_iterations),
        ("backward_iterations", backward_iterations),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}.")
    if backward not in ("gmres", "neumann"):
        raise ValueError(f'backward must be "gmres" or "neumann", got {backward!r}.')

    @jax.custom_vjp
    def attach(params, x, z):
        return z

    def attach_forward(params, x, z):
        return z, (params, x, z)

    def attach_backward(kept, g):
        params, x, z = kept
        _, pull = jax.vjp(lambda z: f(params, x, z), z)
        if backward == "gmres":
            w, _ = jax.scipy.sparse.linalg.gmres(
                lambda w: w - pull(w)[0],
                g,
                tol=tol,
                restart=min(backward_iterations, g.size),
                maxiter=max(1, backward_iterations // g.size),
                solve_method="batched",
            )
        else:
            body = lambda _, w: g + pull(w)[0]
            w = jax.lax.fori_loop(0, backward_iterations, body, g)
        _, pull = jax.vjp(lambda params, x: f(params, x, z), params, x)
        return *pull(w), jnp.zeros_like(z)

    attach.defvjp(attach_forward, attach_backward)
    found = _anderson(
        lambda z: f(*jax.lax.stop_gradient((params, x)), z),
        jax.lax.stop_gradient(z0),
        memory,
        tol,
        max_iterations,
    )
    return found._replace(z=attach(params, x, found.z))


def _anderson(f, z0: Array, memory: int, tol: float, max_iterations: int) -> FixedPoint:
    """Iterates on the combination of past iterates whose residual is least."""
    size, dtype = z0.size, z0.dtype
    flat = lambda z: f(z.reshape(z0.shape)).reshape(-1)

    def body(carry):
        z, past_f, past_g, i, _ = carry
        new_f = flat(z)
        gap = new_f - z
        slot = i % memory
        past_f, past_g = past_f.at[slot].set(new_f), past_g.at[slot].set(gap)
        residual = jnp.linalg.norm(gap) / (1 + jnp.linalg.norm(z))
        # min |Σ a_k g_k| with Σ a_k = 1, over the rows filled so far.
        filled = (jnp.arange(memory) <= i).astype(dtype)
        gram = (past_g @ past_g.T) * jnp.outer(filled, filled)
        ridge = 1e-6 * jnp.trace(gram) + jnp.finfo(dtype).tiny
        gram = gram + jnp.diag(ridge + (1 - filled) * jnp.maximum(ridge, 1.0))
        a = jnp.linalg.solve(gram, filled)
        a = jnp.where(jnp.all(jnp.isfinite(a)), a, jnp.eye(memory, dtype=dtype)[slot])
        a = a / jnp.sum(a)
        return a @ past_f, past_f, past_g, i + 1, residual

    def go_on(carry):
        return (carry[3] < max_iterations) & ~(carry[4] <= tol)

    zeros = jnp.zeros((memory, size), dtype)
    first = (z0.reshape(-1), zeros, zeros, jnp.int32(0), jnp.array(jnp.inf, dtype))
    z, _, _, i, residual = jax.lax.while_loop(go_on, body, first)
    return FixedPoint(z.reshape(z0.shape), residual, i)
