"""MuJoCo's own engine behind a callback: one call, every bit, and no derivatives."""

from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from mujoco import batch as mujoco_batch

from jaxwm import envs
from jaxwm.core import loop
from jaxwm.envs.tasks import halfcheetah, hopper, mujoco_pendulum
from jaxwm.physics import mjx
from tests.envs.mujoco_states import actions, assert_equal, rolled, starts


def test_factors_give_what_a_recompiled_model_gives(key):
    env = hopper.hopper(engine="c")
    params = env.spec.default_params()
    params |= {"torso_mass": 2.0, "limb_mass": 1.5, "gravity": 8.0, "friction": 0.6}
    params |= {"gain": 0.8, "damping": 2.0}
    params = {name: np.float32(value) for name, value in params.items()}
    begin = env.reset(key, params)
    action = jnp.array([0.5, -0.7, 1.0])
    step = jax.jit(env.step)
    after = begin
    for _ in range(25):  # until it stands on the floor
        after = step(jax.random.key(0), after, action)

    library = mjx.library()
    text = (resources.files("jaxwm.envs.tasks") / "assets/hopper.xml").read_text()
    spec = library.MjSpec.from_string(text)
    compiled = spec.compile()
    spec.option.gravity = [0, 0, -8]
    for geom in spec.geoms:
        geom.friction[0] *= 0.6
        if geom.name == "torso":
            geom.mass = 2.0
        elif geom.name != "floor":
            geom.mass = 1.5 * compiled.body(geom.name).mass[0]
    for joint in spec.joints:
        joint.damping *= 2
    for actuator in spec.actuators:
        actuator.gear[0] *= 0.8
    model = spec.compile()
    data = library.MjData(model)
    data.qpos[:], data.qvel[:] = begin.physics.qpos, begin.physics.qvel
    data.ctrl[:] = action
    library.mj_step(model, data, nstep=25 * hopper.SUBSTEPS)
    np.testing.assert_allclose(after.physics.qpos, data.qpos, atol=1e-4)
    np.testing.assert_allclose(after.physics.qvel, data.qvel, atol=2e-3)
    usual = env.reset_to(begin.physics)
    for _ in range(25):
        usual = step(jax.random.key(0), usual, action)
    assert float(jnp.abs(usual.physics.qpos - after.physics.qpos).max()) > 0.01


def test_factors_may_change_between_calls(key):
    # The same batch of MuJoCo's is given other models, and the first ones again.
    env = halfcheetah.halfcheetah(engine="c")
    keys = jax.random.split(key, 3)
    one, two = starts(keys[0], env, 5), starts(keys[1], env, 5)
    two = two._replace(physics=one.physics)
    action, step = actions(keys[2], env, 5), jax.jit(jax.vmap(env.step))
    step_keys = loop.fold_in_each(jax.random.key(1), 5)
    first = step(step_keys, one, action)
    second = step(step_keys, two, action)
    assert_equal(first, step(step_keys, one, action))
    assert float(jnp.abs(first.physics.qvel - second.physics.qvel).max()) > 1e-3


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
    # Arrays of this size deadlock where a callback puts its arguments on a device.
    num = 2**16
    env = mujoco_pendulum.pendulum(engine="c")
    start_key, action_key = jax.random.split(key)
    state, steps = starts(start_key, env, num), actions(action_key, env, num, 2)
    # jaxlib 0.11.2 crashes where an empty array is handed through.
    anew = lambda tree: jax.tree.map(lambda x: x if x.size else jnp.zeros_like(x), tree)
    roll = lambda s, a: anew(jax.vmap(lambda s, a: rolled(env, s, a))(anew(s), a))
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


@pytest.mark.parametrize("speed", [jnp.nan, 1e12, 1e7])
def test_a_blow_up_ends_one_environment_and_no_other(key, speed):
    many = envs.batch(halfcheetah.halfcheetah(engine="c"), 5)
    reset_key, action_key, step_key = jax.random.split(key, 3)
    state = jax.jit(many.reset)(reset_key)
    physics = state.env.physics
    bad = physics._replace(qvel=physics.qvel.at[2, 5].set(speed))
    action, step = actions(action_key, many, 5), jax.jit(many.step)
    calm, _ = step(jax.random.clone(step_key), state, action)
    after, final_obs = step(
        step_key, state._replace(env=state.env._replace(physics=bad)), action
    )
    diverged = after.env.metrics["env/diverged"]
    np.testing.assert_array_equal(diverged, [0, 0, 1, 0, 0])
    others = np.array([0, 1, 3, 4])
    pick = lambda tree: jax.tree.map(lambda x: x[others], tree)
    assert_equal(pick(after.env.physics), pick(calm.env.physics))
    assert bool(jnp.isfinite(after.env.obs).all())
    assert bool(jnp.isfinite(final_obs).all())


def test_an_action_that_is_no_number_counts_as_a_blow_up(key):
    env = mujoco_pendulum.pendulum(engine="c")
    state = env.step(key, env.reset(jax.random.key(2)), jnp.array([jnp.nan]))
    assert bool(jnp.isnan(state.physics.qvel).all())


def test_a_factor_that_is_no_number_counts_as_a_blow_up(key):
    env = mujoco_pendulum.pendulum(engine="c")
    state = jax.vmap(env.reset)(jax.random.split(key, 3))
    mass = jnp.array([1.0, jnp.nan, 1.0])
    state = state._replace(params={**state.params, "mass": mass})
    step_keys = jax.random.split(jax.random.key(2), 3)
    after = jax.vmap(env.step)(step_keys, state, jnp.zeros((3, 1)))
    known = jnp.isfinite(after.physics.qvel[:, 0])
    np.testing.assert_array_equal(known, [True, False, True])


def test_models_follow_the_rows_that_change(key, monkeypatch):
    # Environments get new factors when they are reset, a few at a time.
    made, written = [], []
    make, constants = mujoco_batch.Batch.__init__, mujoco_batch.Batch.set_const

    def counted(self, *args, **kwargs):
        made.append(args)
        make(self, *args, **kwargs)

    def noted(self, ids=None):
        written.append(None if ids is None else ids.tolist())
        constants(self, ids)

    monkeypatch.setattr(mujoco_batch.Batch, "__init__", counted)
    monkeypatch.setattr(mujoco_batch.Batch, "set_const", noted)
    env = mujoco_pendulum.pendulum(engine="c")
    state = starts(key, env, 6)
    step = jax.jit(jax.vmap(env.step))
    step_keys = loop.fold_in_each(jax.random.key(1), 6)
    for row in (None, None, 1, 4, 1):
        if row is not None:
            mass = state.params["mass"].at[row].multiply(1.1)
            state = state._replace(params={**state.params, "mass": mass})
        jax.block_until_ready(step(step_keys, state, jnp.zeros((6, 1))))
    assert len(made) == 1
    assert written == [[0, 1, 2, 3, 4, 5], [1], [4], [1]]


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
