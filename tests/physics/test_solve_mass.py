"""Accelerations: derivatives of solving for them, and the integrators that use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import bodies, contact, integrate, rigid


@pytest.mark.slow
def test_accelerations_have_the_derivatives_of_solving_with_the_mass_matrix(x64):
    arm = bodies.two_link_arm()
    params = jax.tree.map(jnp.float64, arm.params)
    q, v, u = jnp.array([0.3, 0.8]), jnp.array([1.0, -2.0]), jnp.array([0.5, 0.2])

    def plainly(params, q, v, u):
        matrix = bodies.mass_matrix(arm, params, q)
        return jnp.linalg.solve(matrix, bodies.forces(arm, params, q, v, u))[0]

    ours = lambda *x: bodies.acceleration(arm, *x)[0]
    for derivative in (
        lambda f: jax.grad(f, (0, 1, 2, 3)),
        lambda f: jax.grad(f, 3),
        lambda f: jax.hessian(f, 1),
    ):
        found, expected = (
            jax.tree.leaves(jax.jit(derivative(f))(params, q, v, u))
            for f in (ours, plainly)
        )
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_body_that_touches_nothing_may_choose_its_integrator():
    plain = rigid(bodies.pendulum(), dt=0.1)
    exact = rigid(bodies.pendulum(), contact.none(integrate.runge_kutta_4), dt=0.1)
    start, still = bodies.State(jnp.ones(1), jnp.zeros(1)), jnp.zeros(1)
    ends = [d.step(d.params, start, still).q[0] for d in (plain, exact)]
    push = 1.5 * bodies.GRAVITY * np.sin(1.0)  # of a uniform rod, rad/s^2
    assert ends[0] == pytest.approx(1 + 0.1**2 * push, rel=1e-5)
    assert ends[1] == pytest.approx(1 + 0.1**2 * push / 2, rel=2e-3)
