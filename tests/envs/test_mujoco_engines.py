"""One task, three engines: what they agree on, and what each refuses."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.core import loop
from jaxwm.envs import mjcf, mujoco
from jaxwm.envs.mujoco import Edit
from jaxwm.envs.tasks import (
    cartpole,
    halfcheetah,
    hopper,
    inverted_pendulum,
    mujoco_cartpole,
    mujoco_pendulum,
    pendulum,
    walker2d,
)
from jaxwm.physics import mjx
from jaxwm.types import Factor
from tests.envs.mujoco_states import actions, rolled, starts

PAIRS = {
    "pendulum": (mujoco_pendulum.pendulum, pendulum.pendulum),
    "balance": (mujoco_cartpole.balance, cartpole.cartpole_balance),
    "swingup": (mujoco_cartpole.swingup, cartpole.cartpole_swingup),
}
BLOCK = """
<mujoco>
  <option timestep="0.005"/>
  <worldbody>
    <geom type="plane" size="5 5 1" friction="0.5"/>
    <body name="block" pos="0 0 0.1">
      <joint name="x" type="slide" axis="1 0 0" limited="true" range="-0.5 0.5"/>
      <joint name="z" type="slide" axis="0 0 1"/>
      <joint name="pitch" type="hinge" axis="0 1 0" damping="0.1"/>
      <geom name="block" type="capsule" fromto="-0.2 0 0 0.2 0 0" size="0.1" mass="2"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="20" ctrllimited="true" ctrlrange="-1 1"/>
    <motor joint="pitch" gear="2" ctrllimited="true" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


def block(engine):
    """A capsule that slides and tips on a floor, between two walls."""
    mass = Factor("mass", 2.0, 1.0, 4.0, "kg", "mass of the block")
    friction = Factor("friction", 1.0, 0.2, 2.0, "1", "scales all friction")
    factors = {
        mass: (Edit("body_mass", "block"), Edit("body_inertia", "block")),
        friction: (Edit("geom_friction", column=0),),
    }
    reward = lambda before, action, after: after.qpos[0]
    return mjcf.from_mjcf(BLOCK, reward, engine=engine, factors=factors)


CONTACT = {
    "block": block,
    "halfcheetah": halfcheetah.halfcheetah,
    "hopper": hopper.hopper,
    "inverted_pendulum": inverted_pendulum.inverted_pendulum,
    "walker2d": walker2d.walker2d,
}


def as_plain(name, physics):
    """Physics of the task in pure JAX from those on MuJoCo."""
    qpos, qvel = physics.qpos, physics.qvel
    if name == "pendulum":
        return pendulum.Pendulum(qpos[..., 0], qvel[..., 0])
    return cartpole.Cartpole(qpos[..., 0], qvel[..., 0], qpos[..., 1], qvel[..., 1])


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("pendulum", "mjx"),
        pytest.param("swingup", "mjx", marks=pytest.mark.slow),
        *((name, "c") for name in PAIRS),
    ],
)
def test_one_step_equals_the_task_in_pure_jax(key, name, engine):
    ours, plain = PAIRS[name][0](engine=engine), PAIRS[name][1]()
    start_key, action_key = jax.random.split(key)
    state = starts(start_key, ours, 64)
    action = actions(action_key, ours, 64)
    keys = loop.fold_in_each(jax.random.key(1), 64)
    other = jax.vmap(plain.reset_to)(as_plain(name, state.physics), state.params)
    np.testing.assert_allclose(state.obs, other.obs, atol=1e-6)
    after = jax.jit(jax.vmap(ours.step))(keys, state, action)
    expected = jax.vmap(plain.step)(keys, other, action)
    got = as_plain(name, after.physics)
    if name == "balance":  # explicit Euler there: positions lag by dt^2 acceleration
        np.testing.assert_allclose(got[1::2], expected.physics[1::2], atol=2e-5)
        np.testing.assert_allclose(got[::2], expected.physics[::2], atol=0.02)
        return
    np.testing.assert_allclose(got, expected.physics, atol=2e-5)
    np.testing.assert_allclose(after.obs, expected.obs, atol=2e-5)
    np.testing.assert_allclose(after.reward, expected.reward, atol=1e-5)
    np.testing.assert_array_equal(after.discount, expected.discount)


def test_the_rails_end_stops_the_cart_as_in_pure_jax():
    ours, plain = mujoco_cartpole.swingup(engine="c"), cartpole.cartpole_swingup()
    physics = mujoco.reference_state(mujoco.asset("cartpole"))
    physics = physics._replace(qpos=jnp.array([2.39, 0.3]), qvel=jnp.array([2.0, -0.5]))
    key, action = jax.random.key(0), jnp.array([0.5])
    after = ours.step(key, ours.reset_to(physics), action)
    other = plain.reset_to(as_plain("swingup", physics))
    expected = plain.step(key, other, action).physics
    got = as_plain("swingup", after.physics)
    assert float(got.x_dot) == 0.0
    np.testing.assert_allclose(got, expected, atol=2e-6)


def disagreement(key, build, num=64):
    """Largest difference of c and mjx after one step, and the largest speed.

    From states that random actions lead to, under factors drawn over their ranges.
    """
    keys = jax.random.split(key, 3)
    ours, other = build(engine="c"), build(engine="mjx")
    state = starts(keys[0], ours, num, speed=1.0)
    steps = actions(keys[1], ours, num, 20)
    roll = lambda state, steps: rolled(ours, state, steps)
    physics = jax.jit(jax.vmap(roll))(state, steps)
    state = jax.vmap(ours.reset_to)(physics, state.params)
    action = actions(keys[2], ours, num)
    step_keys = loop.fold_in_each(jax.random.key(1), num)
    one = jax.jit(jax.vmap(ours.step))(step_keys, state, action)
    two = jax.jit(jax.vmap(other.step))(step_keys, state, action)
    assert bool(jnp.isfinite(one.physics.qvel).all())
    np.testing.assert_allclose(one.reward, two.reward, atol=2e-3)
    gap = lambda a, b: float(jnp.max(jnp.abs(a - b)))
    return (
        gap(one.physics.qpos, two.physics.qpos),
        gap(one.physics.qvel, two.physics.qvel),
        float(jnp.max(jnp.abs(one.physics.qvel))),
    )


def test_mjx_and_c_agree_without_contacts(key):
    qpos, qvel, _ = disagreement(key, mujoco_cartpole.swingup)
    assert qpos < 1e-4 and qvel < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTACT)
def test_mjx_and_c_agree_with_contacts(key, name):
    # Speeds of 20 m/s and rad/s, stiff contacts, four to twenty evaluations of the
    # forces per step, in float32: 1e-4 of the largest speed. Measured on halfcheetah:
    # 7e-5 at a speed of 26.
    qpos, qvel, speed = disagreement(key, CONTACT[name])
    assert qpos < 1e-4 and qvel < 1e-4 * max(speed, 1)


@pytest.mark.slow
def test_a_batch_that_knows_its_factors_steps_like_one_that_reads_them(key):
    env = envs.fixed(mujoco_cartpole.swingup(), {"cart_mass": 2.0})
    batch = envs.batch(env, 3, factors={"pole_mass": (0.2, 0.4)})
    state = batch.reset(jax.random.fold_in(key, 0))
    np.testing.assert_array_equal(state.env.params["cart_mass"], 2)
    keys = lambda: jax.random.fold_in(key, 1)
    act = jnp.array([[0.5], [-1.0], [0.1]])
    known = jax.jit(batch.step)(keys(), state, act)[1]
    read = jax.jit(jax.vmap(env.step, (None, 0, 0)))(keys(), state.env, act).obs
    np.testing.assert_allclose(known, read, rtol=1e-5, atol=1e-6)
    plain = mujoco_cartpole.swingup()
    other = jax.jit(jax.vmap(plain.step, (None, 0, 0)))
    light = state.env._replace(params={**state.env.params, "cart_mass": jnp.ones(3)})
    assert np.abs(known - other(keys(), light, act).obs).max() > 1e-3


@pytest.mark.slow
def test_engine_mjx_has_the_gradient_of_the_task_in_pure_jax(key):
    ours, plain = mujoco_pendulum.pendulum(engine="mjx"), pendulum.pendulum()
    state = ours.reset(key)
    other = plain.reset_to(as_plain("pendulum", state.physics))

    def cost(env, begin, action, mass):
        params = {**begin.params, "mass": mass}
        after = env.step(jax.random.key(0), begin._replace(params=params), action)
        return jnp.sum(after.obs**2 * jnp.arange(1.0, 4))

    arguments = (jnp.array([0.3]), jnp.float32(1.1))
    grads = [
        jax.jit(jax.grad(lambda a, m, e=env, s=begin: cost(e, s, a, m), (0, 1)))(
            *arguments
        )
        for env, begin in ((ours, state), (plain, other))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *grads)
    assert float(jnp.abs(grads[0][0]).sum()) > 0


def test_stepping_mjx_without_jit_gives_a_hint_once(key, caplog, monkeypatch):
    env = mujoco_pendulum.pendulum(engine="mjx")
    stay = lambda simulator, state, ctrl, *, num_substeps: state
    monkeypatch.setattr(mjx, "step", stay)  # compiling is what the hint warns of
    mujoco._hint_at_jit.cache_clear()
    step = lambda state: env.step(jax.random.key(0), state, jnp.zeros(1))
    state = jax.jit(step)(env.reset(key))
    assert caplog.records == []
    step(step(state))
    assert ["jax.jit" in record.getMessage() for record in caplog.records] == [True]


def test_unknown_engines_are_named():
    with pytest.raises(ValueError, match="mjx"):
        hopper.hopper(engine="mjxx")


@pytest.mark.skipif(
    importlib.util.find_spec("warp") is not None, reason="warp-lang is installed"
)
def test_engine_warp_names_the_extra_that_it_needs():
    with pytest.raises(ImportError, match=r'pip install "jaxwm\[warp\]"'):
        hopper.hopper(engine="warp")


def build(spec, **changes):
    options = {
        "engine": "c",
        "num_substeps": 1,
        "start": lambda key, params, reference: (reference.qpos, reference.qvel),
        "observe": lambda physics, params: physics.qpos,
        "outcome": lambda before, action, after, params: (0.0, 1.0),
        "edits": mujoco_pendulum.EDITS,
    }
    return mujoco.build(spec, mujoco.asset("pendulum"), **{**options, **changes})


def test_a_spec_that_does_not_fit_the_model_is_refused():
    spec = pendulum.SPEC
    with pytest.raises(ValueError, match="control_dt"):
        build(spec, num_substeps=2)
    with pytest.raises(ValueError, match="actuators"):
        build(spec._replace(action=cartpole.BALANCE.action._replace(low=(), high=())))
    with pytest.raises(ValueError, match="edits"):
        build(spec, edits={})
    wrong = {**mujoco_pendulum.EDITS, "mass": (Edit("body_mass", "bob"),)}
    with pytest.raises(ValueError, match='no row "bob"'):
        build(spec, edits=wrong)
    wrong = {**mujoco_pendulum.EDITS, "mass": (Edit("body_weight", "rod"),)}
    with pytest.raises(ValueError, match="body_weight"):
        build(spec, edits=wrong)
    wrong = {**mujoco_pendulum.EDITS, "friction": (Edit("dof_damping", "hinge"),)}
    with pytest.raises(ValueError, match="slope"):
        build(spec, edits=wrong)
