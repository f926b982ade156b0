"""Loss along lines and planes of weights, and magnitude pruning.

Source: Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis",
ICML 2020; Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.types import Params, PyTree


def mode_barrier(
    loss: Callable, first: Params, second: Params, *, num: int = 21
) -> Float[Array, ""]:
    """Highest rise of the loss above the straight line between two networks.

        max_t [L((1 - t) w1 + t w2) - (1 - t) L(w1) - t L(w2)], at least 0

    Args:
        loss: `(params) -> scalar`.
        first: w1.
        second: w2, of the same structure.
        num: points on the line, both ends included.
    """
    t = jnp.linspace(0, 1, num)
    losses = jax.lax.map(lambda t: loss(_mix(first, second, t)), t)
    return jnp.max(losses - (1 - t) * losses[0] - t * losses[-1])


def loss_plane(
    loss: Callable,
    origin: Params,
    first: Params,
    second: Params,
    grid: Float[Array, " G"],
) -> Float[Array, "G G"]:
    """Loss on the plane through three networks.

    L(w0 + a (w1 - w0) + b (w2 - w0)); row a, column b of the grid
    """

    def at(a, b):
        return loss(
            jax.tree.map(
                lambda o, u, v: o + a * (u - o) + b * (v - o), origin, first, second
            )
        )

    return jax.lax.map(lambda a: jax.lax.map(lambda b: at(a, b), grid), grid)


def magnitude_mask(params: Params, fraction: float) -> PyTree:
    """Ones where a weight is kept, zeros on the smallest `fraction` of all weights.

    The threshold is common to all arrays of the tree. Multiply params (and later
    updates) by it; rewinding is the mask times earlier params.

    Raises:
        ValueError: if the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(
            f"fraction must be in [0, 1), got {fraction}; 0.8 keeps a fifth."
        )
    sizes = jnp.concatenate([jnp.abs(w).reshape(-1) for w in jax.tree.leaves(params)])
    removed = int(fraction * sizes.shape[0])
    if removed == 0:
        return jax.tree.map(jnp.ones_like, params)
    threshold = jnp.sort(sizes)[removed - 1]
    return jax.tree.map(lambda w: (jnp.abs(w) > threshold).astype(w.dtype), params)


def _mix(first: Params, second: Params, t) -> Params:
    return jax.tree.map(lambda a, b: (1 - t) * a + t * b, first, second)
