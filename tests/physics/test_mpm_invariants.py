"""Material points: closed forms of the laws, and what a motion must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import mpm, rollout
from jaxwm.physics.mpm import elasticity, plasticity

DIMENSIONS = (2, pytest.param(3, marks=pytest.mark.slow))
LAWS = (
    elasticity.corotated,
    elasticity.neo_hookean,
    elasticity.hencky,
    elasticity.fluid,
)
E, NU = 2.0, 0.3
MU, LA = mpm.lame({"E": E, "nu": NU})


def turn(d):
    """A rotation by 0.7 rad and, in 3-D, by 0.4 rad about another axis."""
    c, s = np.cos(0.7), np.sin(0.7)
    if d == 2:
        return jnp.array([[c, -s], [s, c]])
    p, q = np.cos(0.4), np.sin(0.4)
    first = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return jnp.array(first @ np.array([[1, 0, 0], [0, p, -q], [0, q, p]]))


def deformations(key, d, num=6):
    return jnp.eye(d) + 0.2 * jax.random.normal(key, (num, d, d))


# --- laws ----------------------------------------------------------------------------


@pytest.mark.parametrize("d", DIMENSIONS)
def test_uniform_swelling_has_the_pressure_of_the_formula(d, x64):
    """F = s 1 makes every law a number."""
    s = 1.2
    J = s**d
    expected = (
        2 * MU * (s - 1) * s + LA * J * (J - 1),
        MU * (s**2 - 1) + LA * np.log(J),
        (2 * MU + d * LA) * np.log(s),
        LA * J * (J - 1),
    )

    @jax.jit
    def stresses(F):
        return [law(E, NU).apply(law(E, NU).params, F) for law in LAWS]

    for stress, pressure in zip(stresses(s * jnp.eye(d)), expected, strict=True):
        np.testing.assert_allclose(stress, pressure * np.eye(d), atol=1e-12)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_elastic_energy_does_not_know_how_space_or_material_are_turned(d, key, x64):
    F, Q = deformations(key, d), turn(d)

    @jax.jit
    @jax.vmap
    def energies(F):
        return jnp.stack([law(E, NU).energy(law(E, NU).params, F) for law in LAWS])

    own = energies(F)
    assert np.all(own > 0)
    np.testing.assert_allclose(energies(Q @ F), own, rtol=1e-10)
    np.testing.assert_allclose(energies(F @ Q), own, rtol=1e-10)
    turned = energies(jnp.broadcast_to(Q, F.shape))
    np.testing.assert_allclose(turned, 0.0, atol=1e-14)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_plasticine_and_water_flow_without_a_change_of_volume(d, key, x64):
    F = deformations(key, d)
    for law in (plasticity.von_mises(E, NU, 0.05), plasticity.fluid()):
        kept = jax.jit(jax.vmap(lambda F, law=law: law.apply(law.params, F)))(F)
        assert np.abs(kept - F).max() > 1e-2  # they yielded
        np.testing.assert_allclose(
            np.linalg.det(kept), np.linalg.det(F), rtol=1e-10, err_msg=law.name
        )


@pytest.mark.parametrize("d", DIMENSIONS)
def test_sand_that_slips_stays_on_its_cone_of_friction(d, x64):
    phi = 0.5
    law = plasticity.drucker_prager(E, NU, phi)
    e = np.array([-0.3, 0.1, 0.05])[:d]  # pressed and sheared
    F = turn(d) @ jnp.diag(jnp.exp(jnp.array(e)))
    kept = jax.jit(law.apply)(law.params, F)
    after = np.log(np.linalg.svd(np.asarray(kept), compute_uv=False))
    away = after - after.mean()
    cone = np.sqrt(2 / 3) * 2 * np.sin(phi) / (3 - np.sin(phi))
    expected = -(d * LA + 2 * MU) / (2 * MU) * e.sum() * cone
    assert expected < np.linalg.norm(e - e.mean())  # it had to slip
    assert np.linalg.norm(away) == pytest.approx(expected, rel=1e-9)
    assert after.sum() == pytest.approx(e.sum(), rel=1e-9)  # pressure stays


# --- motion --------------------------------------------------------------------------


def spinning(d, law, plastic=None, gravity=None):
    """A stretched block that turns in the air, and a function to move it on."""
    body = mpm.block((0.5,) * d, (0.2,) * d, (4,) * d)
    velocity = (0.3, -0.2, 0.1)[:d]
    body = mpm.moving(body, velocity, 4.0 if d == 2 else (1.0, 2.0, 3.0))
    dyn = mpm.mpm(body, law, plastic, cells=16, dt=5e-4, gravity=gravity)
    start = dyn.init(jax.random.key(0), dyn.params)
    stretch = jnp.diag(jnp.array([1.1, 0.95, 1.02][:d]))
    start = start._replace(F=start.F @ stretch)

    @jax.jit
    def run(state):
        return rollout(dyn, dyn.params, state, jnp.zeros((40, 0)))[0]

    return dyn, start, run


def moments(dyn, state):
    """Momentum `[d]` and angular momentum `[d, d]`, affine motion included."""
    mass = dyn.params["density"] * dyn.params["volume"]
    moment = jnp.einsum("p,pi,pj->ij", mass, state.x, state.v)
    moment += jnp.einsum("p,pji->ij", mass, state.C) / (4 * 16**2)
    return mass @ state.v, moment - moment.T


@pytest.mark.slow
@pytest.mark.parametrize("d", (2, 3))
@pytest.mark.parametrize("material", ["jelly", "plasticine"])
def test_a_body_in_the_air_keeps_its_momentum_and_its_spin(d, material, x64):
    law, plastic = {
        "jelly": (elasticity.corotated(1e5), None),
        "plasticine": (elasticity.hencky(1e5), plasticity.von_mises(1e5, 0.2, 1e3)),
    }[material]
    none = (0.0,) * d
    dyn, start, run = spinning(d, law, plastic, none)
    end = run(start)
    for before, after in zip(moments(dyn, start), moments(dyn, end), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-9)
        assert np.abs(before).max() > 1e-2
    assert np.abs(end.F - start.F).max() > 1e-2  # it did deform


@pytest.mark.slow
@pytest.mark.parametrize("d", (2, 3))
def test_a_turned_world_moves_as_the_turned_motion(d, x64):
    """Swapping the axes of everything swaps the axes of the result."""
    gravity = (1.0, -3.0, 2.0)[:d]
    law = elasticity.corotated(1e5)
    dyn, start, run = spinning(d, law, gravity=gravity)
    order = np.roll(np.arange(d), 1)
    other = mpm.mpm(
        mpm.Body(start.x[:, order], start.v[:, order], start.C, dyn.params["volume"]),
        law,
        cells=16,
        dt=5e-4,
        gravity=[gravity[i] for i in order],
    )
    swapped = mpm.State(
        start.x[:, order],
        start.v[:, order],
        start.C[:, order][:, :, order],
        start.F[:, order][:, :, order],
    )
    end = run(start)
    same = jax.jit(lambda s: rollout(other, other.params, s, jnp.zeros((40, 0)))[0])(
        swapped
    )
    np.testing.assert_allclose(same.x, end.x[:, order], atol=1e-11)
    np.testing.assert_allclose(same.F, end.F[:, order][:, :, order], atol=1e-10)
