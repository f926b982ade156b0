"""The graph says who moves whom, by perturbing the simulator itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.envs.tasks import local_particles as module
from jaxwm.envs.tasks.local_particles import ENVIRONMENTS, Particles

NUM = 5


@pytest.fixture(scope="module")
def env():
    return module.local_particles(NUM)


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(env.step)


def params(index):
    defaults = {f.name: jnp.float32(0) for f in module.FACTORS}
    return defaults | {k: jnp.float32(v) for k, v in ENVIRONMENTS[index].items()}


def place(positions, velocities=None):
    position = jnp.asarray(positions, jnp.float32)
    velocity = jnp.zeros_like(position) if velocities is None else velocities
    return Particles(position, jnp.asarray(velocity, jnp.float32))


FAR = [[0.1, 0.1], [0.1, 0.5], [0.1, 0.9], [0.5, 0.1], [0.9, 0.9]]  # 0.4 apart


def test_a_pair_repels_with_a_constant_force_and_others_fly_straight(env, step, key):
    for gap in (0.05, 0.29):
        positions = np.array(FAR)
        positions[3] = positions[0] + [gap, 0]
        velocity = np.full((NUM, 2), 0.01)
        state = env.reset_to(place(positions, velocity))
        after = step(key, state, jnp.zeros(2)).physics.velocity
        np.testing.assert_allclose(after[0], [0.01 - 0.05, 0.01], atol=1e-6)
        np.testing.assert_allclose(after[3], [0.01 + 0.05, 0.01], atol=1e-6)
        np.testing.assert_allclose(after[1:3], 0.01, atol=1e-6)


@pytest.mark.slow
def test_the_graph_equals_what_removing_a_particle_changes(env, step, key):
    """Exact, at many states: j acts on i where moving j far away changes i's step."""
    starts = jax.vmap(env.reset)(jax.random.split(key, 300))
    away = jnp.array([9.0, 9.0])

    def influences(state):
        before = step(key, state, jnp.zeros(2)).physics.velocity

        def without(j):
            physics = state.physics
            physics = physics._replace(position=physics.position.at[j].set(away))
            after = step(key, state._replace(physics=physics), jnp.zeros(2))
            return jnp.any(jnp.abs(after.physics.velocity - before) > 1e-6, -1)

        return jax.vmap(without, out_axes=1)(jnp.arange(NUM))

    found = jax.jit(jax.vmap(influences))(starts)
    truth = jax.vmap(lambda s: module.graph(s.physics, {}))(starts)
    other = ~np.eye(NUM, dtype=bool)
    np.testing.assert_array_equal(found[:, other], truth[:, :, :NUM][:, other])
    assert 0.1 < truth[:, :, :NUM][:, other].mean() < 0.4
    assert not truth[:, :, NUM].any()


@pytest.mark.parametrize("index, targets", [(0, ()), (1, (0,)), (2, (1,)), (4, (0, 1))])
def test_interventions_change_their_targets_alone(env, step, key, index, targets):
    physics = place(FAR, np.full((NUM, 2), 0.01))
    plain = step(key, env.reset_to(physics, params(0)), jnp.zeros(2))
    other = step(key, env.reset_to(physics, params(index)), jnp.zeros(2))
    changed = np.any(plain.physics.velocity != other.physics.velocity, -1)
    np.testing.assert_array_equal(np.flatnonzero(changed), targets)
    graph = module.graph(physics, params(index))
    np.testing.assert_array_equal(np.flatnonzero(graph[:, -1]), targets)


def test_wind_drives_particle_two_and_walls_turn_velocities_round(env, step, key):
    velocity = np.zeros((NUM, 2))
    velocity[4] = [0.3, 0.0]
    state = env.reset_to(place(FAR, velocity), params(3))
    after = step(key, state, jnp.zeros(2)).physics
    np.testing.assert_allclose(after.velocity[2], [0.08, 0], atol=1e-6)
    np.testing.assert_allclose(after.position[4], [1.0, 0.9], atol=1e-6)
    np.testing.assert_allclose(after.velocity[4], [-0.3, 0], atol=1e-6)


def test_actions_push_the_last_particle_which_is_paid_for_the_middle(env, step, key):
    state = env.reset_to(place(FAR))
    after = step(key, state, jnp.array([1.0, -5.0]))
    np.testing.assert_allclose(after.physics.velocity[4], [0.02, -0.02], atol=1e-7)
    np.testing.assert_array_equal(after.physics.velocity[:4], 0)
    np.testing.assert_allclose(after.reward, -np.hypot(0.4, 0.4), rtol=1e-5)


def test_without_a_push_there_are_no_actions(key):
    env = module.local_particles(NUM, push=0.0)
    assert env.spec.flat_sizes("a test") == (20, 0)
    state = env.step(key, env.reset(key), jnp.zeros(0))
    assert state.obs.shape == env.spec.obs.shape
    observed = np.asarray(state.obs).reshape(NUM, 4)
    np.testing.assert_array_equal(observed[:, :2], state.physics.position)


def test_gradients_are_finite_where_particles_meet(env, key):
    positions = np.array(FAR)
    positions[3] = positions[0]

    def total(position):
        state = env.reset_to(Particles(position, jnp.zeros((NUM, 2))))
        return jnp.sum(env.step(key, state, jnp.zeros(2)).obs)

    slopes = jax.grad(total)(jnp.asarray(positions, jnp.float32))
    assert np.isfinite(slopes).all()


def test_it_is_listed_and_refuses_what_has_no_sense():
    assert envs.make("local_particles").spec.name == "local_particles"
    with pytest.raises(ValueError, match="num must be at least 3 particles, got 2"):
        module.local_particles(2)
    with pytest.raises(ValueError, match="push must not be negative"):
        module.local_particles(push=-1.0)
