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
    f = (x * cells - base).T  # [d, N], in [0.5, 1.5)
    splines = jnp.stack(
        [0.5 * (1.5 - f) ** 2, 0.75 - (f - 1) ** 2, 0.5 * (f - 0.5) ** 2]
    )  # [3, d, N]
    steps = jnp.arange(3)[:, None]
    base = base.astype(int).T

    def along(axis, values):
        """`[3, N]` as a factor of `[3, ..., 3, N]`, the nodes around each particle."""
        return values.reshape([3 if a == axis else 1 for a in range(d)] + [-1])

    w = along(0, splines[:, 0])
    for axis in range(1, d):
        w = w * along(axis, splines[:, axis])
    away = [along(axis, (steps - f[axis]) * dx) for axis in range(d)]
    node = jnp.zeros((), base.dtype)
    for axis in range(d):
        # At the far wall the last node lies outside, with weight 0.
        inside = jnp.minimum(base[axis] + steps, cells)
        node = node * (cells + 1) + along(axis, inside)
    shape, size = (cells + 1,) * d, (cells + 1) ** d

    # Two layouts of the same sums, each chosen for its derivative: that of the scatter
    # is fastest by components, that of the gather by matrices.
    def to_grid(mass, momentum, affine):
        values = [w * mass]
        for i in range(d):
            moved = sum(affine[:, i, j] * away[j] for j in range(d))
            values.append(w * (momentum[:, i] + moved))
        grid = jnp.zeros((size, d + 1), x.dtype).at[node].add(jnp.stack(values, -1))
        grid = grid.reshape(*shape, d + 1)
        return grid[..., 0], grid[..., 1:]

    def from_grid(velocity):
        flat = lambda a: jnp.broadcast_to(a, w.shape).reshape(3**d, -1)
        at = flat(w)[..., None] * velocity.reshape(size, d)[flat(node)]  # [3^d, N, d]
        far = jnp.stack([flat(a) for a in away], -1)
        return jnp.sum(at, 0), (4 / dx**2) * jnp.einsum("opi,opj->pij", at, far)

    return Transfer(to_grid, from_grid)
