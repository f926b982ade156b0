"""Material points: conserved sums, closed forms, exact gradients, refused input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import plan
from jaxwm.physics import identify, mpm
from jaxwm.physics.dynamics import rollout
from jaxwm.physics.mpm import decompose, elasticity, plasticity

DIMENSIONS = (2, 3)
ELASTIC = {
    "corotated": elasticity.corotated(1.0, 0.2),
    "neo-Hookean": elasticity.neo_hookean(1.0, 0.2),
    "Hencky": elasticity.hencky(1.0, 0.2),
    "fluid": elasticity.fluid(1.0, 0.2),
}
PLASTIC = {
    "von Mises": plasticity.von_mises(E=1.0, nu=0.2, sigma_y=0.05),
    "Drucker-Prager": plasticity.drucker_prager(E=1.0, nu=0.2),
    "fluid": plasticity.fluid(),
}


def small_body(d, **moving):
    """A block of a few particles in the middle of the box."""
    body = mpm.block((0.5,) * d, (0.2,) * d, (4,) * d)
    return mpm.moving(body, **moving) if moving else body


def simulate(dyn, params, length, start=None):
    start = dyn.init(jax.random.key(0), params) if start is None else start
    run = jax.jit(lambda p, s: rollout(dyn, p, s, jnp.zeros((length, 0))))
    return run(params, start)


def deformation(key, d, size=0.2):
    return jnp.eye(d) + size * jax.random.normal(key, (d, d))


def turn(d, angle=0.7):
    """A rotation about an axis of no symmetry."""
    if d == 2:
        c, s = np.cos(angle), np.sin(angle)
        return jnp.array([[c, -s], [s, c]])
    axis = np.array([1.0, -2.0, 0.5])
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return jnp.array(
        np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    )


def agree(function, x):
    """Derivatives of the sum of all outputs, forwards, backwards and by differences."""
    leaves, tree = jax.tree.flatten(x)
    draw = np.random.default_rng(0)
    along = tree.unflatten([jnp.array(draw.normal(size=leaf.shape)) for leaf in leaves])

    @jax.jit
    def total(x):
        return sum(jnp.sum(leaf * (1 + leaf)) for leaf in jax.tree.leaves(function(*x)))

    _, forwards = jax.jvp(total, (x,), (along,))
    grads = jax.grad(total)(x)
    backwards = sum(
        jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), grads, along))
    )
    at = lambda size: total(jax.tree.map(lambda a, b: a + size * b, x, along))
    difference = (at(1e-5) - at(-1e-5)) / 2e-5
    assert forwards == pytest.approx(float(difference), rel=1e-6, abs=1e-9)
    assert backwards == pytest.approx(float(forwards), rel=1e-9)


# --- rotations and stretches ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
def test_eigenvalues_are_those_of_lapack(d, key, x64):
    a = jax.random.normal(key, (20, d, d))
    a = a + a.swapaxes(1, 2)
    values, vectors = jax.jit(jax.vmap(decompose.eigh))(a)
    np.testing.assert_allclose(
        np.sort(values), np.linalg.eigvalsh(np.asarray(a)), atol=1e-12
    )
    again = jnp.einsum("nij,nj,nkj->nik", vectors, values, vectors)
    np.testing.assert_allclose(again, a, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
def test_svd_gives_rotations_and_signs_the_last_value(d, key, x64):
    F = jax.random.normal(key, (30, d, d))  # half of them inverted
    U, s, Vt = jax.jit(jax.vmap(decompose.svd))(F)
    np.testing.assert_allclose(jnp.einsum("nij,nj,njk->nik", U, s, Vt), F, atol=1e-10)
    for R in (U, Vt):
        np.testing.assert_allclose(np.linalg.det(R), 1.0, atol=1e-10)
    expected = np.linalg.svd(np.asarray(F), compute_uv=False)
    np.testing.assert_allclose(np.abs(s), expected, atol=1e-10)
    assert np.array_equal(s[:, -1] < 0, np.linalg.det(F) < 0)
    assert (s[:, -1] < 0).any() and (s[:, -1] > 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_rotation_factor_undoes_a_rotation(d, key, x64):
    Q = turn(d)
    stretch = 0.1 * jax.random.normal(key, (d, d))
    stretch = jnp.eye(d) + stretch + stretch.T
    np.testing.assert_allclose(decompose.rotation(Q @ stretch), Q, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_svd_has_a_finite_gradient_where_singular_values_meet(d):
    for F in (jnp.eye(d), 1.3 * turn(d), jnp.zeros((d, d))):
        jacobian = jax.jit(jax.jacrev(decompose.svd))(F)
        assert all(np.isfinite(leaf).all() for leaf in jacobian)


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
def test_derivatives_of_the_svd_are_exact_elsewhere(d, key, x64):
    F = jnp.diag(jnp.arange(1.0, d + 1)) + 0.1 * jax.random.normal(key, (d, d))
    agree(lambda F: decompose.svd(turn(d) @ F), (F,))


# --- laws ----------------------------------------------------------------------------


def every(laws):
    """All laws at once: `(changed params, F) -> {name: matrix}`, compiled once."""

    def apply(changed, F):
        found = {}
        for name, law in laws.items():
            own = {k: changed.get(k, v) for k, v in law.params.items()}
            found[name] = law.apply(own, F)
        return found

    return jax.jit(apply)


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
def test_stress_is_the_slope_of_energy_and_turns_with_the_body(d, key, x64):
    F, Q = deformation(key, d), turn(d)
    apply = every(ELASTIC)
    slopes = jax.jit(
        lambda F: {k: jax.grad(v.energy, 1)(v.params, F) for k, v in ELASTIC.items()}
    )(F)
    stress, turned, rest = apply({}, F), apply({}, Q @ F), apply({}, jnp.eye(d))
    for name in ELASTIC:
        np.testing.assert_allclose(stress[name], slopes[name] @ F.T, atol=1e-10)
        np.testing.assert_allclose(turned[name], Q @ stress[name] @ Q.T, atol=1e-10)
        np.testing.assert_allclose(rest[name], 0.0, atol=1e-12)
        assert np.abs(stress[name]).max() > 1e-3


def test_small_strains_follow_hookes_law(key, x64):
    strain = 1e-6 * jax.random.normal(key, (3, 3))
    strain = strain + strain.T
    mu, la = mpm.lame({"E": 1.0, "nu": 0.2})
    found = every(ELASTIC)({}, jnp.eye(3) + strain)
    for name in ELASTIC:
        shear = 0.0 if name == "fluid" else 2 * mu * strain
        expected = shear + la * jnp.trace(strain) * jnp.eye(3)
        np.testing.assert_allclose(found[name], expected, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("d", (2, pytest.param(3, marks=pytest.mark.slow)))
def test_laws_have_exact_gradients_also_at_rest(d, key, x64):
    elastic, plastic = every(ELASTIC), every(PLASTIC)
    own = {"E": jnp.array(1.0)}
    for F in (jnp.eye(d), deformation(key, d)):
        agree(elastic, (own, F))
    kept = plastic({}, F)
    assert all(np.abs(kept[name] - F).max() > 1e-3 for name in PLASTIC)  # all yield
    changed = {"E": 1.0, "nu": 0.2, "sigma_y": 0.05, "phi": 0.4, "cohesion": 0.01}
    changed = jax.tree.map(jnp.array, changed)
    agree(plastic, (changed, F))
    slope = jax.jit(jax.jacfwd(plastic, (0, 1)))(changed, jnp.eye(d))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("d", DIMENSIONS)
def test_a_deformation_that_was_returned_is_returned_no_further(d, key, x64):
    apply = every(PLASTIC)
    once = apply({}, deformation(key, d))
    for name in PLASTIC:
        np.testing.assert_allclose(apply({}, once[name])[name], once[name], atol=1e-9)


def test_von_mises_keeps_volume_and_the_strength_as_shear(x64):
    law = plasticity.von_mises(E=1.0, nu=0.2, sigma_y=0.05)
    F = jax.jit(law.apply)(law.params, turn(3) @ jnp.diag(jnp.array([1.5, 0.8, 0.9])))
    assert jnp.linalg.det(F) == pytest.approx(1.5 * 0.8 * 0.9, rel=1e-9)
    stress = elasticity.hencky(1.0, 0.2).apply({"E": 1.0, "nu": 0.2}, F)
    shear = stress - jnp.trace(stress) / 3 * jnp.eye(3)
    assert jnp.linalg.norm(shear) == pytest.approx(0.05, rel=1e-9)


def test_sand_bears_no_tension():
    law = plasticity.drucker_prager(E=1.0, nu=0.2)
    pulled = jax.jit(law.apply)(law.params, 1.1 * jnp.eye(3))
    np.testing.assert_allclose(pulled, jnp.eye(3), atol=1e-6)


def test_a_crushed_or_inverted_particle_has_a_finite_stress_and_gradient():
    for law in (elasticity.corotated(), elasticity.hencky()):
        for F in (jnp.diag(jnp.array([1.0, 1.0, -0.2])), jnp.zeros((3, 3))):
            value, slope = jax.jit(
                jax.value_and_grad(lambda F, law=law: law.apply(law.params, F).sum())
            )(F)
            assert np.isfinite(value) and np.isfinite(slope).all()


# --- particles and grid --------------------------------------------------------------


@pytest.mark.parametrize("d", DIMENSIONS)
def test_mass_momentum_and_spin_survive_both_transfers(d, key, x64):
    x_key, v_key, c_key, m_key = jax.random.split(key, 4)
    x = jax.random.uniform(x_key, (40, d), minval=0.2, maxval=0.8)
    v = jax.random.normal(v_key, (40, d))
    C = jax.random.normal(c_key, (40, d, d))
    m = jax.random.uniform(m_key, (40,), minval=0.5)
    cells = 10
    between = mpm.transfer.between(x, cells)
    mass, momentum = between.to_grid(m, m[:, None] * v, m[:, None, None] * C)
    assert mass.shape == (cells + 1,) * d
    assert mass.sum() == pytest.approx(float(m.sum()), rel=1e-12)
    np.testing.assert_allclose(
        momentum.reshape(-1, d).sum(0), (m[:, None] * v).sum(0), atol=1e-10
    )

    def spin(mass, x, v, C):
        """Angular momentum of particles, their affine motion included."""
        moment = jnp.einsum("p,pi,pj->ij", mass, x, v)
        moment += jnp.einsum("p,pji->ij", mass, C) / (4 * cells**2)
        return moment - moment.T

    nodes = jnp.stack(jnp.meshgrid(*[jnp.arange(cells + 1) / cells] * d, indexing="ij"))
    grid_moment = jnp.einsum("i...,...j->ij", nodes, momentum)
    before = spin(m, x, v, C)
    np.testing.assert_allclose(grid_moment - grid_moment.T, before, atol=1e-10)

    velocity = momentum / jnp.where(mass > 0, mass, 1.0)[..., None]
    v_new, C_new = between.from_grid(velocity)
    np.testing.assert_allclose((m[:, None] * (v_new - v)).sum(0), 0.0, atol=1e-10)
    np.testing.assert_allclose(spin(m, x, v_new, C_new), before, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
def test_an_affine_velocity_field_is_read_back_exactly(d, key, x64):
    field = jax.random.normal(key, (d, d))
    x = jnp.array(np.random.default_rng(0).uniform(0.1, 0.9, (10, d)))
    nodes = jnp.stack(jnp.meshgrid(*[jnp.arange(9) / 8] * d, indexing="ij"), -1)
    v, C = mpm.transfer.between(x, 8).from_grid(nodes @ field.T)
    np.testing.assert_allclose(v, x @ field.T, atol=1e-12)
    np.testing.assert_allclose(C, jnp.broadcast_to(field, (10, d, d)), atol=1e-12)


@pytest.mark.slow
def test_particles_at_both_ends_of_the_box_keep_their_mass():
    x = jnp.array([[0.0625, 0.0625], [0.9375, 0.9375]])
    mass, _ = mpm.transfer.between(x, 8).to_grid(
        jnp.ones(2), jnp.zeros((2, 2)), jnp.zeros((2, 2, 2))
    )
    assert mass.sum() == pytest.approx(2.0, rel=1e-6)


# --- motion --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
def test_free_fall_is_exact(d, x64):
    speed = jnp.array([0.3, 0.2, -0.1][:d])
    body = small_body(d, velocity=speed)
    dyn = mpm.mpm(body, elasticity.corotated(), cells=16, dt=1e-3)
    state, _ = simulate(dyn, dyn.params, 50)
    gravity, t = dyn.params["gravity"], 50 * 1e-3
    # Semi-implicit Euler: x = v t + g t (t + dt) / 2.
    moved = speed * t + gravity * t * (t + 1e-3) / 2
    np.testing.assert_allclose(
        state.v, jnp.broadcast_to(speed + gravity * t, body.x.shape)
    )
    np.testing.assert_allclose(state.x, body.x + moved, atol=1e-12)
    np.testing.assert_allclose(
        state.F, jnp.broadcast_to(jnp.eye(d), state.F.shape), atol=1e-9
    )


def test_momentum_away_from_walls_changes_by_weight_alone(key, x64):
    body = small_body(2, velocity=(0.5, 0.0), spin=3.0)
    dyn = mpm.mpm(body, elasticity.corotated(), cells=16, dt=1e-3)
    start = dyn.init(key, dyn.params)
    start = start._replace(F=start.F @ jnp.diag(jnp.array([1.1, 0.95])))
    state, _ = simulate(dyn, dyn.params, 40, start)
    m = (dyn.params["density"] * body.volume)[:, None]
    change = (m * (state.v - body.v)).sum(0)
    np.testing.assert_allclose(
        change, m.sum() * dyn.params["gravity"] * 0.04, atol=1e-9
    )
    assert np.abs(state.F - start.F).max() > 1e-2  # it did more than fall


@pytest.mark.slow
def test_a_rigid_rotation_leaves_the_singular_values(x64):
    body = small_body(2, velocity=(0.0, 0.0), spin=2.0)
    dyn = mpm.mpm(body, elasticity.corotated(), cells=16, dt=5e-4, gravity=(0, 0))
    state, _ = simulate(dyn, dyn.params, 1000)  # 1 rad
    s = jax.vmap(decompose.svd)(state.F)[1]
    np.testing.assert_allclose(s, 1.0, atol=2e-3)
    angle = jnp.arctan2(state.F[:, 1, 0], state.F[:, 0, 0])
    np.testing.assert_allclose(angle, 1.0, atol=0.02)


@pytest.mark.slow
def test_a_small_oscillation_keeps_its_energy_and_sounds_its_note(key, x64):
    side, E, density = 0.4, 1e5, 1e3
    body = mpm.block((0.5, 0.5), (side, side), (16, 16))
    law = elasticity.corotated(E, 0.0)
    dyn = mpm.mpm(body, law, cells=20, dt=5e-4, gravity=(0, 0), density=density)
    # The first mode of a free bar; at nu = 0 nothing moves across.
    k, size = np.pi / side, 1e-3
    start = dyn.init(key, dyn.params)
    along = body.x[:, 0] - 0.5 + side / 2
    stretch = 1 + size * k * jnp.sin(k * along)
    x = body.x.at[:, 0].add(-size * jnp.cos(k * along))
    start = start._replace(x=x, F=start.F.at[:, 0, 0].set(stretch))
    period = 2 * side / np.sqrt(E / density)
    length = round(2 * period / 5e-4)
    _, path = simulate(dyn, dyn.params, length, start)
    energies = jax.jit(jax.vmap(lambda s: mpm.energy(law, dyn.params, s, 20)))(
        path.state
    )
    total = energies.kinetic + energies.elastic
    # Semi-implicit steps make it ripple, by half the phase of a step.
    assert np.max(total) < 1.03 * total[0]
    assert total[-1] > 0.8 * total[0]
    # Elastic energy is greatest again after every half period.
    stored = np.asarray(energies.elastic)
    peaks = (
        np.flatnonzero((stored[1:-1] > stored[:-2]) & (stored[1:-1] > stored[2:])) + 1
    )
    half = np.mean(np.diff(peaks)) * 5e-4
    assert half == pytest.approx(period / 2, rel=0.1)


def test_walls_stop_and_grip_as_they_say():
    velocity = jnp.full((9, 9, 2), -1.0)
    slip = mpm.boundary.free_slip(3)(velocity, 8)
    stick = mpm.boundary.no_slip(3)(velocity, 8)
    assert np.array_equal(slip[0, 4], [0.0, -1.0])
    assert np.array_equal(slip[8, 4], [-1.0, -1.0])  # it parts from this one
    assert np.array_equal(slip[4, 2], [-1.0, 0.0])
    assert np.array_equal(stick[0, 4], [0.0, 0.0])
    assert np.array_equal(stick[4, 4], [-1.0, -1.0])


def test_a_dropped_block_comes_to_rest_on_the_floor():
    body = mpm.block((0.5, 0.45), (0.2, 0.2), (6, 6))
    dyn = mpm.mpm(body, elasticity.corotated(3e4, 0.2), cells=16, dt=1e-3)
    state, path = simulate(dyn, dyn.params, 1000)
    assert np.isfinite(state.x).all()
    assert state.x[:, 1].min() > 2 / 16 and state.x[:, 1].max() < 0.5
    assert tuple(map(int, mpm.first_inversion(path.state.F))) == (-1, -1)


def test_a_push_accelerates_the_body():
    body = small_body(2)
    push = lambda params, state, action: jnp.broadcast_to(action, state.v.shape)
    dyn = mpm.mpm(
        body,
        elasticity.corotated(),
        cells=16,
        dt=1e-3,
        gravity=(0, 0),
        push=push,
        action_size=2,
    )
    start = dyn.init(jax.random.key(0), dyn.params)
    state, _ = rollout(dyn, dyn.params, start, jnp.full((10, 2), 3.0))
    np.testing.assert_allclose(state.v, 0.03, rtol=1e-3)
    assert dyn.observe(dyn.params, state).shape == (body.x.size,)


def test_the_first_inversion_is_found():
    F = jnp.broadcast_to(jnp.eye(2), (5, 4, 2, 2)).at[3, 1, 0, 0].set(-1.0)
    F = F.at[4, 0, 0, 0].set(jnp.nan)
    assert tuple(map(int, mpm.first_inversion(F))) == (3, 1)


# --- gradients -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "law", "kept"),
    [
        (2, elasticity.corotated(3e4, 0.2), None),
        (3, elasticity.corotated(3e4, 0.2), None),
        (2, elasticity.hencky(3e4, 0.2), plasticity.von_mises(3e4, 0.2, 1e3)),
    ],
)
def test_gradients_through_a_bounce_are_those_of_differences(d, law, kept, x64):
    body = mpm.block((0.5, 0.42, 0.5)[:d], (0.2,) * d, (4,) * d)
    body = mpm.moving(body, (0.5, -4.0, 0.0)[:d])
    dyn = mpm.mpm(body, law, kept, cells=12, dt=1e-3)
    start = dyn.init(jax.random.key(0), dyn.params)

    @jax.jit
    def far(theta):
        params = {**dyn.params, "elastic": {"E": jnp.exp(theta[0]), "nu": theta[1]}}
        moved = start._replace(v=start.v + jnp.zeros(d).at[0].set(theta[2]))
        state, _ = rollout(dyn, params, moved, jnp.zeros((60, 0)), checkpoint="sqrt")
        return jnp.mean(state.x**2) + jnp.mean(state.F[:, 0, 1] ** 2)

    theta = jnp.array([np.log(3e4), 0.2, 0.1])
    grad = jax.jit(jax.grad(far))(theta)
    for i, along in enumerate(np.eye(3)):
        difference = (far(theta + 1e-5 * along) - far(theta - 1e-5 * along)) / 2e-5
        assert grad[i] == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.slow
def test_stiffness_is_identified_from_motion_with_fewer_calls_than_search(key):
    body = mpm.moving(mpm.block((0.5, 0.45), (0.3, 0.3), (5, 5)), (0.5, -2.0), 2.0)
    dyn = mpm.mpm(body, elasticity.corotated(), cells=12, dt=1e-3)
    start = dyn.init(key, dyn.params)

    def positions(guess):
        params = {**dyn.params, "elastic": {**dyn.params["elastic"], **guess}}
        _, path = rollout(dyn, params, start, jnp.zeros((100, 0)))
        return path.state.x

    observed = positions({"E": 1e5})
    fit = lambda seen: identify.identify(positions, seen, {"E": 3e4}, iterations=8)
    found = jax.jit(fit)(observed)
    error = abs(float(found.params["E"]) / 1e5 - 1)
    assert error < 0.01
    assert np.all(np.diff(found.errors) <= 0)  # it does not oscillate
    cost = lambda z: jnp.mean((positions({"E": jnp.exp(z[0])}) - observed) ** 2)
    search = jax.jit(
        lambda z: plan.cem(key, cost, z, 1.0, num=6, elites=2, iterations=3)
    )(jnp.log(jnp.array([3e4])))
    assert search.calls >= found.calls
    assert error < 0.2 * abs(float(jnp.exp(search.x[0])) / 1e5 - 1)


# --- bodies and bad input ------------------------------------------------------------


@pytest.mark.parametrize("d", DIMENSIONS)
def test_bodies_have_the_volume_of_their_shape(d):
    block = mpm.block((0.5,) * d, (0.4,) * d, (5,) * d)
    assert block.volume.sum() == pytest.approx(0.4**d, rel=1e-5)
    ball = mpm.ball((0.5,) * d, 0.3, 0.02)
    size = np.pi * 0.3**2 if d == 2 else 4 / 3 * np.pi * 0.3**3
    assert ball.volume.sum() == pytest.approx(size, rel=0.02)
    np.testing.assert_allclose(ball.x.mean(0), 0.5, atol=1e-6)


def test_spin_turns_about_the_centre():
    body = small_body(3, velocity=(1.0, 0.0, 0.0), spin=(0.0, 0.0, 2.0))
    away = body.x - 0.5
    expected = jnp.stack([1 - 2 * away[:, 1], 2 * away[:, 0], 0 * away[:, 0]], -1)
    np.testing.assert_allclose(body.v, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dt": 0.0}, "dt must be positive, got 0.0"),
        ({"density": -1.0}, "density must be positive, got -1.0"),
        ({"cells": 4}, "cells must be at least 8, walls are 3 thick, got 4"),
        ({"gravity": (0, 0, 0)}, "gravity must have 2 numbers"),
        ({"action_size": 2}, "action_size must say what push takes, got 2 without"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    settings = {"cells": 16, "dt": 1e-3, **change}
    with pytest.raises(ValueError, match=match):
        mpm.mpm(small_body(2), elasticity.corotated(), **settings)


def test_states_and_constants_that_cannot_be_are_refused(key):
    make = lambda body, dt=1e-3: mpm.mpm(body, elasticity.corotated(), cells=16, dt=dt)
    line = mpm.Body(*jnp.zeros((2, 3, 1)), jnp.zeros((3, 1, 1)), jnp.ones(3))
    with pytest.raises(ValueError, match=r"body.x must have the shape \[N, 2\]"):
        make(line)
    dyn = make(mpm.block((0.3, 0.5), (0.4, 0.4), (4, 4)))
    with pytest.raises(ValueError, match=r"body.x must lie in \[0.1875, 0.8125\]"):
        dyn.init(key, dyn.params)
    dyn = make(small_body(2), dt=0.01)
    with pytest.raises(ValueError, match=r"dt must be below 0\.00593 s"):
        dyn.init(key, dyn.params)
    dyn = make(small_body(2))
    with pytest.raises(ValueError, match=r"params must have \['density', 'elastic'"):
        dyn.init(key, {"E": 1e5})
    for constants, match in (
        ({"E": -1.0, "nu": 0.2}, "E of corotated elasticity must be positive"),
        ({"E": 1.0, "nu": 0.5}, r"nu of corotated elasticity must be in \[0, 0.5\)"),
    ):
        with pytest.raises(ValueError, match=match):
            dyn.init(key, {**dyn.params, "elastic": constants})
    with pytest.raises(ValueError, match="sigma_y of von Mises plasticity must be"):
        plasticity.von_mises(sigma_y=0.0)
    with pytest.raises(ValueError, match="phi of Drucker-Prager"):
        plasticity.drucker_prager(phi=25.0)
    with pytest.raises(ValueError, match="cohesion of Drucker-Prager"):
        plasticity.drucker_prager(cohesion=-1.0)


def test_bodies_without_sense_are_refused():
    with pytest.raises(ValueError, match="centre must have 2 or 3 coordinates"):
        mpm.block((0.5,), (0.1,), (2,))
    with pytest.raises(ValueError, match="sides must be 2 positive lengths"):
        mpm.block((0.5, 0.5), (0.1, -0.1), (2, 2))
    with pytest.raises(ValueError, match="counts must be 2 positive numbers"):
        mpm.block((0.5, 0.5), (0.1, 0.1), (2, 0))
    with pytest.raises(ValueError, match="spacing must be positive and at most"):
        mpm.ball((0.5, 0.5), 0.1, 0.2)
    with pytest.raises(ValueError, match="layers must be at least 1 node, got 0"):
        mpm.boundary.free_slip(0)
    with pytest.raises(ValueError, match="law must have an energy, fluid plasticity"):
        mpm.energy(plasticity.fluid(), {}, None, 8)
