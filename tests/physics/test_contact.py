"""Contact models: exact bounces, friction, rest, and what each gradient misses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm import plan
from jaxwm.physics import bodies, contact
from jaxwm.physics.bodies import State
from jaxwm.physics.dynamics import rollout
from jaxwm.physics.rigid import rigid


def fall(model, height, *, speed=-1.0, gravity=0.0, dt=0.01, seconds=1.5, params=None):
    """Height of a ball after some seconds."""
    dyn = rigid(bodies.point_mass(gravity=gravity), model, dt=dt)
    start = State(jnp.stack([0.0 * height, height]), jnp.array([0.0, speed]))
    actions = jnp.zeros((round(seconds / dt), 2))
    params = {**dyn.params, **(params or {})}
    return rollout(dyn, params, start, actions)[0].q[1]


def slide(model, *, dt, speed=2.0, push=0.0, steps=400, params=None):
    """Position and velocity of a block on the floor after sliding."""
    dyn = rigid(bodies.sliding_block(), model, dt=dt)
    start = State(jnp.zeros(2), jnp.array([speed, 0.0]))
    actions = jnp.full((steps, 1), push)
    final, _ = rollout(dyn, {**dyn.params, **(params or {})}, start, actions)
    return final


@pytest.mark.slow
def test_an_elastic_bounce_turns_the_derivative_around(x64):
    exact = jax.value_and_grad(lambda h: fall(contact.time_of_impact(), h))(0.7003)
    np.testing.assert_allclose(exact, (1.5 - 0.7003, -1.0), rtol=1e-10)


def test_the_naive_impulse_has_the_wrong_derivative_and_says_so(x64):
    value, slope = jax.value_and_grad(lambda h: fall(contact.impulse(), h))(0.7003)
    assert value == pytest.approx(1.5 - 0.7003, abs=0.02)
    assert slope == pytest.approx(1.0)
    assert "wrong" in contact.impulse.__doc__


@pytest.mark.parametrize("dt", [pytest.param(0.01, marks=pytest.mark.slow), 0.05])
def test_time_of_impact_is_exact_under_gravity(dt, x64):
    g, h, e, t = 9.81, 1.0, 0.8, 0.9
    model = contact.time_of_impact(restitution=e)
    height = lambda h: fall(model, h, speed=0.0, gravity=g, dt=dt, seconds=t)

    def exact(h):
        falling = jnp.sqrt(2 * h / g)
        after = e * g * falling
        left = t - falling
        return after * left - 0.5 * g * left**2

    found = jax.value_and_grad(height)(h)
    np.testing.assert_allclose(found, jax.value_and_grad(exact)(h), rtol=1e-8)


def test_restitution_has_the_right_derivative_too(x64):
    height = lambda e: fall(contact.time_of_impact(), 0.7003, params={"restitution": e})
    # h_T = e (T - h0) without gravity
    np.testing.assert_allclose(
        jax.value_and_grad(height)(0.5), (0.5 * 0.7997, 0.7997), rtol=1e-9
    )


def test_a_ball_that_bounces_ever_lower_comes_to_rest_on_the_floor(x64):
    height = fall(
        contact.time_of_impact(restitution=0.5), 0.5, speed=0.0, gravity=9.81, seconds=4
    )
    assert height == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("model", "dt", "tolerance"),
    [
        (contact.compliant(stiffness=1e5, damping=1e5), 1e-3, 1e-3),
        (contact.complementarity(), 0.01, 1e-6),
        (contact.position_based(), 0.01, 1e-6),
        (contact.interior_point(kappa=1e-6), 0.01, 1e-2),
        (contact.smoothed(stiffness=1e5, damping=1e5, width=1e-3), 1e-3, 0.02),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_models_hold_a_resting_ball(model, dt, tolerance, x64):
    height = jax.jit(
        lambda h: fall(model, h, speed=0.0, gravity=9.81, dt=dt, seconds=2.0)
    )
    assert height(0.0) == pytest.approx(0.0, abs=tolerance)


@pytest.mark.parametrize(
    ("model", "dt"),
    [
        (contact.complementarity(friction=0.3), 0.01),
        (contact.compliant(stiffness=1e4, damping=1e5, friction=0.3), 2e-3),
        (contact.position_based(friction=0.3), 0.01),
        (contact.interior_point(friction=0.3, kappa=1e-6), 0.01),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_a_sliding_block_stops_where_coulomb_says(model, dt, x64):
    final = jax.jit(lambda: slide(model, dt=dt, steps=round(2.0 / dt)))()
    stop = 2.0**2 / (2 * 0.3 * 9.81)
    assert final.q[0] == pytest.approx(float(stop), rel=0.03)
    assert abs(final.v[0]) < 0.02


def test_static_friction_holds_exactly_and_gives_no_gradient(x64):
    model = contact.complementarity(friction=0.5)

    def moved(push):
        return slide(model, dt=0.01, speed=0.0, push=push, steps=50).q[0]

    value, slope = jax.value_and_grad(moved)(2.0)
    assert abs(value) < 1e-6 and abs(slope) < 1e-6
    value, slope = jax.value_and_grad(moved)(8.0)
    accelerated = (8.0 - 0.5 * 9.81) * 0.01**2 * 50 * 51 / 2
    assert value == pytest.approx(accelerated, rel=1e-3)
    assert slope == pytest.approx(0.01**2 * 50 * 51 / 2, rel=1e-3)


def test_the_implicit_gradient_of_friction_is_that_of_differences(x64):
    model = contact.complementarity()

    def stop(mu):
        return slide(model, dt=0.01, steps=60, params={"friction": mu}).q[0]

    slope = jax.grad(stop)(0.3)
    difference = (stop(0.3 + 1e-6) - stop(0.3 - 1e-6)) / 2e-6
    assert slope == pytest.approx(float(difference), rel=1e-5)


def test_what_never_touches_teaches_nothing_unless_it_is_felt_from_afar(x64):
    soft = contact.smoothed(width=0.05, stiffness=1e3)

    def box(model):
        dyn = rigid(bodies.pusher(), model, dt=0.01)
        start = State(jnp.array([0.0, 0.3]), jnp.zeros(2))

        def moved(push):
            return rollout(dyn, dyn.params, start, jnp.full((10, 1), push))[0].q[1]

        return jax.value_and_grad(moved)(0.1)

    hard = contact.compliant(stiffness=1e3)
    value, slope = box(hard)
    assert value == 0.3 and slope == 0
    felt_value, felt = box(contact.straight_through(hard, soft))
    assert felt_value == 0.3 and felt > 0


@pytest.mark.slow
def test_a_contact_felt_from_afar_pushes_the_box_to_its_goal(x64):
    soft = contact.smoothed(width=0.05, stiffness=1e3)
    hard = contact.compliant(stiffness=1e3)
    goal = 0.8  # m; the box starts at 0.3, beyond the reach of the ball

    def run(model, pushes):
        dyn = rigid(bodies.pusher(), model, dt=0.01)
        start = State(jnp.array([0.0, 0.3]), jnp.zeros(2))
        actions = jnp.repeat(pushes, 20)[:, None]
        return rollout(dyn, dyn.params, start, actions)[0].q[1]

    def found(model):
        cost = lambda pushes: (run(model, pushes) - goal) ** 2
        adam = optax.adam(optax.cosine_decay_schedule(0.2, 150))
        return jax.jit(lambda u: plan.descent(cost, u, adam, steps=150).x)(jnp.zeros(5))

    np.testing.assert_array_equal(found(hard), 0)  # nothing to learn from: it stays
    pushes = found(contact.straight_through(hard, soft))
    assert run(hard, pushes) == pytest.approx(goal, abs=0.01)


def test_momentum_is_passed_on_by_the_pusher(x64):
    dyn = rigid(bodies.pusher(), contact.time_of_impact(), dt=0.01)
    params = {**dyn.params, "drag": 0.0, "box_mass": 2.0}
    start = State(jnp.array([0.0, 0.3]), jnp.array([1.0, 0.0]))
    final, _ = rollout(dyn, params, start, jnp.zeros((60, 1)))
    # elastic collision of masses 1 and 2
    np.testing.assert_allclose(final.v, [-1 / 3, 2 / 3], atol=1e-9)


def test_settings_without_sense_are_refused():
    with pytest.raises(ValueError, match="kappa must be positive, got 0"):
        contact.interior_point(kappa=0.0)
    with pytest.raises(ValueError, match="bounces must be at least 1"):
        contact.time_of_impact(bounces=0)
