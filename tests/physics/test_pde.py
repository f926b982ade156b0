"""Periodic equations against shifted waves, decay rates and conserved sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm import physics
from jaxwm.physics import pde


def wave(points, modes=1):
    x = jnp.linspace(0.0, 2 * jnp.pi, points, endpoint=False)
    return jnp.sin(modes * x)[None]


def run(system, state, steps, params=None):
    params = system.params if params is None else params
    return physics.rollout(system, params, state, jnp.zeros((steps, 0)))[0]


def test_advection_shifts_a_wave(x64):
    system = pde.pde("advection", extent=2 * np.pi, points=32, dt=0.1)
    x = jnp.linspace(0.0, 2 * jnp.pi, 32, endpoint=False)
    after = jax.jit(lambda u: run(system, u, 10))(wave(32))
    np.testing.assert_allclose(after[0], jnp.sin(x - 1.0), atol=1e-12)


def test_diffusion_decays_with_the_square_of_the_wave_number(x64):
    system = pde.pde(
        "diffusion", extent=2 * np.pi, points=32, dt=0.5, params={"diffusivity": 0.2}
    )
    after = run(system, wave(32, modes=3), 2)
    np.testing.assert_allclose(after, np.exp(-0.2 * 9) * wave(32, 3), atol=1e-12)


def test_two_dimensional_diffusion_adds_the_axes(x64):
    system = pde.pde(
        "diffusion",
        extent=2 * np.pi,
        points=16,
        dt=1.0,
        num_dims=2,
        params={"diffusivity": 0.1},
    )
    x = jnp.linspace(0.0, 2 * jnp.pi, 16, endpoint=False)
    u = (jnp.sin(x)[:, None] * jnp.sin(2 * x))[None]
    np.testing.assert_allclose(run(system, u, 1), np.exp(-0.5) * u, atol=1e-12)


@pytest.mark.slow
def test_burgers_keeps_its_mean_and_its_time_step_has_the_order_asked_for(x64):
    def solve(steps, order):
        system = pde.pde(
            "burgers",
            extent=2 * np.pi,
            points=32,
            dt=0.5 / steps,
            params={"diffusivity": 0.1},
            order=order,
        )
        return jax.jit(lambda u: run(system, u, steps))(wave(32) + 0.3)

    exact = solve(400, 4)
    np.testing.assert_allclose(jnp.mean(exact), 0.3, atol=1e-12)
    for order in (1, 2):
        errors = [jnp.abs(solve(n, order) - exact).max() for n in (20, 40)]
        np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.2)


@pytest.mark.slow
def test_gradients_reach_the_coefficients(x64):
    system = pde.pde("burgers", extent=2 * np.pi, points=16, dt=0.05)

    def loss(params):
        return jnp.sum(run(system, wave(16), 5, params) ** 2)

    params = {**system.params, "diffusivity": jnp.array(0.1)}
    check_grads(jax.jit(loss), (params,), 1, ("rev",), rtol=1e-6)


def test_an_action_scales_its_actuator():
    force = np.ones((1, 1, 16), np.float32)
    system = pde.pde("diffusion", extent=1.0, points=16, dt=0.1, actuators=force)
    start = jnp.zeros((1, 16))
    after = system.step(system.params, start, jnp.array([2.0]))
    np.testing.assert_allclose(after, 0.2, rtol=1e-6)
    assert system.observe(system.params, after).shape == (16,)


def test_starts_are_smooth_random_waves_of_every_channel(key):
    system = pde.pde("kuramoto_sivashinsky", extent=20.0, points=32, dt=0.1)
    first, second = jax.random.split(key)
    u = system.init(first, system.params)
    assert u.shape == (1, 32)
    assert jnp.abs(u).max() <= 1 + 1e-6
    assert not np.allclose(u, system.init(second, system.params))


def test_any_stepper_of_exponax_fits():
    import exponax

    system = pde.pde(
        exponax.stepper.reaction.FisherKPP,
        extent=1.0,
        points=16,
        dt=0.1,
        params={"diffusivity": 0.01, "reactivity": 1.0},
    )
    np.testing.assert_allclose(run(system, jnp.ones((1, 16)), 3), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"equation": "heat"}, "equation must be one of advection, .* got 'heat'"),
        ({"params": {"speed": 1.0}}, "params of diffusion are diffusivity, got speed"),
        ({"extent": 0.0}, "extent must be positive, got 0"),
        ({"dt": -1.0}, "dt must be positive, got -1"),
        ({"points": 2}, "points must be at least 4 per axis, got 2"),
        ({"num_dims": 4}, "num_dims must be 1, 2 or 3, got 4"),
        ({"order": 2}, "order must be 1, 2, 3 or 4, for a nonlinear"),
        ({"actuators": np.ones((1, 8))}, r"actuators must have the shape \[A, 1, 16\]"),
    ],
)
def test_wrong_systems_are_refused(change, message):
    options = {"equation": "diffusion", "extent": 1.0, "points": 16, "dt": 0.1}
    options |= change
    equation = options.pop("equation")
    with pytest.raises(ValueError, match=message):
        pde.pde(equation, **options)
