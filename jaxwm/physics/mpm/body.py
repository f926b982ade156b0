"""Bodies made of particles: where they are, how they move, how much each stands for."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Body(NamedTuple):
    """Particles before anything has deformed them."""

    x: Float[Array, "N d"]  # in the unit box
    v: Float[Array, "N d"]  # m/s
    C: Float[Array, "N d d"]  # 1/s, gradient of the velocity
    volume: Float[Array, " N"]  # m^d each


def block(
    centre: Sequence[float], sides: Sequence[float], counts: Sequence[int]
) -> Body:
    """A box of `counts` particles per axis, each amid its share, at rest."""
    centre, sides = np.asarray(centre, float), np.asarray(sides, float)
    _check(centre)
    if sides.shape != centre.shape or not np.all(sides > 0):
        raise ValueError(
            f"sides must be {len(centre)} positive lengths, one per axis, got {sides}."
        )
    if len(counts) != len(centre) or min(counts) < 1:
        raise ValueError(
            f"counts must be {len(centre)} positive numbers, one per axis, got "
            f"{counts}."
        )
    lines = [(np.arange(n) + 0.5) / n - 0.5 for n in counts]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(centre))
    return _at_rest(centre + sides * points, np.prod(sides / np.asarray(counts)))


def ball(centre: Sequence[float], radius: float, spacing: float) -> Body:
    """A disc or a ball, cut from a lattice of that spacing, at rest."""
    centre = np.asarray(centre, float)
    _check(centre)
    if not 0 < spacing <= radius:
        raise ValueError(
            f"spacing must be positive and at most the radius {radius}, got {spacing}."
        )
    reach = int(np.ceil(radius / spacing))
    line = (np.arange(2 * reach) - reach + 0.5) * spacing
    points = np.stack(np.meshgrid(*[line] * len(centre), indexing="ij"), -1)
    points = points.reshape(-1, len(centre))
    points = points[np.linalg.norm(points, axis=1) <= radius]
    return _at_rest(centre + points, spacing ** len(centre))


def moving(
    body: Body, velocity: Sequence[float] | Array, spin: float | Array = 0.0
) -> Body:
    """The same body in rigid motion: `v = velocity + spin x (x - centre of volume)`.

    Args:
        body: its velocities are replaced.
        velocity: of the centre, m/s, `[d]`.
        spin: rad/s; one number in 2-D, `[3]` in 3-D (0 in either is none).
    """
    velocity, spin = jnp.asarray(velocity), jnp.asarray(spin)
    centre = jnp.average(body.x, axis=0, weights=body.volume)
    away = body.x - centre
    if body.x.shape[1] == 2:
        C = spin * jnp.array([[0.0, -1.0], [1.0, 0.0]])
    else:
        C = jnp.cross(jnp.broadcast_to(spin, (3,)), jnp.eye(3), axisb=0, axisc=0)
    # Without C the body would spin slower: affine motion holds angular momentum too.
    return body._replace(v=velocity + away @ C.T, C=jnp.broadcast_to(C, body.C.shape))


def _at_rest(x: np.ndarray, volume: float) -> Body:
    x = jnp.asarray(x)
    n, d = x.shape
    still = jnp.zeros((n, d), x.dtype), jnp.zeros((n, d, d), x.dtype)
    return Body(x, *still, jnp.full(n, volume, x.dtype))


def _check(centre: np.ndarray) -> None:
    if centre.shape not in ((2,), (3,)):
        raise ValueError(
            f"centre must have 2 or 3 coordinates, got the shape {centre.shape}."
        )
