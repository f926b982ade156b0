"""The material point method in plain numpy, 2-D: what vectorised Python can do.

The same equations as `jaxwm.physics.mpm` with corotated elasticity and walls that slip,
all particles and all nine nodes at once, sums over nodes by `bincount`.
"""

import itertools

import numpy as np

OFFSETS = np.array(list(itertools.product(range(3), repeat=2)))
WALL = 3  # layers of nodes that count as wall


def lame(E, nu):
    return E / (2 * (1 + nu)), E * nu / ((1 + nu) * (1 - 2 * nu))


def stress(F, mu, la):
    """Kirchhoff stress of fixed corotated elasticity, `[N, 2, 2]`."""
    c, s = F[:, 0, 0] + F[:, 1, 1], F[:, 1, 0] - F[:, 0, 1]
    length = np.hypot(c, s)
    c, s = c / length, s / length
    R = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], 1)
    J = F[:, 0, 0] * F[:, 1, 1] - F[:, 0, 1] * F[:, 1, 0]
    pressure = la * J * (J - 1)
    return 2 * mu * (F - R) @ F.swapaxes(1, 2) + pressure[:, None, None] * np.eye(
        2, dtype=F.dtype
    )


def step(state, *, mass, volume, mu, la, cells, dt, gravity):
    """One step of `(x [N, 2], v [N, 2], C [N, 2, 2], F [N, 2, 2])`."""
    x, v, C, F = state
    dx = np.float32(1 / cells)
    affine = mass[:, None, None] * C
    affine = affine - dt * 4 / dx**2 * volume[:, None, None] * stress(F, mu, la)

    base = np.floor(x * cells - 0.5)
    f = (x * cells - base).astype(x.dtype)
    spline = np.stack([0.5 * (1.5 - f) ** 2, 0.75 - (f - 1) ** 2, 0.5 * (f - 0.5) ** 2])
    w = spline[OFFSETS[:, 0], :, 0] * spline[OFFSETS[:, 1], :, 1]  # [9, N]
    away = (OFFSETS[:, None].astype(x.dtype) - f) * dx  # [9, N, 2]
    node = base.astype(np.int64) + OFFSETS[:, None]
    node = (node[..., 0] * (cells + 1) + node[..., 1]).reshape(-1)
    size = (cells + 1) ** 2

    moved = mass[:, None] * v + np.einsum("pij,opj->opi", affine, away)
    moved = w[..., None] * moved
    total = lambda values: np.bincount(node, values.reshape(-1), size).astype(x.dtype)
    grid_mass = total(w * mass)
    momentum = np.stack([total(moved[..., 0]), total(moved[..., 1])], -1)
    held = (grid_mass > 1e-7 * dx**2)[:, None]
    share = np.where(held, grid_mass[:, None], 1)
    velocity = np.where(held, momentum / share, 0) + dt * gravity

    velocity = velocity.reshape(cells + 1, cells + 1, 2)
    for axis in range(2):
        sides = np.moveaxis(velocity[..., axis], axis, 0)
        np.maximum(sides[:WALL], 0, out=sides[:WALL])
        last = cells - WALL + 1
        np.minimum(sides[last:], 0, out=sides[last:])

    at = w[..., None] * velocity.reshape(-1, 2)[node].reshape(9, -1, 2)
    v = at.sum(0)
    C = 4 / dx**2 * np.einsum("opi,opj->pij", at, away)
    x = np.clip(x + dt * v, 0.5 * dx, 1 - 0.5 * dx)
    return x, v, C, F + dt * C @ F


def simulate(state, num_steps, **settings):
    """The state after so many steps, in float32."""
    single = lambda a: np.asarray(a, np.float32)
    settings = {k: v if k == "cells" else single(v) for k, v in settings.items()}
    state = tuple(map(single, state))
    for _ in range(num_steps):
        state = step(state, **settings)
    return state
