"""Integrators of q'' = a(q, v): one step of length dt.

Shapes: Q coordinates; rates are dq/dt = v (joint angles, positions). Every integrator
is `(acceleration, q, v, dt) -> (q, v)`, with `acceleration(q, v) -> [Q]`.

| name | order | keeps |
|---|---|---|
| `explicit_euler` | 1 | nothing; energy grows |
| `semi_implicit_euler` | 1 | symplectic: energy stays within O(dt) |
| `leapfrog` | 2 | symplectic where a does not depend on v |
| `midpoint` | 2 | symplectic, also with velocities in a; Newton's method |
| `implicit_euler` | 1 | stable for stiff forces, loses energy; Newton's method |
| `runge_kutta_4` | 4 | nothing exactly; four evaluations |

Source: Hairer, Lubich, Wanner, "Geometric Numerical Integration", 2006.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.physics import implicit

Acceleration = Callable[[Array, Array], Array]
Pair = tuple[Float[Array, " Q"], Float[Array, " Q"]]


def explicit_euler(acceleration: Acceleration, q, v, dt) -> Pair:
    """`q' = q + dt v, v' = v + dt a(q, v)`."""
    return q + dt * v, v + dt * acceleration(q, v)


def semi_implicit_euler(acceleration: Acceleration, q, v, dt) -> Pair:
    """`v' = v + dt a(q, v), q' = q + dt v'`."""
    v = v + dt * acceleration(q, v)
    return q + dt * v, v


def leapfrog(acceleration: Acceleration, q, v, dt) -> Pair:
    """`v_h = v + dt/2 a(q, v), q' = q + dt v_h, v' = v_h + dt/2 a(q', v_h)`."""
    half = v + 0.5 * dt * acceleration(q, v)
    q = q + dt * half
    return q, half + 0.5 * dt * acceleration(q, half)


def midpoint(acceleration: Acceleration, q, v, dt, *, iterations: int = 5) -> Pair:
    """Solves `x' = x + dt f((x + x')/2)`; the variational integrator of order 2."""
    return _solved(acceleration, q, v, dt, 0.5, iterations)


def implicit_euler(
    acceleration: Acceleration, q, v, dt, *, iterations: int = 5
) -> Pair:
    """Solves `x' = x + dt f(x')`."""
    return _solved(acceleration, q, v, dt, 1.0, iterations)


def runge_kutta_4(acceleration: Acceleration, q, v, dt) -> Pair:
    """The classical fourth-order scheme."""

    def rate(x):
        return jnp.stack([x[1], acceleration(x[0], x[1])])

    x = jnp.stack([q, v])
    k1 = rate(x)
    k2 = rate(x + 0.5 * dt * k1)
    k3 = rate(x + 0.5 * dt * k2)
    k4 = rate(x + dt * k3)
    q, v = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return q, v


def _solved(acceleration, q, v, dt, share: float, iterations: int) -> Pair:
    """Newton's method on the end state, started from a semi-implicit step.

    The derivative is that of the solution (implicit function theorem), whatever the
    number of iterations.
    """
    size = q.shape[0]

    def residual(after):
        q_in = q + share * (after[:size] - q)
        v_in = v + share * (after[size:] - v)
        rate = jnp.concatenate([v_in, acceleration(q_in, v_in)])
        return after - jnp.concatenate([q, v]) - dt * rate

    first = jnp.concatenate(semi_implicit_euler(acceleration, q, v, dt))
    after = implicit.newton(residual, first, iterations=iterations)
    return after[:size], after[size:]


def sub_stepped(integrator: Callable, num: int) -> Callable:
    """The integrator in `num` equal parts of a step."""

    def parts(acceleration, q, v, dt):
        def body(_, pair):
            return integrator(acceleration, *pair, dt / num)

        return jax.lax.fori_loop(0, num, body, (q, v))

    return parts
