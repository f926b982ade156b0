"""Rigid bodies: closed forms, conserved energy, and parameters that no body has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import bodies, contact, integrate
from jaxwm.physics.dynamics import rollout
from jaxwm.physics.rigid import rigid

SYSTEMS = (
    bodies.point_mass,
    bodies.pendulum,
    bodies.cartpole,
    bodies.two_link_arm,
    bodies.pusher,
    bodies.hopper,
)


@pytest.mark.slow
def test_the_cartpole_is_the_textbooks(x64):
    system = bodies.cartpole()
    p = system.params
    q, v, u = jnp.array([0.3, 0.7]), jnp.array([-0.4, 1.2]), jnp.array([0.5])
    x_acc, theta_acc = bodies.acceleration(system, p, q, v, u)
    # Barto, Sutton, Anderson, 1983, as in Gymnasium's CartPole-v1.
    total = p["cart_mass"] + p["pole_mass"]
    moment = p["pole_mass"] * p["length"]
    cosine, sine = np.cos(0.7), np.sin(0.7)
    temp = (10 * 0.5 + moment * 1.2**2 * sine) / total
    expected = (p["gravity"] * sine - cosine * temp) / (
        p["length"] * (4 / 3 - p["pole_mass"] * cosine**2 / total)
    )
    assert theta_acc == pytest.approx(float(expected), rel=1e-10)
    assert x_acc == pytest.approx(temp - moment * expected * cosine / total, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("make", SYSTEMS)
def test_energy_is_kept_where_nothing_brakes(make, x64):
    system = make()
    brakes = {"friction": 0.0, "drag": 0.0, "damping": 0.0}
    params = {
        **system.params,
        **{k: v for k, v in brakes.items() if k in system.params},
    }
    free = contact.none(integrate.runge_kutta_4)
    still = system._replace(num_contacts=1)  # lets `rigid` take a model of contact
    dyn = rigid(still, free, dt=0.002)
    n = system.size
    start = bodies.State(0.3 + 0.1 * jnp.arange(n), 0.5 - 0.3 * jnp.arange(n))
    actions = jnp.zeros((500, system.action_size))
    final, _ = jax.jit(lambda s: rollout(dyn, params, s, actions))(start)
    before = bodies.energy(system, params, start)
    assert bodies.energy(system, params, final) == pytest.approx(
        float(before), abs=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", SYSTEMS)
def test_mass_matrices_are_symmetric_and_positive(make, x64):
    system = make()
    q = 0.3 + 0.2 * jnp.arange(system.size, dtype=float)
    matrix = bodies.mass_matrix(system, system.params, q)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_contact_jacobians_are_rates_of_the_foot(x64):
    system = bodies.hopper()
    q, v = jnp.array([0.1, 0.9, 0.4, 0.5]), jnp.array([1.0, -0.5, 0.3, 0.2])
    normal, tangent = bodies.contact_jacobians(system, system.params, q)
    gap = lambda t: system.gaps(system.params, q + t * v)[0]
    slide = lambda t: system.slides(system.params, q + t * v)[0]
    for jacobian, function in ((normal, gap), (tangent, slide)):
        difference = (function(1e-6) - function(-1e-6)) / 2e-6
        assert (jacobian @ v)[0] == pytest.approx(float(difference), rel=1e-7)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mass": -1.0}, "mass must be positive and finite, got -1"),
        ({"length": 0.0}, "length must be positive"),
        ({"gravity": np.nan}, "gravity must be finite, got nan"),
        ({"weight": 1.0}, r"\['weight'\] are unknown or missing"),
    ],
)
def test_parameters_that_no_body_has_are_refused(change, match):
    dyn = rigid(bodies.pendulum(), dt=0.01)
    with pytest.raises(ValueError, match=match):
        dyn.init(jax.random.key(0), {**dyn.params, **change})


@pytest.mark.parametrize("name", ["stiffness", "mass"])
def test_parameters_of_a_contact_that_no_body_has_are_refused(name):
    dyn = rigid(bodies.point_mass(), contact.compliant(), dt=1e-3)
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got 0"):
        dyn.init(jax.random.key(0), {**dyn.params, name: 0.0})


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="dt must be positive"):
        rigid(bodies.pendulum(), dt=0.0)
    with pytest.raises(ValueError, match="the pendulum touches nothing"):
        rigid(bodies.pendulum(), contact.compliant(), dt=0.01)
