"""Planners that use derivatives: optimal control with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm import plan

T = 20
A = jnp.array([[1.0, 0.1], [0.0, 1.0]])
B = jnp.array([[0.0], [0.1]])
START = jnp.array([1.0, 0.0])


def step(x, u):
    return A @ x + B @ u


def cost(x, u):
    return x @ x + 0.1 * u @ u


def final(x):
    return 10 * x @ x


def riccati():
    """Optimal cost of the linear-quadratic problem."""
    p = 10 * np.eye(2)
    a, b = np.asarray(A, float), np.asarray(B, float)
    for _ in range(T):
        k = np.linalg.solve(0.1 * np.eye(1) + b.T @ p @ b, b.T @ p @ a)
        p = np.eye(2) + a.T @ p @ (a - b @ k)
    return START @ p @ START


def total(actions):
    def body(x, u):
        return step(x, u), cost(x, u)

    last, costs = jax.lax.scan(body, START, actions)
    return costs.sum() + final(last)


def test_ilqr_solves_a_linear_quadratic_problem_like_riccati():
    found = plan.ilqr(step, cost, final, START, jnp.zeros((T, 1)), iterations=5)
    np.testing.assert_allclose(found.cost, riccati(), rtol=1e-3)
    np.testing.assert_allclose(found.cost, total(found.actions), rtol=1e-5)
    assert (np.diff(found.costs) <= 0).all()
    assert found.states.shape == (T + 1, 2) and found.gains.shape == (T, 1, 2)


def test_its_feedback_brings_back_a_path_that_was_pushed_off():
    found = plan.ilqr(step, cost, final, START, jnp.zeros((T, 1)), iterations=5)

    def run(x, gains):
        for t in range(T):
            x = step(x, found.actions[t] + gains[t] @ (x - found.states[t]))
        return jnp.linalg.norm(x - found.states[-1])

    pushed = START + jnp.array([0.3, 0.3])
    assert run(pushed, found.gains) < 0.3 * run(pushed, 0 * found.gains)


def test_ilqr_swings_up_a_pendulum_within_bounds():
    def swing(x, u):
        omega = x[1] + 0.05 * (15 * jnp.sin(x[0]) + 3 * 4.0 * u[0])
        return jnp.stack([x[0] + 0.05 * omega, omega])

    upright = lambda x: 100 * (1 - jnp.cos(x[0])) + x[1] ** 2
    start = jnp.array([jnp.pi, 0.0])
    guess = 0.1 * jnp.sin(jnp.arange(60.0))[:, None]
    found = jax.jit(
        lambda guess: plan.ilqr(
            swing,
            lambda x, u: 0.05 * u @ u + 0.1 * (1 - jnp.cos(x[0])),
            upright,
            start,
            guess,
            iterations=150,
            low=-1.0,
            high=1.0,
        )
    )(guess)
    assert jnp.cos(found.states[-1, 0]) > 0.95
    assert np.abs(np.asarray(found.actions)).max() <= 1


def test_descent_reaches_the_same_cost():
    found = jax.jit(lambda u: plan.descent(total, u, optax.adam(0.3), steps=600))(
        jnp.zeros((T, 1))
    )
    np.testing.assert_allclose(found.cost, riccati(), rtol=1e-2)
    np.testing.assert_allclose(found.cost, total(found.x), rtol=1e-5)
    assert found.calls == 601


def test_descent_keeps_the_best_projects_and_stops_at_what_is_not_finite():
    # the slope explodes behind 0.6: jump there, and nothing more can be learnt
    def cliff(x):
        return jnp.where(x < 0.6, -x, jnp.nan)

    found = plan.descent(cliff, jnp.array(0.0), optax.sgd(0.5), steps=5)
    assert found.x == 0.5 and found.cost == -0.5
    kept = plan.descent(
        lambda x: -x,
        jnp.array(0.0),
        optax.sgd(0.5),
        steps=5,
        project=lambda x: jnp.minimum(x, 0.7),
    )
    assert kept.x == pytest.approx(0.7)


def test_projected_gradient_finds_the_nearest_point_of_a_set():
    """A stretched bowl whose bottom lies outside the box: the optimum is known."""
    bottom, stretch = jnp.array([2.0, 0.3]), jnp.array([1.0, 50.0])
    found = plan.projected_gradient(
        lambda x: jnp.sum(stretch * (x - bottom) ** 2),
        jnp.array([-5.0, 5.0]),
        lambda x: jnp.clip(x, -1.0, 1.0),
        steps=200,
        length=1.0,
    )
    np.testing.assert_allclose(found.x, [1.0, 0.3], atol=1e-3)
    np.testing.assert_allclose(found.cost, 1.0, rtol=1e-4)
    assert (np.diff(found.costs) <= 0).all()
    assert found.calls == 200 * 9 + 1


@pytest.mark.parametrize("length", [1e-4, 1e4])
def test_projected_gradient_solves_the_linear_quadratic_problem_untuned(length):
    found = plan.projected_gradient(
        total, jnp.zeros((T, 1)), lambda x: x, steps=300, length=length
    )
    np.testing.assert_allclose(found.cost, riccati(), rtol=1e-2)


def test_projected_gradient_does_not_step_to_what_is_not_finite():
    cliff = lambda x: jnp.where(x < 0.6, -x, jnp.nan)
    found = plan.projected_gradient(
        cliff, jnp.array(0.0), lambda x: x, steps=40, length=1.0
    )
    assert 0.5 < found.x < 0.6 and found.cost == -found.x


def test_settings_without_sense_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1"):
        plan.descent(total, jnp.zeros((T, 1)), optax.sgd(0.1), steps=0)
    projected = lambda **options: plan.projected_gradient(
        total, jnp.zeros((T, 1)), lambda x: x, **{"steps": 1, "length": 1.0, **options}
    )
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        projected(steps=0)
    with pytest.raises(ValueError, match="tries must be at least 1, got 0"):
        projected(tries=0)
    with pytest.raises(ValueError, match="length must be positive"):
        projected(length=0.0)
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        plan.ilqr(step, cost, final, START, jnp.zeros((T, 1)), iterations=0)
    with pytest.raises(ValueError, match="regularisation must be positive"):
        plan.ilqr(
            step,
            cost,
            final,
            START,
            jnp.zeros((T, 1)),
            iterations=1,
            regularisation=0.0,
        )
