"""One task, three engines: what they agree on, and what each refuses."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from mujoco import batch as mujoco_batch

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
from jaxwm.types import Factor

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


def starts(key, env, num, speed=4.0):
    """States faster than the usual starts, with factors drawn over their ranges."""
    start_key, speed_key, params_key = jax.random.split(key, 3)
    ranges = envs.factors.ranges(env.spec, "range")
    draw = lambda key: envs.factors.sample(key, env.spec, ranges)
    params = jax.vmap(draw)(loop.fold_in_each(params_key, num))
    state = jax.vmap(env.reset)(loop.fold_in_each(start_key, num), params)
    qvel = jax.random.uniform(speed_key, state.physics.qvel.shape, minval=-1.0)
    return jax.vmap(env.reset_to)(state.physics._replace(qvel=speed * qvel), params)


def actions(key, env, *shape):
    """Actions of which some are outside of their bounds."""
    high = jnp.array(env.spec.action.high)
    shape = (*shape, env.spec.action.size)
    return 1.2 * high * jax.random.uniform(key, shape, minval=-1.0)


def rolled(env, state, steps):
    """Physics after actions `[T, ...]`, drawn beforehand."""

    def step(state, action):
        return env.step(jax.random.key(0), state, action), None

    return jax.lax.scan(step, state, steps)[0].physics


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize(
    ("name", "engine"),
    [("pendulum", "mjx"), ("swingup", "mjx"), *((name, "c") for name in PAIRS)],
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
    physics = physics._replace(
        qpos=jnp.array([2.39, 0.3]), qvel=jnp.array([2.0, -0.5])
    )
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


@pytest.mark.parametrize(
    "name",
    [
        name if name == "block" else pytest.param(name, marks=pytest.mark.slow)
        for name in CONTACT
    ],
)
def test_mjx_and_c_agree_with_contacts(key, name):
    # Speeds of 20 m/s and rad/s, stiff contacts, four to twenty evaluations of the
    # forces per step, in float32: 1e-4 of the largest speed. Measured on halfcheetah:
    # 7e-5 at a speed of 26.
    qpos, qvel, speed = disagreement(key, CONTACT[name])
    assert qpos < 1e-4 and qvel < 1e-4 * max(speed, 1)


def count_calls(monkeypatch):
    sizes = []
    whole = mujoco_batch.Batch.step

    def step(self, ids=None, nstep=1, **kwargs):
        sizes.append((self.nsim, nstep))
        return whole(self, ids, nstep, **kwargs)

    monkeypatch.setattr(mujoco_batch.Batch, "step", step)
    return sizes


def test_one_host_call_steps_all_seeds_and_environments(key, monkeypatch):
    sizes = count_calls(monkeypatch)
    env = halfcheetah.halfcheetah(engine="c")
    start_key, action_key = jax.random.split(key)
    state = starts(start_key, env, 6)
    state = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), state)
    steps = actions(action_key, env, 4, 2, 3)
    roll = jax.vmap(jax.vmap(lambda s, a: rolled(env, s, a), (0, 1)), (0, 1))
    jax.block_until_ready(jax.jit(roll)(state, steps))
    assert sizes == [(6, 5)] * 4


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_and_batch_size_change_no_bit(key, num_threads):
    env = hopper.hopper(engine="c", num_threads=2)
    start_key, action_key = jax.random.split(key)
    state, steps = starts(start_key, env, 9), actions(action_key, env, 9, 5)
    many = jax.jit(jax.vmap(lambda s, a: rolled(env, s, a)))(state, steps)
    env = hopper.hopper(engine="c", num_threads=num_threads)
    again = jax.jit(jax.vmap(lambda s, a: rolled(env, s, a)))(state, steps)
    assert_equal(many, again)
    pick = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    for i in (0, 8):
        alone = jax.jit(lambda s, a: rolled(env, s, a))(pick(state, i), steps[i])
        assert_equal(alone, pick(many, i))


def test_devices_step_their_shards_at_the_same_time(key):
    # Large enough that putting the arguments on a device would not return.
    env = halfcheetah.halfcheetah(engine="c")
    start_key, action_key = jax.random.split(key)
    state, steps = starts(start_key, env, 2048), actions(action_key, env, 2048, 3)
    roll = jax.vmap(lambda s, a: rolled(env, s, a))
    mesh = jax.make_mesh((2,), ("env",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = P("env")
    sharded = jax.shard_map(
        roll, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
    )
    assert_equal(jax.jit(roll)(state, steps), jax.jit(sharded)(state, steps))


def test_a_stored_state_continues_bit_for_bit(key):
    env = hopper.hopper(engine="c")
    start_key, action_key = jax.random.split(key)
    state, steps = starts(start_key, env, 4), actions(action_key, env, 4, 6)
    roll = jax.jit(jax.vmap(lambda s, a: rolled(env, s, a)))
    middle = roll(state, steps[:, :3])
    stored = jax.vmap(env.reset_to)(jax.tree.map(np.asarray, middle), state.params)
    assert_equal(roll(state, steps), roll(stored, steps[:, 3:]))


def test_a_blow_up_ends_one_environment_and_no_other(key):
    env = halfcheetah.halfcheetah(engine="c")
    many = envs.batch(env, 5)
    reset_key, action_key = jax.random.split(key)
    state = jax.jit(many.reset)(reset_key)
    action, step = actions(action_key, env, 5), jax.jit(many.step)
    step_key = jax.random.key(4)
    calm, _ = step(jax.random.clone(step_key), state, action)
    for bad in (
        state._replace(
            env=state.env._replace(
                physics=state.env.physics._replace(
                    qvel=state.env.physics.qvel.at[2, 5].set(speed)
                )
            )
        )
        for speed in (jnp.nan, 1e12, 1e7)
    ):
        after, final_obs = step(jax.random.clone(step_key), bad, action)
        diverged = after.env.metrics["env/diverged"]
        np.testing.assert_array_equal(diverged, [0, 0, 1, 0, 0])
        others = np.array([0, 1, 3, 4])
        pick = lambda tree: jax.tree.map(lambda x: x[others], tree)
        assert_equal(pick(after.env.physics), pick(calm.env.physics))
        assert bool(jnp.isfinite(after.env.obs).all())
    del final_obs


def test_an_action_that_is_no_number_counts_as_a_blow_up(key):
    env = mujoco_pendulum.pendulum(engine="c")
    state = env.step(key, env.reset(jax.random.key(2)), jnp.array([jnp.nan]))
    assert bool(jnp.isnan(state.physics.qvel).all())


def test_engine_c_refuses_gradients_and_names_mjx(key):
    env = mujoco_pendulum.pendulum(engine="c")
    state = env.reset(key)

    def cost(gain, freeze):
        action = jnp.array([gain])
        action = jax.lax.stop_gradient(action) if freeze else action
        after = env.step(jax.random.key(0), state, action)
        return gain * after.physics.qvel[0]

    with pytest.raises(ValueError, match='engine="mjx"'):
        jax.grad(cost)(0.5, False)
    with pytest.raises(ValueError, match="stop_gradient"):
        jax.jvp(lambda gain: cost(gain, False), (0.5,), (1.0,))
    speed = cost(1.0, True)
    assert float(jax.grad(cost)(1.0, True)) == pytest.approx(float(speed))


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
