"""Solves against closed forms, their cost counted, their gradients by differences."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm import physics
from jaxwm.physics import ode, step_error


def turn(t, y, rate):
    del t
    return rate * jnp.stack([y[1], -y[0]])


def pendulum(t, y, rate):
    del t
    return jnp.stack([y[1], -rate * jnp.sin(y[0])])


START = np.array([1.0, 0.0])
TIMES = np.array([0.0, 0.5, 2.0])


@pytest.mark.parametrize("solver", ["tsit5", "dopri8"])
def test_a_rotation_is_solved_within_its_tolerance(solver, x64):
    ys, stats = ode.odeint(turn, 1.5, START, TIMES, solver=solver, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ys[:, 0], np.cos(1.5 * TIMES), atol=1e-7)
    assert stats.success
    assert stats.num_accepted > 3


def test_fixed_steps_show_the_order_of_the_solver(x64):
    errors = []
    for step_size in (0.1, 0.05):
        ys, stats = ode.odeint(
            turn, 1.0, START, TIMES, solver="heun", step_size=step_size
        )
        errors.append(abs(ys[-1, 0] - np.cos(2.0)))
        assert stats.num_accepted == round(2.0 / step_size)
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2, atol=0.2)


@pytest.mark.parametrize("solver", ["tsit5", "heun"])
def test_evaluations_of_the_field_are_counted(solver):
    calls = []

    def one(t):
        calls.append(1)
        return np.float32(1.0)

    def counted(t, y, rate):
        scale = jax.pure_callback(one, jax.ShapeDtypeStruct((), jnp.float32), t)
        return scale * pendulum(t, y, rate)

    solve = jax.jit(
        lambda y0: ode.odeint(
            counted, 2.0, y0, np.float32(TIMES), solver=solver, rtol=1e-3, atol=1e-3
        )
    )
    _, stats = jax.block_until_ready(solve(jnp.array([2.0, 0.0])))
    assert len(calls) == stats.num_evaluations


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["checkpoint", "backsolve"])
def test_gradients_reach_parameters_and_start(adjoint, x64):
    def loss(rate, y0):
        ys, _ = ode.odeint(
            pendulum, rate, y0, TIMES, rtol=1e-8, atol=1e-8, adjoint=adjoint
        )
        return jnp.sum(ys**2)

    args = (jnp.array(2.0), jnp.array(START))
    check_grads(jax.jit(loss), args, 1, ("rev",), rtol=1e-4)


@pytest.mark.slow
def test_no_gradient_flows_through_step_sizes(x64):
    """The sum over a solve has the gradient of the same sum over given steps."""
    y0 = jnp.array([2.0, 0.0])
    options = {"rtol": 1e-4, "atol": 1e-4}

    def solved(rate):
        return step_error.ode_with_heuristics(
            pendulum, rate, y0, 0.0, 2.0, max_steps=24, **options
        )[1].error_sum

    _, steps, stats = ode.odeint_steps(
        pendulum, 2.0, y0, np.array([0.0, 2.0]), max_steps=24, **options
    )

    def replayed(rate):
        def body(y, row):
            t, h = row
            found = step_error.step_error(pendulum, rate, y, t, h, **options)
            return found.y, h * found.error

        return jnp.sum(jax.lax.scan(body, y0, (steps.t, steps.h))[1])

    value, slope = jax.jit(jax.value_and_grad(solved))(2.0)
    expected, expected_slope = jax.jit(jax.value_and_grad(replayed))(2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-7)
    assert steps.real.sum() == stats.num_accepted


@pytest.mark.slow
def test_the_error_of_a_step_is_that_of_its_embedded_pair(x64):
    """Every accepted step has E <= 1, and E grows with the fifth power of the step."""
    options = {"rtol": 1e-5, "atol": 1e-5}
    _, steps, _ = ode.odeint_steps(
        pendulum, 2.0, START, np.array([0.0, 2.0]), max_steps=32, **options
    )
    one = lambda y, t, h: step_error.step_error(pendulum, 2.0, y, t, h, **options).error
    errors = jax.vmap(one)(steps.y, steps.t, steps.h)
    assert jnp.all(jnp.where(steps.real, errors, 0.0) <= 1)
    sizes = [one(jnp.array([1.0, 0.3]), 0.0, h) for h in (0.2, 0.1)]
    np.testing.assert_allclose(np.log2(sizes[0] / sizes[1]), 5, atol=0.4)


def test_stiffness_of_a_linear_field_is_its_rate(x64):
    found = step_error.step_error(lambda t, y, p: -p * y, 40.0, jnp.ones(3), 0.0, 0.01)
    np.testing.assert_allclose(found.stiffness, 40 / 3.5068, rtol=1e-6)


@pytest.mark.slow
def test_a_field_that_vanishes_costs_nothing_and_has_a_gradient():
    def loss(scale):
        _, sums = step_error.ode_with_heuristics(
            lambda t, y, p: p * y, scale, jnp.ones(2), 0.0, 1.0, max_steps=8
        )
        return sums.error_sum + sums.error_sq_sum + sums.stiffness_sum

    value, slope = jax.value_and_grad(loss)(0.0)
    assert value < 1e-6
    assert np.isfinite(slope)


@pytest.mark.slow
def test_too_few_steps_are_an_error_outside_of_jit_and_nan_inside():
    solve = lambda rate: ode.odeint(
        pendulum, rate, np.float32(START), np.float32(TIMES), max_steps=2
    )
    with pytest.raises(RuntimeError, match="max_steps = 2"):
        solve(2.0)
    ys, stats = jax.jit(solve)(2.0)
    assert not stats.success
    assert np.isnan(ys).all()
    sums = jax.jit(
        lambda: step_error.ode_with_heuristics(
            pendulum, 2.0, jnp.array([1.0, 0.0]), 0.0, 2.0, max_steps=2
        )[1]
    )()
    assert np.isnan(sums.error_sum)


def test_a_flow_is_dynamics():
    vf = lambda t, y, rate, action: turn(t, y, rate) + action
    system = ode.flow(
        vf, lambda key, params: jnp.ones(2), jnp.float32(1.0), dt=0.1, action_size=2
    )
    start = jnp.array([1.0, 0.0])
    end, _ = physics.rollout(system, system.params, start, jnp.zeros((10, 2)))
    np.testing.assert_allclose(end, [np.cos(1.0), -np.sin(1.0)], atol=1e-4)
    assert system.observe(system.params, end).shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ts": np.array([0.0, 0.0, 1.0])}, "ts must be at least two increasing"),
        ({"ts": np.array([1.0, 0.0])}, "ts must be at least two increasing"),
        ({"ts": np.array([0, 1])}, "ts must be floating point .* got int"),
        ({"ts": np.array([0.0, 1.0], np.float16)}, "at least 32 bits, got float16"),
        ({"rtol": 0.0}, "rtol and atol must be positive, got 0"),
        ({"solver": "rk45"}, "solver must be one of .* got 'rk45'"),
        ({"solver": "euler"}, "solver must estimate its error, 'euler' does not"),
        ({"adjoint": "reverse"}, "adjoint must be one of .* got 'reverse'"),
        ({"step_size": -0.1}, "step_size must be positive, got -0.1"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    options = {"ts": TIMES, **change}
    ts = options.pop("ts")
    with pytest.raises(ValueError, match=message):
        ode.odeint(turn, 1.0, np.float32(START), ts, **options)


@pytest.mark.parametrize("name", ["step_size", "rtol", "atol"])
def test_settings_that_are_traced_are_refused(name):
    solve = lambda x: ode.odeint(turn, 1.0, np.float32(START), TIMES, **{name: x})[0]
    with pytest.raises(ValueError, match=f"{name} must be a number known while trac"):
        jax.jit(solve)(0.1)


def test_only_explicit_pairs_estimate_an_error():
    with pytest.raises(ValueError, match=r"Runge-Kutta pair .* got 'kvaerno5'"):
        step_error.step_error(turn, 1.0, jnp.ones(2), 0.0, 0.1, solver="kvaerno5")
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        step_error.ode_with_heuristics(turn, 1.0, jnp.ones(2), 0.0, 1.0, max_steps=0)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r'pip install "jaxwm\[physics\]"'):
        ode.odeint(turn, 1.0, START, TIMES)


def test_the_room_is_imported_without_diffrax_and_exponax():
    code = (
        "import sys; import jaxwm.physics, jaxwm.physics.ode, jaxwm.physics.pde; "
        "assert not {'diffrax', 'exponax', 'equinox'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
