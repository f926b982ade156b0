"""Pictures: from MuJoCo where there is OpenGL, drawn where there is none."""

import io
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from jaxwm.core import tree
from jaxwm.envs import batch, drawing, probes, rendering
from jaxwm.envs.tasks import (
    cartpole,
    halfcheetah,
    mujoco_cartpole,
    mujoco_pendulum,
    pendulum,
)

# MuJoCo's context complains from its finaliser where making it failed.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
needs_gl = pytest.mark.skipif(
    rendering.missing_gl() is not None, reason="no OpenGL on this machine"
)


@pytest.fixture
def no_gl(monkeypatch):
    """A machine without OpenGL."""

    def missing():
        raise OSError("libEGL.so.1: cannot open shared object file\nand more")

    monkeypatch.setattr(rendering, "_gl_class", missing)
    rendering._try_gl.cache_clear()
    rendering._say_once.cache_clear()
    yield
    rendering._try_gl.cache_clear()


def swung(env, *angles, at=-1):
    """States with the given angle of the pole, everything else at rest."""
    start = env.reset(jax.random.key(0))
    rest = jax.tree.map(jnp.zeros_like, start.physics)
    return [
        env.reset_to(rest._replace(qpos=rest.qpos.at[at].set(angle)))
        for angle in angles
    ]


def reddish(picture):
    """Mean place of the rod's pixels, in fractions of the picture from the centre."""
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    rows, columns = np.nonzero((red > 1.5 * green) & (red > 1.5 * blue))
    height, width = red.shape
    return columns.mean() / width - 0.5, 0.5 - rows.mean() / height


@needs_gl
def test_mujoco_renders_what_the_state_says():
    env = mujoco_pendulum.pendulum(engine="c")
    up, left = rendering.frames(env, swung(env, 0.0, np.pi / 2), size=(120, 160))
    assert up.shape == (120, 160, 3) and up.dtype == np.uint8
    assert abs(reddish(up)[0]) < 0.02 and reddish(up)[1] > 0.1
    assert reddish(left)[0] < -0.1 and abs(reddish(left)[1]) < 0.02


def test_a_drawn_figure_shows_the_same(no_gl):
    env = mujoco_pendulum.pendulum(engine="c")
    up, left = rendering.frames(env, swung(env, 0.0, np.pi / 2), size=(120, 160))
    assert up.shape == (120, 160, 3) and up.dtype == np.uint8
    assert abs(reddish(up)[0]) < 0.02 and reddish(up)[1] > 0.1
    assert reddish(left)[0] < -0.1 and abs(reddish(left)[1]) < 0.02


def test_why_it_is_drawn_is_said_once(no_gl, caplog):
    assert "libEGL.so.1" in rendering.missing_gl()
    assert rendering.missing_gl() == rendering.missing_gl()
    assert [r.getMessage() for r in caplog.records] == [
        "No OpenGL for MuJoCo (OSError: libEGL.so.1: cannot open shared object file): "
        "pictures are drawn figures. On Debian and Ubuntu "
        '"apt install libegl1 libgl1-mesa-dri" brings it.'
    ]


def test_the_environments_variable_turns_opengl_off(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    assert rendering.missing_gl() == "MUJOCO_GL is off"


def test_physics_run_where_the_graphics_asked_for_are_missing():
    # Importing mujoco fails there; OSMesa is missing on most machines.
    code = (
        "from jaxwm.envs.tasks import mujoco_pendulum as m; import jax;"
        "env = m.pendulum(engine='c'); env.reset(jax.random.key(0)); print('fine')"
    )
    environment = {**os.environ, "MUJOCO_GL": "osmesa"}
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
    )
    assert done.stdout == "fine\n", done.stderr


def test_drawn_and_rendered_figures_cover_the_same_place(no_gl):
    # Bodies with a floor, seen by a camera that follows.
    env = halfcheetah.halfcheetah(engine="c")
    state = env.reset(jax.random.key(0))
    far = state.physics.qpos.at[0].set(30.0)
    states = [state, env.reset_to(state.physics._replace(qpos=far))]
    near, moved = rendering.frames(env, states, size=96)
    np.testing.assert_array_equal(near, moved)
    ground = (near == drawing.GROUND).all(-1)
    assert ground[-1].all() and not ground[0].any()
    body = ~ground & ~(near == drawing.SKY).all(-1)
    assert 0.01 < body.mean() < 0.2


def test_lengths_are_seen(no_gl):
    env = mujoco_pendulum.pendulum(engine="c")
    (state,) = swung(env, 0.0)
    long = env.reset_to(state.physics, {**state.params, "length": jnp.float32(1.2)})
    short, tall = rendering.frames(env, [state, long], size=200)
    assert reddish(tall)[1] == pytest.approx(1.2 * reddish(short)[1], abs=0.01)


@pytest.mark.parametrize(
    ("ours", "plain", "draw"),
    [
        (mujoco_pendulum.pendulum, pendulum.pendulum, drawing.pendulum),
        (mujoco_cartpole.swingup, cartpole.cartpole_swingup, drawing.cartpole),
    ],
)
def test_the_tasks_in_pure_jax_look_like_those_on_mujoco(no_gl, ours, plain, draw):
    env = ours(engine="c")
    states = swung(env, 0.7, 2.5)
    drawn = rendering.frames(env, states, size=160)
    plain = plain()._replace(render=draw)

    def converted(physics):
        (*x, theta), (*x_dot, theta_dot) = physics.qpos, physics.qvel
        kind = type(plain.reset(jax.random.key(0)).physics)
        pairs = [*zip(x, x_dot, strict=True), (theta, theta_dot)]
        return kind(*(value for pair in pairs for value in pair))

    others = [plain.reset_to(converted(state.physics)) for state in states]
    for a, b in zip(drawn, rendering.frames(plain, others, size=160), strict=True):
        np.testing.assert_allclose(reddish(a), reddish(b), atol=0.01)


def test_states_may_be_one_record_with_a_leading_axis(no_gl):
    env = mujoco_cartpole.swingup(engine="c")
    states = swung(env, 0.0, 1.0, at=1)
    listed = rendering.frames(env, states, size=48)
    np.testing.assert_array_equal(
        listed, rendering.frames(env, tree.stack(states), size=48)
    )
    many = jax.jit(batch(env, 3).reset)(jax.random.key(0))
    assert rendering.frames(env, many.env, size=32).shape == (3, 32, 32, 3)


def test_a_gif_holds_every_picture_and_repeats():
    pictures = np.zeros((5, 16, 24, 3), np.uint8)
    for i, picture in enumerate(pictures):
        picture[:, 4 * i : 4 * i + 4] = [255, 255 - 40 * i, 0]
    with Image.open(io.BytesIO(rendering.gif(pictures, fps=20))) as image:
        assert image.n_frames == 5 and image.size == (24, 16)
        assert image.info["duration"] == 50 and image.info["loop"] == 0
        image.seek(3)
        shown = np.asarray(image.convert("RGB"), int)
    assert np.abs(shown - pictures[3]).max() < 16


def test_what_cannot_be_drawn_is_said():
    env = probes.constant_reward().env
    with pytest.raises(ValueError, match="render"):
        rendering.frames(env, [env.reset(jax.random.key(0))])
    env = mujoco_pendulum.pendulum(engine="c")
    with pytest.raises(ValueError, match="size"):
        rendering.frames(env, swung(env, 0.0), size=0)
    with pytest.raises(ValueError, match="at least one"):
        rendering.frames(env, [])
    with pytest.raises(ValueError, match="uint8"):
        rendering.gif(np.zeros((2, 4, 4, 3)), fps=10)
    with pytest.raises(ValueError, match="fps"):
        rendering.gif(np.zeros((2, 4, 4, 3), np.uint8), fps=100)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (7, 2), elements=st.integers(-3, 3).map(float)))
def test_every_point_lies_in_its_convex_hull(points):
    hull = drawing.convex_hull(points)
    following = np.roll(hull, -1, 0)
    for point in points:
        edge, to = following - hull, point - hull
        turns = edge[:, 0] * to[:, 1] - edge[:, 1] * to[:, 0]
        if len(hull) > 2:
            assert (turns >= 0).all()
    assert len(np.unique(hull, axis=0)) == len(hull)
