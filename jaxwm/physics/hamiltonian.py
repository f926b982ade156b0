"""Conservative systems given by their energy, and their motion.

    dq/dt = ∂H/∂p,   dp/dt = -∂H/∂q

All constants are 1; H = |p|²/2 + V(q). Shapes: N bodies, D coordinates of each, S
states. Systems of different size share one shape by padding and a mask.

| system | N, D | V |
|---|---|---|
| `MASS_SPRING` | 1, 1 | q²/2 |
| `PENDULUM` | 1, 1 | 1 - cos q |
| `HENON_HEILES` | 1, 2 | (x² + y²)/2 + x² y - y³/3 |
| `QUARTIC` | 1, 2 | (x² + y²)/2 + x² y²/2, a magnetic mirror in its plane |
| `n_body(N)` | N, 2 | -Σ_{i<j} 1 / sqrt(\\|q_i - q_j\\|² + soft²) |

Source: Hénon and Heiles, "The applicability of the third integral of motion", 1964;
Hairer, Lubich, Wanner, "Geometric Numerical Integration", 2006.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.physics import integrate


class Hamiltonian(NamedTuple):
    """A system: its potential, its size, and how far out its motions begin."""

    name: str
    potential: Callable  # q [N, D] -> []
    num_bodies: int
    size: int  # D
    spread: float  # starts are uniform within it, in q and p

    def energy(self, q: Float[Array, "N D"], p: Float[Array, "N D"]):
        """`|p|²/2 + V(q)`."""
        return 0.5 * jnp.sum(p**2) + self.potential(q)


MASS_SPRING = Hamiltonian("mass_spring", lambda q: 0.5 * jnp.sum(q**2), 1, 1, 1.5)
PENDULUM = Hamiltonian("pendulum", lambda q: jnp.sum(1 - jnp.cos(q)), 1, 1, 1.5)


def _henon_heiles(q):
    x, y = q[0]
    return 0.5 * (x**2 + y**2) + x**2 * y - y**3 / 3


def _quartic(q):
    x, y = q[0]
    return 0.5 * (x**2 + y**2) + 0.5 * x**2 * y**2


# All starts lie below the energy 1/6 from which orbits escape.
HENON_HEILES = Hamiltonian("henon_heiles", _henon_heiles, 1, 2, 0.25)
QUARTIC = Hamiltonian("quartic", _quartic, 1, 2, 1.5)


def n_body(num_bodies: int, *, soft: float = 0.3) -> Hamiltonian:
    """Gravity in the plane; `soft` bounds the force of a near encounter."""
    if num_bodies < 2:
        raise ValueError(f"num_bodies must be at least 2, got {num_bodies}.")

    def potential(q):
        apart = q[:, None] - q[None, :]
        inverse = 1 / jnp.sqrt(jnp.sum(apart**2, -1) + soft**2)
        return -0.5 * (jnp.sum(inverse) - num_bodies / soft)

    return Hamiltonian(f"{num_bodies}_body", potential, num_bodies, 2, 1.0)


class PhaseData(NamedTuple):
    """States and their derivatives; axes in front of [N, D] are free."""

    q: Float[Array, "*S N D"]
    p: Float[Array, "*S N D"]
    dq: Float[Array, "*S N D"]
    dp: Float[Array, "*S N D"]
    mask: Float[Array, "*S N D"]  # 1 where a coordinate exists


def field(energy: Callable, q: Array, p: Array, mask: Array | float = 1.0):
    """Hamilton's equations of any `energy(q, p)`: `(∂H/∂p, -∂H/∂q)`.

    `mask` sets rates of coordinates that do not exist to 0; what remains is still
    Hamiltonian in those that do.

    Raises:
        ValueError: if q and p differ in shape.
    """
    if q.shape != p.shape:
        raise ValueError(f"q and p must have the same shape, got {q.shape}, {p.shape}.")
    by_q, by_p = jax.grad(energy, (0, 1))(q, p)
    return mask * by_p, -mask * by_q


def sample(
    key: Key[Array, ""],
    system: Hamiltonian,
    num: int,
    *,
    duration: float = 10.0,
    dt: float = 0.05,
) -> PhaseData:
    """States on `num` motions, one each, at times uniform in [0, duration].

    Args:
        key: draws starts and times.
        system: whose motions.
        num: S.
        duration: of the longest motion.
        dt: step of the (symplectic) leapfrog.
    """
    start_key, time_key = jax.random.split(key)
    shape = (num, 2, system.num_bodies, system.size)
    start = system.spread * jax.random.uniform(start_key, shape, minval=-1.0)
    length = jax.random.uniform(time_key, (num,), maxval=duration)
    num_steps = round(duration / dt)
    force = lambda q, p: -jax.grad(system.potential)(q)

    def move(start, length):
        # The same number of steps for all: each has its own length.
        body = lambda _, x: integrate.leapfrog(force, x[0], x[1], length / num_steps)
        return jax.lax.fori_loop(0, num_steps, body, (start[0], start[1]))

    q, p = jax.vmap(move)(start, length)
    dq, dp = jax.vmap(lambda q, p: field(system.energy, q, p))(q, p)
    return PhaseData(q, p, dq, dp, jnp.ones_like(q))


def pad(data: PhaseData, num_bodies: int, size: int) -> PhaseData:
    """Zeros up to `num_bodies` bodies of `size` coordinates; the mask says where.

    Raises:
        ValueError: if there are more of either.
    """
    bodies, coordinates = data.q.shape[-2:]
    if bodies > num_bodies or coordinates > size:
        raise ValueError(
            f"data must have at most {num_bodies} bodies of {size} coordinates, got "
            f"{bodies} of {coordinates}; pad to the largest system."
        )
    free = [(0, 0)] * (data.q.ndim - 2)
    width = [*free, (0, num_bodies - bodies), (0, size - coordinates)]
    return jax.tree.map(lambda x: jnp.pad(x, width), data)
