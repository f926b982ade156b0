"""Planners on a simulator: what they are handed, and that all of them solve it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm import physics, plan
from jaxwm.physics import bodies
from jaxwm.physics.dynamics import Dynamics

CART = Dynamics(
    lambda key, params: {"x": jnp.zeros(1), "v": jnp.zeros(1)},
    lambda p, s, u: {"x": s["x"] + 0.1 * s["v"], "v": s["v"] + 0.1 * u / p},
    lambda p, s: jnp.concatenate([s["x"], s["v"]]),
    0.1,
    1,
    jnp.array(2.0),
)
START = {"x": jnp.array([1.0]), "v": jnp.array([-0.5])}


def cost(state, action):
    return state["x"][0] ** 2 + 0.1 * action[0] ** 2


def final(state):
    return 10 * (state["x"][0] ** 2 + state["v"][0] ** 2)


def test_the_total_is_the_sum_by_hand():
    task = plan.simulated(CART, CART.params, START, cost, final)
    actions = jnp.array([[0.5], [-1.0], [2.0]])
    state, expected = START, 0.0
    for action in actions:
        expected += cost(state, action)
        state = CART.step(CART.params, state, action)
    np.testing.assert_allclose(task.total(actions), expected + final(state), rtol=1e-6)
    flat = task.step(task.start, actions[0])
    first = CART.step(CART.params, START, actions[0])
    np.testing.assert_allclose(task.unravel(flat)["v"], first["v"], rtol=1e-6)


def test_search_descent_and_feedback_agree_on_a_linear_cart(key):
    task = plan.simulated(CART, CART.params, START, cost, final)
    nothing = jnp.zeros((15, 1))
    exact = jax.jit(
        lambda u: plan.ilqr(
            task.step, task.cost, task.final, task.start, u, iterations=4
        )
    )(nothing)
    np.testing.assert_allclose(task.total(exact.actions), exact.cost, rtol=1e-5)
    other = jax.jit(
        lambda u: plan.descent(task.total, u, optax.adam(0.3), steps=300).cost
    )(nothing)
    np.testing.assert_allclose(other, exact.cost, rtol=2e-2)
    search = functools.partial(plan.cem, num=100, elites=10, iterations=25)
    found = jax.jit(lambda key: search(key, task.total, nothing, 2.0).cost)(key)
    assert exact.cost <= found < 1.1 * exact.cost


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["ilqr", "cem", "mppi"])
def test_every_planner_swings_up_a_pendulum_of_the_physics(name, key):
    dyn = physics.repeated(physics.rigid(bodies.pendulum(), dt=0.025), 2)
    params = {**dyn.params, "friction": 0.05}
    down = bodies.State(jnp.array([jnp.pi]), jnp.zeros(1))
    task = plan.simulated(
        dyn,
        params,
        down,
        lambda s, u: 0.01 * u[0] ** 2 + 0.1 * (1 - jnp.cos(s.q[0])),
        lambda s: 100 * (1 - jnp.cos(s.q[0])) + s.v[0] ** 2,
    )
    first = 0.5 * jnp.sin(jnp.arange(50.0))[:, None]
    bounds = dict(low=-3.0, high=3.0)  # N m; 4.9 would hold the rod level

    def planned(key):
        if name == "ilqr":
            found = plan.ilqr(
                task.step,
                task.cost,
                task.final,
                task.start,
                first,
                iterations=100,
                **bounds,
            )
            return found.actions
        search = {
            "cem": functools.partial(plan.cem, elites=20, colour=2.0, keep=5),
            "mppi": functools.partial(plan.mppi, temperature=0.05, colour=2.0),
        }[name]
        found = search(
            key, task.total, 0 * first, 2.0, num=200, iterations=60, **bounds
        )
        return found.x

    actions = jax.jit(planned)(key)
    last, _ = physics.rollout(dyn, params, down, actions)
    assert jnp.cos(last.q[0]) > 0.95
    assert np.abs(actions).max() <= 3


def test_states_that_count_are_refused():
    start = {**START, "t": jnp.int32(0)}
    with pytest.raises(ValueError, match=r"state must hold floating-point .*int32"):
        plan.simulated(CART, CART.params, start, cost, final)
