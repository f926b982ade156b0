"""Models of unknown origin: what is refused, and how a good one becomes a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.envs import batch, mjcf
from jaxwm.envs.mujoco import Edit
from jaxwm.types import Factor

SLIDER = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body name="puck">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom size="0.1" mass="2" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" ctrllimited="true" ctrlrange="-3 3"/>
  </actuator>
</mujoco>
"""


def reward(before, action, after):
    del before
    return -(after.qpos[0] ** 2) - 0.01 * action[0] ** 2


def test_a_model_becomes_a_task_with_factors(key):
    mass = Factor("mass", 2.0, 1.0, 4.0, "kg", "mass of the puck")
    env = mjcf.from_mjcf(
        SLIDER,
        reward,
        terminated=lambda state: state.qpos[0] > 1,
        num_substeps=2,
        factors={mass: (Edit("body_mass", "puck"), Edit("body_inertia", "puck"))},
    )
    assert env.spec.control_dt == pytest.approx(0.02)
    assert env.spec.action.high == (3.0,)
    assert env.spec.obs.shape == (2,)
    state = env.reset(key, {"mass": np.float32(4.0)})
    after = env.step(key, state, jnp.array([3.0]))
    # Semi-implicit Euler: v grows by F / m dt in each of two steps of 0.01 s.
    gained = 3.0 / 4.0 * 0.01
    assert after.physics.qvel[0] - state.physics.qvel[0] == pytest.approx(
        2 * gained, rel=1e-4
    )
    assert float(after.reward) == pytest.approx(-(float(after.obs[0]) ** 2) - 0.09)
    assert float(after.discount) == 1.0
    far = env.reset_to(state.physics._replace(qpos=jnp.array([1.5])))
    assert float(env.step(key, far, jnp.zeros(1)).discount) == 0.0


def test_such_a_task_runs_in_batches(key, tmp_path):
    path = tmp_path / "puck.xml"
    path.write_text(SLIDER)
    env = mjcf.from_mjcf(path, reward, observe=lambda state: state.qpos)
    assert env.spec.name == "puck"
    many = batch(env, 4)
    reset_key, step_key = jax.random.split(key)
    state = jax.jit(many.reset)(reset_key)
    state, final_obs = jax.jit(many.step)(step_key, state, jnp.zeros((4, 1)))
    assert final_obs.shape == (4, 1)
    assert bool(jnp.isfinite(state.env.reward).all())


OUTSIDE = {
    "a parent folder": '<mujoco><include file="../secret.xml"/></mujoco>',
    "an absolute path": '<mujoco><include file="ROOT/secret.xml"/></mujoco>',
    "a link": '<mujoco><include file="link.xml"/></mujoco>',
    "a folder of meshes": '<mujoco><compiler meshdir="../.."/></mujoco>',
    "a texture": '<mujoco><asset><texture file="/etc/hostname"/></asset></mujoco>',
    "an include of an include": '<mujoco><include file="inner.xml"/></mujoco>',
}


@pytest.mark.parametrize("how", OUTSIDE)
def test_files_outside_of_the_folder_are_refused(tmp_path, how):
    (tmp_path / "secret.xml").write_text("<mujoco/>")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.xml").symlink_to(tmp_path / "secret.xml")
    (folder / "inner.xml").write_text(
        '<mujoco><include file="../secret.xml"/></mujoco>'
    )
    path = folder / "main.xml"
    path.write_text(OUTSIDE[how].replace("ROOT", str(tmp_path)))
    with pytest.raises(ValueError, match="outside of its folder"):
        mjcf.load(path)


def test_files_inside_the_folder_are_read(tmp_path):
    path = tmp_path / "main.xml"
    path.write_text('<mujoco><include file="parts/body.xml"/></mujoco>')
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "body.xml").write_text(SLIDER)
    assert mjcf.load(path).nq == 1


WRONG = {
    'mass="2"': ('mass="nan"', "not finite"),
    'gravity="0 0 0"': ('gravity="0 0 nan"', "not finite"),
    'timestep="0.01"': ('timestep="soon"', "cannot compile"),
    "<mujoco>": ('<!DOCTYPE m [<!ENTITY a "b">]><mujoco>', "document type"),
    "<worldbody>": ('<include file="x.xml"/><worldbody>', "is a text by itself"),
    "</mujoco>": ("", "cannot compile"),
}


@pytest.mark.parametrize("part", WRONG)
def test_broken_models_are_refused(part):
    replacement, message = WRONG[part]
    with pytest.raises(ValueError, match=message):
        mjcf.load(SLIDER.replace(part, replacement))


def test_a_model_that_takes_too_long_is_stopped():
    bomb = '<replicate count="2000000" offset="1 0 0"><body name="puck">'
    bomb = SLIDER.replace('<body name="puck">', bomb)
    bomb = bomb.replace("</body>", "</body></replicate>")
    with pytest.raises(ValueError, match="more than seconds=1"):
        mjcf.load(bomb, seconds=1)


def test_a_model_that_takes_too_much_memory_is_stopped():
    hungry = '<size memory="1000G"/><worldbody>'
    with pytest.raises(ValueError, match="is refused"):
        mjcf.load(SLIDER.replace("<worldbody>", hungry))


def test_compiled_models_need_permission(tmp_path):
    import mujoco

    path = tmp_path / "model.mjb"
    mujoco.mj_saveModel(mujoco.MjModel.from_xml_string(SLIDER), str(path))
    with pytest.raises(ValueError, match="allow_binary"):
        mjcf.load(path)
    assert mjcf.load(path, allow_binary=True).nq == 1
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is refused"):
        mjcf.load(path, allow_binary=True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.xml"):
        mjcf.load(tmp_path / "nothing.xml")


def test_motors_without_a_range_are_named():
    with pytest.raises(ValueError, match="control range"):
        mjcf.from_mjcf(
            SLIDER.replace('ctrllimited="true" ctrlrange="-3 3"', ""), reward
        )


def test_state_that_environments_do_not_carry_is_refused():
    mocap = '<body name="target" mocap="true"/><body name="puck">'
    with pytest.raises(ValueError, match="mocap"):
        mjcf.from_mjcf(SLIDER.replace('<body name="puck">', mocap), reward)
