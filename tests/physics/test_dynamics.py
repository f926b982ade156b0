"""Rollouts: values, rematerialisation, truncation, clipped adjoints, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import bodies, contact, dynamics, mpm
from jaxwm.physics.dynamics import rollout
from jaxwm.physics.rigid import rigid

PENDULUM = rigid(bodies.pendulum(), dt=0.02)
T = 23  # neither a square nor even


def swing(length, actions, **options):
    """Final angle as a function of one parameter."""
    params = {**PENDULUM.params, "length": length}
    start = bodies.State(jnp.array([2.0]), jnp.array([0.5]))
    final, path = rollout(PENDULUM, params, start, actions, **options)
    return final.q[0], path


@pytest.fixture(scope="module")
def actions():
    return jnp.sin(jnp.arange(T, dtype=jnp.float32))[:, None]


def test_the_path_is_what_stepping_by_hand_gives(actions):
    final, path = jax.jit(lambda u: swing(1.0, u))(actions)
    state = bodies.State(jnp.array([2.0]), jnp.array([0.5]))
    step = jax.jit(PENDULUM.step)
    for t in range(T):
        state = step(PENDULUM.params, state, actions[t])
        np.testing.assert_allclose(path.state.q[t], state.q, rtol=1e-5)
    np.testing.assert_allclose(final, state.q[0], rtol=1e-5)
    np.testing.assert_array_equal(path.action, actions)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["all", "sqrt", 1, 23])
def test_rematerialisation_changes_neither_value_nor_gradient(actions, checkpoint, x64):
    def of(checkpoint):
        final = lambda length: swing(length, actions, checkpoint=checkpoint)
        return jax.jit(jax.value_and_grad(final, has_aux=True))(1.1)

    (value, path), slope = of("none")
    (other, other_path), other_slope = of(checkpoint)
    np.testing.assert_allclose(other, value, rtol=1e-12)
    np.testing.assert_allclose(other_slope, slope, rtol=1e-10)
    np.testing.assert_allclose(other_path.state.q, path.state.q, rtol=1e-12)


@pytest.mark.slow
def test_square_root_rematerialisation_keeps_a_fifth_or_less_at_1000_steps():
    hopper = rigid(bodies.hopper(), contact.compliant(), dt=1e-3)
    start = bodies.State(jnp.array([0.0, 1.0, 0.1, 0.5]), jnp.zeros(4))

    def temporary(checkpoint):
        def loss(actions):
            final, _ = rollout(
                hopper, hopper.params, start, actions, checkpoint=checkpoint
            )
            return final.q[0]

        compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros((1000, 2))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("sqrt") < temporary("none") / 5


@pytest.mark.slow
def test_square_root_rematerialisation_of_material_points_keeps_a_fifth_or_less():
    body = mpm.moving(mpm.block((0.5, 0.45), (0.3, 0.3), (12, 12)), (1.0, -2.0))
    law = mpm.elasticity.corotated()
    jelly = mpm.mpm(body, law, cells=20, dt=2e-4)
    start = jelly.init(jax.random.key(0), jelly.params)

    def temporary(checkpoint):
        def loss(E):
            params = {**jelly.params, "elastic": {**law.params, "E": E}}
            actions = jnp.zeros((1000, 0))
            final, _ = rollout(jelly, params, start, actions, checkpoint=checkpoint)
            return jnp.mean(final.x**2)

        compiled = jax.jit(jax.grad(loss)).lower(jnp.float32(1e5)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("sqrt") < temporary("none") / 5


def test_a_policy_acts_on_what_it_observes():
    start = bodies.State(jnp.array([0.1]), jnp.array([0.0]))
    policy = lambda obs: -2 * obs[:1]
    _, path = rollout(PENDULUM, PENDULUM.params, start, policy, length=5)
    before = np.concatenate([[0.1], path.state.q[:-1, 0]])
    np.testing.assert_allclose(path.action[:, 0], -2 * before, rtol=1e-6)


@pytest.mark.slow
def test_truncation_cuts_the_gradient_and_not_the_value(actions, x64):
    def first(u, **options):
        return swing(1.0, u, **options)[0]

    value, slope = jax.value_and_grad(first)(actions)
    cut_value, cut = jax.value_and_grad(first)(actions, truncate=10)
    assert cut_value == value
    np.testing.assert_array_equal(cut[:20], 0)
    np.testing.assert_allclose(cut[20:], slope[20:], rtol=1e-12)


def test_clipping_bounds_the_adjoint_and_kills_what_is_not_finite():
    limited = jax.grad(lambda x: 100 * jnp.sum(dynamics.clip_cotangent(x, 2.0)))
    np.testing.assert_allclose(jnp.linalg.norm(limited(jnp.ones(4))), 2, rtol=1e-6)
    free = jax.grad(lambda x: 0.5 * jnp.sum(dynamics.clip_cotangent(x, 2.0)))
    np.testing.assert_array_equal(free(jnp.ones(4)), 0.5)
    broken = jax.grad(lambda x: jnp.sum(jnp.sqrt(dynamics.clip_cotangent(x, 2.0))))
    np.testing.assert_array_equal(broken(jnp.zeros(2)), 0)


def test_clipped_rollouts_keep_their_values(actions):
    free, clipped = swing(1.0, actions)[0], swing(1.0, actions, grad_clip=0.1)[0]
    assert free == clipped


def test_repeated_steps_make_one_longer_step():
    twice = dynamics.repeated(PENDULUM, 2)
    start, action = bodies.State(jnp.array([1.0]), jnp.zeros(1)), jnp.ones(1)
    once = PENDULUM.step(PENDULUM.params, start, action)
    np.testing.assert_allclose(
        twice.step(PENDULUM.params, start, action).q,
        PENDULUM.step(PENDULUM.params, once, action).q,
        rtol=1e-6,
    )
    assert twice.dt == 2 * PENDULUM.dt


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(actions=jnp.zeros((3, 2))), r"actions must have the shape \[T, 1\]"),
        (dict(actions=jnp.zeros(3)), r"got \[3\]; a single action needs"),
        (dict(actions=lambda obs: obs), "length must be given with a policy"),
        (dict(length=4), "length must be the number of actions, 23"),
        (dict(checkpoint="some"), 'checkpoint must be "none", "all", "sqrt"'),
        (dict(checkpoint=5), "checkpoint must divide the 23 steps, got 5"),
        (dict(truncate=0), "truncate must be at least 1"),
        (dict(grad_clip=0.0), "grad_clip must be positive"),
    ],
)
def test_bad_rollouts_are_refused(actions, options, match):
    options = {"actions": actions, **options}
    start = bodies.State(jnp.zeros(1), jnp.zeros(1))
    with pytest.raises(ValueError, match=match):
        rollout(PENDULUM, PENDULUM.params, start, **options)
    with pytest.raises(ValueError, match="num must be at least 1"):
        dynamics.repeated(PENDULUM, 0)
