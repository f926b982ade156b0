"""Integrators on the harmonic oscillator q'' = -q, whose solution is cos(t)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import integrate

ORDERS = {
    "explicit_euler": 1,
    "semi_implicit_euler": 1,
    "implicit_euler": 1,
    "leapfrog": 2,
    "midpoint": 2,
    "runge_kutta_4": 4,
}


def oscillate(name, dt, length, damping=0.0):
    """Positions and velocities `[T, 1]` from q = 1, v = 0."""
    integrator = getattr(integrate, name)

    def body(pair, _):
        pair = integrator(lambda q, v: -q - damping * v, *pair, dt)
        return pair, pair

    start = (jnp.ones(1), jnp.zeros(1))
    return jax.jit(lambda: jax.lax.scan(body, start, None, length=length)[1])()


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(name, x64):
    def error(num):
        q, _ = oscillate(name, 2.0 / num, num, damping=0.3)
        w = np.sqrt(1 - 0.15**2)
        t = 2.0
        exact = np.exp(-0.15 * t) * (np.cos(w * t) + 0.15 / w * np.sin(w * t))
        return abs(q[-1, 0] - exact)

    ratio = error(40) / error(80)
    expected = 2 ** ORDERS[name]
    # Leapfrog is of order 2 without velocities in a, and of order 1 in general.
    expected = 2 if name == "leapfrog" else expected
    assert ratio == pytest.approx(float(expected), rel=0.1)


def test_leapfrog_is_of_second_order_without_velocities(x64):
    error = [
        abs(oscillate("leapfrog", 2.0 / n, n)[0][-1, 0] - np.cos(2)) for n in (40, 80)
    ]
    assert error[0] / error[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("semi_implicit_euler", 0.9, 1.1),
        ("leapfrog", 0.99, 1.01),
        ("midpoint", 1 - 1e-9, 1 + 1e-9),  # conserves quadratic invariants
        ("explicit_euler", 10, np.inf),
        ("implicit_euler", 0, 0.1),
    ],
)
def test_energy_over_fifty_periods(name, low, high, x64):
    q, v = oscillate(name, 0.1, 3140)
    energy = np.asarray(q**2 + v**2)[:, 0]
    last = energy[-63:]  # one period
    assert low <= last.min() and last.max() <= high


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("semi_implicit_euler", True),
        ("leapfrog", True),
        ("midpoint", True),
        ("explicit_euler", False),
        ("runge_kutta_4", False),
    ],
)
def test_symplectic_steps_keep_both_momenta_of_two_planets(name, kept, x64):
    masses = jnp.array([1.0, 0.3])

    def pull(q, v):
        del v
        apart = q[2:] - q[:2]
        force = masses[0] * masses[1] * apart / (apart @ apart) ** 1.5
        return jnp.concatenate([force / masses[0], -force / masses[1]])

    def momenta(pair):
        q, p = pair[0].reshape(2, 2), masses[:, None] * pair[1].reshape(2, 2)
        turning = jnp.sum(q[:, 0] * p[:, 1] - q[:, 1] * p[:, 0])
        return jnp.append(jnp.sum(p, 0), turning)

    step = lambda pair, _: (getattr(integrate, name)(pull, *pair, 0.05), None)
    start = jnp.array([0.0, 0, 1, 0]), jnp.array([0.1, -0.2, 0.0, 1.1])
    final = jax.jit(lambda s: jax.lax.scan(step, s, None, length=400)[0])(start)
    change = np.abs(momenta(final) - momenta(start))
    assert change[:2].max() < 1e-12  # forces come in pairs: kept by any of them
    assert (change[2] < 1e-10) == kept


@pytest.mark.slow
def test_implicit_steps_have_the_derivative_of_their_equation(x64):
    def after(k, iterations):
        step = integrate.implicit_euler
        return step(
            lambda q, v: -k * q**3,
            jnp.ones(1),
            jnp.zeros(1),
            0.5,
            iterations=iterations,
        )[0][0]

    slope = jax.grad(after)(2.0, 20)
    difference = (after(2.0 + 1e-6, 20) - after(2.0 - 1e-6, 20)) / 2e-6
    assert slope == pytest.approx(float(difference), rel=1e-6)


def test_substeps_are_steps_of_a_part(x64):
    parts = integrate.sub_stepped(integrate.runge_kutta_4, 4)
    a = lambda q, v: -q
    one = parts(a, jnp.ones(1), jnp.zeros(1), 0.4)
    q, _ = oscillate("runge_kutta_4", 0.1, 4)
    np.testing.assert_allclose(one[0], q[-1], rtol=1e-12)
