"""Every rule by hand, and the nearest disc of a type that has one acts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.envs.tasks import rule_particles as module
from jaxwm.envs.tasks.rule_particles import ENVIRONMENTS, FORCE, Discs

A, B, C = 0, 1, 2


def params(**rules):
    zero = {f.name: jnp.float32(0) for f in module.FACTORS}
    return zero | {name: jnp.float32(rule) for name, rule in rules.items()}


@pytest.fixture(scope="module")
def env():
    return module.rule_particles(3)


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(env.step)


def discs(positions, kinds, velocity=0.0):
    position = jnp.asarray(positions, jnp.float32)
    return Discs(position, jnp.full_like(position, velocity), jnp.asarray(kinds))


@pytest.mark.parametrize(
    "rule, push", [(0, (0, 0)), (1, (1, 0)), (2, (-1, 0)), (3, (0, 1))]
)
def test_a_rule_pushes_along_or_across_the_offset(env, step, key, rule, push):
    physics = discs([[0, 0], [0.2, 0], [3, 3]], [A, B, C], velocity=0.01)
    state = env.reset_to(physics, params(a_from_b=rule))
    after = step(key, state, jnp.zeros(2)).physics
    velocity = 0.01 + FORCE * np.array(push)
    np.testing.assert_allclose(after.velocity[0], velocity, atol=1e-6)
    np.testing.assert_allclose(after.position[0], velocity, atol=1e-6)
    # The rule is that of A near B: B feels nothing, and types stay.
    np.testing.assert_allclose(after.velocity[1:], 0.01, atol=1e-7)
    np.testing.assert_array_equal(after.kind, physics.kind)


def test_the_nearest_disc_with_a_rule_acts_and_only_within_reach():
    table = params(a_from_b=1, a_from_c=2)
    near_c = discs([[0, 0], [0.3, 0], [0, -0.2]], [A, B, C])
    found = module.acting(near_c, table)
    np.testing.assert_array_equal(found.rule, [2, 0, 0])
    np.testing.assert_array_equal(found.context, [2, 1, 2])
    # Nearer, but its type has no rule here.
    found = module.acting(near_c, params(a_from_b=1))
    np.testing.assert_array_equal(found.rule, [1, 0, 0])
    assert found.context[0] == 1
    far = discs([[0, 0], [0.41, 0], [0, -0.5]], [A, B, C])
    assert not module.acting(far, table).rule.any()


def test_what_acts_is_what_moves_a_disc_off_its_course(key):
    """Over many starts of every environment, against the simulator itself."""
    env = module.rule_particles(4, push=0.0)

    def one(key, index):
        table = {
            f.name: jnp.array([e.get(f.name, 0.0) for e in ENVIRONMENTS])[index]
            for f in module.FACTORS
        }
        state = env.reset(key, table)
        after = env.step(key, state, jnp.zeros(0))
        turned = jnp.abs(after.physics.velocity - state.physics.velocity).max(-1)
        return turned > 1e-4, module.acting(state.physics, table)

    keys = jax.random.split(key, 500)
    turned, acting = jax.jit(jax.vmap(one))(keys, jnp.arange(500) % 5)
    np.testing.assert_array_equal(turned, acting.rule > 0)
    assert 0.1 < turned.mean() < 0.6
    counts = np.bincount(np.asarray(acting.rule).ravel(), minlength=4)
    assert counts.min() > 50


def test_training_environments_share_every_rule_and_the_new_one_is_new():
    *trained, new = ENVIRONMENTS
    for rule in (1, 2, 3):
        assert sum(rule in table.values() for table in trained) >= 2
    for table in trained:
        assert not set(table.items()) & set(new.items())


def test_observations_hold_types_and_actions_push_the_last_disc(env, step, key):
    state = env.reset_to(discs([[1, 2], [3, 4], [0.3, 0.4]], [A, C, B]))
    rows = np.asarray(state.obs).reshape(3, 7)
    np.testing.assert_array_equal(rows[:, 4:], np.eye(3)[[0, 2, 1]])
    np.testing.assert_allclose(rows[:, :2], state.physics.position)
    after = step(key, state, jnp.array([9.0, -1.0]))
    np.testing.assert_allclose(after.physics.velocity[2], [0.02, -0.02], atol=1e-7)
    np.testing.assert_allclose(after.reward, -0.5, rtol=1e-5)
    assert envs.make("rule_particles").spec.flat_sizes("a test") == (28, 2)


def test_gradients_are_finite_where_discs_meet(env, key):
    def total(position):
        physics = Discs(position, jnp.zeros((3, 2)), jnp.array([A, B, B]))
        state = env.reset_to(physics, params(a_from_b=1))
        return jnp.sum(env.step(key, state, jnp.zeros(2)).obs)

    assert np.isfinite(jax.jit(jax.grad(total))(jnp.zeros((3, 2)))).all()


def test_what_has_no_sense_is_refused():
    with pytest.raises(ValueError, match="num must be at least 2 discs, got 1"):
        module.rule_particles(1)
    with pytest.raises(ValueError, match="push must not be negative"):
        module.rule_particles(push=-1.0)
