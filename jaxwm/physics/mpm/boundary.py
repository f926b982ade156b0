"""Walls of the unit box, as conditions on the velocities of grid nodes.

A wall is `(velocity [*grid, d], cells) -> velocity`. Layers of nodes next to the walls
count as wall, so that particles, whose splines reach 1.5 cells, feel it in time.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float


def free_slip(layers: int = 3) -> Callable:
    """Bodies slide along walls and part from them: only motion into a wall stops."""
    _check(layers)

    def wall(velocity: Float[Array, "... d"], cells: int) -> Float[Array, "... d"]:
        index = _index(velocity, cells)
        into = ((index < layers) & (velocity < 0)) | (
            (index > cells - layers) & (velocity > 0)
        )
        return jnp.where(into, 0.0, velocity)

    return wall


def no_slip(layers: int = 3) -> Callable:
    """Bodies stick to walls: nothing moves there."""
    _check(layers)

    def wall(velocity: Float[Array, "... d"], cells: int) -> Float[Array, "... d"]:
        index = _index(velocity, cells)
        inside = (index >= layers) & (index <= cells - layers)
        return jnp.where(jnp.all(inside, -1, keepdims=True), velocity, 0.0)

    return wall


def _index(velocity: Array, cells: int) -> Array:
    """Index of every node along every axis, `[*grid, d]`."""
    axes = jnp.meshgrid(*[jnp.arange(cells + 1)] * velocity.shape[-1], indexing="ij")
    return jnp.stack(axes, -1)


def _check(layers: int) -> None:
    if layers < 1:
        raise ValueError(f"layers must be at least 1 node, got {layers}.")
