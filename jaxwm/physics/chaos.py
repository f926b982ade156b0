"""Chaotic flows: the test beds of models that shall reproduce an attractor.

`x_{t+1} = Φ_dt(x_t)` by the classical fourth-order scheme. Shapes: T steps, N
dimensions. Time units are those of the equations.

| flow | N | largest Lyapunov exponent | Kaplan-Yorke dimension |
|---|---|---|---|
| `lorenz63` | 3 | 0.906 | 2.06 |
| `lorenz96`, forcing 8, 20 sites | 20 | about 1.6 | about 13 |

Source: Lorenz, "Deterministic Nonperiodic Flow", 1963; Lorenz, "Predictability: A
Problem Partly Solved", 1996; exponents of the former: Sprott, "Chaos and Time-Series
Analysis", 2003.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Rate = Callable[[Array], Array]


def lorenz63_rate(
    x: Float[Array, "3"], *, sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3
) -> Float[Array, "3"]:
    """`(σ (y - x), x (ρ - z) - y, x y - β z)`; its divergence is -(σ + 1 + β)."""
    return jnp.stack(
        [
            sigma * (x[1] - x[0]),
            x[0] * (rho - x[2]) - x[1],
            x[0] * x[1] - beta * x[2],
        ]
    )


def lorenz96_rate(x: Float[Array, " N"], *, forcing: float = 8.0) -> Float[Array, " N"]:
    """`(x_{i+1} - x_{i-2}) x_{i-1} - x_i + F` on a ring of N >= 4 sites."""
    if x.shape[0] < 4:
        raise ValueError(
            f"x must have at least 4 sites, got {x.shape[0]}; the ring reaches from "
            "i - 2 to i + 1."
        )
    ahead, behind, two_behind = (jnp.roll(x, k) for k in (-1, 1, 2))
    return (ahead - two_behind) * behind - x + forcing


def flow(rate: Rate, dt: float) -> Callable:
    """One step `x -> x + ∫ rate` of length dt, fourth order: error O(dt^5)."""

    def step(x: Float[Array, " N"]) -> Float[Array, " N"]:
        k1 = rate(x)
        k2 = rate(x + 0.5 * dt * k1)
        k3 = rate(x + 0.5 * dt * k2)
        k4 = rate(x + dt * k3)
        return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return step


def orbit(
    step: Callable, start: Float[Array, " N"], num_steps: int
) -> Float[Array, "{num_steps} N"]:
    """`start` and the `num_steps - 1` states that follow it under any map."""
    _, x = jax.lax.scan(lambda x, _: (step(x), x), start, None, length=num_steps)
    return x


def lorenz63(
    key: Key[Array, ""], num_steps: int, *, dt: float = 0.01, transient: int = 1000
) -> Float[Array, "{num_steps} 3"]:
    """An orbit on the Lorenz attractor, sampled every `dt`.

    Args:
        key: draws the start, within 1 of (0, 0, 25).
        num_steps: T.
        dt: time between samples, and step of the integrator.
        transient: steps thrown away first, while the orbit falls onto the attractor.
    """
    start = jnp.array([0.0, 0.0, 25.0]) + jax.random.uniform(key, (3,), minval=-1.0)
    step = flow(lorenz63_rate, dt)
    return orbit(step, orbit(step, start, transient + 1)[-1], num_steps)


def lorenz96(
    key: Key[Array, ""],
    num_steps: int,
    *,
    size: int = 20,
    forcing: float = 8.0,
    dt: float = 0.04,
    transient: int = 1000,
) -> Float[Array, "{num_steps} {size}"]:
    """An orbit of the ring of `size` sites, sampled every `dt`; as `lorenz63`."""
    start = forcing + 0.1 * jax.random.normal(key, (size,))
    step = flow(lambda x: lorenz96_rate(x, forcing=forcing), dt)
    return orbit(step, orbit(step, start, transient + 1)[-1], num_steps)
