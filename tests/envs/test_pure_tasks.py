"""Pure-JAX tasks against Gymnasium, step by step from the same states."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm import envs
from jaxwm.envs.tasks import cartpole, pendulum

NAMES = ("pendulum", "cartpole_balance", "cartpole_swingup")


@pytest.mark.parametrize("name", NAMES)
def test_step_keeps_structure_dtypes_and_weak_types(name, key):
    env = envs.make(name, engine="jax")
    start = jax.eval_shape(env.reset, key)
    action = jax.ShapeDtypeStruct((env.spec.action.size,), np.float32)
    after = jax.eval_shape(env.step, key, start, action)
    assert jax.tree.structure(start) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    assert start.obs.shape == env.spec.obs.shape
    assert start.obs.dtype == env.spec.obs.dtype
    assert set(start.params) == {f.name for f in env.spec.factors}


@pytest.mark.parametrize("name", NAMES)
def test_reset_to_restores_the_future_bit_for_bit(name, key):
    env = envs.make(name, engine="jax")
    step = jax.jit(env.step)
    state = step(key, env.reset(key), jnp.array([0.3]))
    again = env.reset_to(state.physics, state.params)
    assert again.t == 0
    np.testing.assert_array_equal(state.obs, again.obs)
    action = jnp.array([-0.8])
    one, two = step(key, state, action), step(key, again, action)
    np.testing.assert_array_equal(one.obs, two.obs)
    assert one.reward == two.reward


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_clipped_to_their_bounds(name, key):
    env = envs.make(name, engine="jax")
    state, step = env.reset(key), jax.jit(env.step)
    inside = step(key, state, jnp.ones(1))
    for huge in (50.0, 1e30, jnp.inf):
        outside = step(key, state, jnp.array([huge]))
        np.testing.assert_array_equal(inside.obs, outside.obs)
        assert inside.reward == outside.reward


def test_pendulum_equals_gymnasium_for_a_whole_episode(key):
    env, reference = envs.make("pendulum", engine="jax"), gymnasium.make("Pendulum-v1")
    step, raw = jax.jit(env.step), reference.unwrapped
    reference.reset(seed=3)
    actions = np.random.default_rng(3).uniform(-1.2, 1.2, (200, 1))
    for action in actions:
        state = env.reset_to(pendulum.Pendulum(*map(np.float32, raw.state)))
        np.testing.assert_allclose(state.obs, raw._get_obs(), atol=2e-5)
        state = step(key, state, jnp.asarray(action, jnp.float32))
        obs, reward, terminated, truncated, _ = reference.step(2 * action)
        np.testing.assert_allclose(state.obs, obs, atol=5e-5)
        np.testing.assert_allclose(state.reward, reward, atol=2e-4)
        assert bool(state.discount == 0) == terminated
    assert truncated and env.spec.time_limit == 200


def test_pendulum_starts_where_gymnasium_does(key):
    env = envs.make("pendulum", engine="jax")
    theta, omega = jax.vmap(env.reset)(jax.random.split(key, 2000)).physics
    for values, high in ((theta, np.pi), (omega, 1.0)):
        assert np.abs(values).max() <= high
        # Mean and variance of a uniform distribution, five standard errors wide.
        assert abs(values.mean()) < 5 * high / np.sqrt(3 * 2000)
        assert abs(values.var() / (high**2 / 3) - 1) < 0.1


@pytest.mark.parametrize(
    "integrator, advance",
    [
        ("euler", cartpole._advance_balance),
        ("semi-implicit euler", cartpole._advance_swingup),
    ],
)
def test_cartpole_moves_as_gymnasium(integrator, advance, key):
    raw = gymnasium.make("CartPole-v1").unwrapped
    raw.kinematics_integrator = integrator
    params = cartpole.BALANCE.default_params()
    advance, rng = jax.jit(advance), np.random.default_rng(4)
    for _ in range(50):
        start = rng.uniform([-2, -3, -0.19, -3], [2, 3, 0.19, 3])
        push = rng.integers(2)
        raw.reset(seed=0)
        raw.state = start
        obs, _, terminated, _, _ = raw.step(push)
        action = jnp.array([2.0 * push - 1])
        physics, _, discount = advance(key, cartpole.Cartpole(*start), params, action)
        np.testing.assert_allclose(np.stack(physics), obs, rtol=1e-5, atol=1e-5)
        if integrator == "euler":
            assert bool(discount == 0) == terminated
        else:
            assert discount == 1


@pytest.mark.parametrize(
    "x, theta, ends",
    [(2.39, 0.0, False), (2.41, 0.0, True), (0.0, 0.209, False), (0.0, -0.21, True)],
)
def test_cartpole_balance_ends_at_the_rail_and_at_twelve_degrees(x, theta, ends, key):
    env = envs.make("cartpole_balance", engine="jax")
    state = env.reset_to(cartpole.Cartpole(x, 0.0, theta, 0.0))
    state = env.step(key, state, jnp.zeros(1))
    assert bool(state.discount == 0) == ends
    np.testing.assert_allclose(state.reward, 1 - (x / 2.4) ** 2, atol=1e-6)


def test_swingup_reward_is_one_only_at_rest_upright_in_the_middle(key):
    env = envs.make("cartpole_swingup", engine="jax")
    state = env.reset_to(cartpole.Cartpole(0.0, 0.0, 0.0, 0.0))
    best = env.step(key, state, jnp.zeros(1))
    assert best.reward == 1
    # Each term at its margin: 0.75, 0.55 and 0.55, and 0.8 for a full action.
    start = cartpole.Cartpole(2.0, 0.0, jnp.pi / 3, 5.0)
    state = env.step(key, env.reset_to(start), jnp.ones(1))
    x, _, theta, theta_dot = state.physics
    upright, effort = (1 + np.cos(theta)) / 2, 0.8
    centred, calm = (1 + 0.1 ** (x**2 / 4)) / 2, (1 + 0.1 ** (theta_dot**2 / 25)) / 2
    np.testing.assert_allclose(state.reward, upright * effort * centred * calm, 1e-5)
    np.testing.assert_allclose(state.reward, 0.75 * 0.8 * 0.55 * 0.55, rtol=0.15)


def test_swingup_rail_stops_the_cart_and_pushes_the_pole(key):
    env = envs.make("cartpole_swingup", engine="jax")
    step, state = jax.jit(env.step), env.reset(key)
    for _ in range(120):
        state = step(key, state, jnp.array([1.0]))
    assert state.physics.x == pytest.approx(2.4)
    assert state.physics.x_dot == 0
    # Without gravity, a pole upright on a cart at 1 m/s turns at 3 / (4 l) after it.
    env = envs.make("cartpole_swingup", engine="jax", gravity=1e-9)
    state = env.reset_to(cartpole.Cartpole(2.39, 1.0, 0.0, 0.0))
    state = env.step(key, state, jnp.zeros(1))
    assert state.physics.theta_dot == pytest.approx(1.5, rel=1e-5)


def test_swingup_keeps_its_energy_where_explicit_euler_gains(key):
    def energy(p):
        m, M, l, g = 0.1, 1.0, 0.5, 9.8
        cart = 0.5 * (M + m) * p.x_dot**2
        pole = 2 / 3 * m * l**2 * p.theta_dot**2
        both = m * l * p.x_dot * p.theta_dot * jnp.cos(p.theta)
        return cart + pole + both + m * g * l * jnp.cos(p.theta)

    def error(advance):
        def body(physics, _):
            params = cartpole.SWINGUP.default_params()
            physics, _, _ = advance(key, physics, params, jnp.zeros(1))
            return physics, energy(physics)

        start = cartpole.Cartpole(*map(jnp.float32, (0.0, 0.0, 1.0, 0.0)))
        energies = jax.jit(lambda p: jax.lax.scan(body, p, length=500)[1])(start)
        return np.abs(energies - energy(start)).max()

    # 2 m g l = 0.98 J lie between hanging and upright; measured 0.045 and 1.4.
    assert error(cartpole._advance_swingup) < 0.06
    assert error(cartpole._advance_balance) > 0.5


def test_factors_enter_the_equations_of_motion(key):
    still = pendulum.Pendulum(np.float32(np.pi / 2), np.float32(0.0))
    for changed, expected in (
        ({}, 15 + 3 * 2),
        ({"mass": 2.0}, 15 + 3),
        ({"length": 2.0}, 7.5 + 6 / 4),
        ({"gravity": 5.0}, 7.5 + 6),
        ({"gain": 4.0}, 15 + 12),
    ):
        env = envs.make("pendulum", engine="jax", **changed)
        state = env.step(key, env.reset_to(still), jnp.ones(1))
        assert state.physics.omega == pytest.approx(expected * 0.05, rel=1e-5)
    env = envs.make("pendulum", engine="jax", friction=0.1)
    turning = env.reset_to(pendulum.Pendulum(np.float32(0.0), np.float32(4.0)))
    state = env.step(key, turning, jnp.zeros(1))
    assert state.physics.omega == pytest.approx(4 - 3 * 0.1 * 4 * 0.05, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name, key):
    env = envs.make(name, engine="jax")
    kind = type(jax.eval_shape(env.reset, key).physics)

    @jax.jit
    def outcome(start, action):
        def body(state, i):
            state = env.step(jax.random.fold_in(key, i), state, action)
            return state, (state.obs, state.reward)

        return jax.lax.scan(body, env.reset_to(kind(*start)), jnp.arange(3))[1]

    with jax.enable_x64(True):
        start = jnp.linspace(0.11, 0.2, len(kind._fields))
        check_grads(outcome, (start, jnp.array([0.4])), 1, ("fwd", "rev"))
