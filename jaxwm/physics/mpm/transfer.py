"""Between particles and grid: quadratic B-splines, affine velocities.

    m_i = Σ_p w_ip m_p,    (mv)_i = Σ_p w_ip (m_p v_p + A_p (x_i - x_p))
    v_p = Σ_i w_ip v_i,    C_p = 4/dx² Σ_i w_ip v_i (x_i - x_p)'

Each particle touches the 3^d nodes around it, of 0 ... n per axis. The spline weights
sum to one, their first moments about x_p to zero and their second ones to dx²/4, which
makes mass, momentum and angular momentum exact. Scatter-add runs in no fixed order on
a GPU: sums differ in their last bits between runs there.

Source: Hu et al., "A Moving Least Squares Material Point Method", 2018; Jiang et al.,
"The Affine Particle-In-Cell Method", 2015.
Shapes: N particles, d dimensions, grid `[n + 1] * d`.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Transfer(NamedTuple):
    """Sums over one set of positions.

    to_grid: `(mass [N], momentum [N, d], affine [N, d, d])` to mass `[*grid]` and
        momentum `[*grid, d]`
    from_grid: velocity `[*grid, d]` to `(v [N, d], C [N, d, d])`
    """

    to_grid: Callable
    from_grid: Callable


def between(x: Float[Array, "N d"], cells: int) -> Transfer:
    """The sums of particles at x in the unit box, by scatter and gather."""
    d, dx = x.shape[1], 1 / cells
    base = jnp.floor(x * cells - 0.5)
    f = x * cells - base  # in [0.5, 1.5)
    weights = jnp.stack(
        [0.5 * (1.5 - f) ** 2, 0.75 - (f - 1) ** 2, 0.5 * (f - 0.5) ** 2]
    )  # [3, N, d]
    offsets = jnp.array(list(itertools.product(range(3), repeat=d)))  # [3^d, d]
    w = weights[offsets[:, 0], :, 0]
    for axis in range(1, d):
        w = w * weights[offsets[:, axis], :, axis]  # [3^d, N]
    away = (offsets[:, None] - f) * dx  # [3^d, N, d]
    node = base.astype(int) + offsets[:, None]
    # At the far wall the last node lies outside, with weight 0.
    node = tuple(jnp.minimum(node[..., axis], cells) for axis in range(d))
    shape = (cells + 1,) * d

    def to_grid(mass, momentum, affine):
        moved = momentum + jnp.einsum("pij,opj->opi", affine, away)
        both = jnp.concatenate(
            [jnp.broadcast_to(mass, w.shape)[..., None], moved], axis=-1
        )
        grid = jnp.zeros((*shape, d + 1), x.dtype).at[node].add(w[..., None] * both)
        return grid[..., 0], grid[..., 1:]

    def from_grid(velocity):
        at = w[..., None] * velocity[node]  # [3^d, N, d]
        C = (4 / dx**2) * jnp.einsum("opi,opj->pij", at, away)
        return jnp.sum(at, 0), C

    return Transfer(to_grid, from_grid)
