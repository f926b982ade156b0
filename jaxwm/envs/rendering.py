"""Pictures of environments: MuJoCo's offscreen renderer, or a drawn figure without GL.

`frames(env, states)` gives the same kind of picture either way, so a run never fails
for want of graphics; `missing_gl()` says whether and why they are drawn. Everything
here runs on the host. MuJoCo picks its OpenGL by the variable MUJOCO_GL; where that is
not set and there is no display, EGL is used.
"""

import copy
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxwm.envs import drawing, mujoco_edits
from jaxwm.physics.mjx import library
from jaxwm.types import Env, EnvSpec, EnvState

Size = int | tuple[int, int]  # of a square, or (height, width), in pixels


def frames(
    env: Env, states: EnvState | Sequence[EnvState], *, size: Size = 240
) -> np.ndarray:
    """Pictures of one episode, `[T, height, width, 3]` uint8.

    Args:
        env: the environment that made the states.
        states: a list of states, or one record whose leaves have a leading axis T.
        size: of the picture.

    Raises:
        ValueError: for an environment that cannot be drawn, no states, or no size.
    """
    if env.render is None:
        raise ValueError(
            f"{env.spec.name} has no pictures; give its `Env` a `render` function."
        )
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {size}.")
    states = jax.device_get(states)
    if isinstance(states, EnvState):
        num = len(states.t)
        states = [jax.tree.map(lambda x, i=i: x[i], states) for i in range(num)]
    if not states:
        raise ValueError("states must hold at least one state, got none.")
    return np.stack(env.render(list(states), (height, width)))


def gif(frames: np.ndarray, fps: float) -> bytes:
    """An endless animated GIF of pictures `[T, height, width, 3]` uint8.

    Args:
        frames: the pictures.
        fps: pictures per second, at most 50, the format's limit.

    Raises:
        ValueError: for another shape or dtype, or a rate the format does not have.
    """
    from PIL import Image

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            "frames must be uint8 [T, height, width, 3], got "
            f"{frames.dtype} {list(frames.shape)}."
        )
    if not 0 < fps <= 50:
        raise ValueError(f"fps must be in (0, 50], got {fps}; leave out pictures.")
    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return file.getvalue()


def of_model(
    model: Any, edits: tuple[mujoco_edits.FieldEdits, ...], spec: EnvSpec
) -> Callable:
    """The `render` function of a MuJoCo task, seen by the model's first camera.

    Args:
        model: a compiled `mujoco.MjModel`.
        edits: of its fields by factors; lengths are seen.
        spec: of the task.
    """

    def render(states: list[EnvState], size: tuple[int, int]) -> list[np.ndarray]:
        scenes = (_posed(model, edits, spec, state) for state in states)
        if missing_gl() is not None:
            return [drawing.model(m, d, size) for m, d in scenes]
        return _render(model, scenes, size)

    return render


def missing_gl() -> str | None:
    """Why MuJoCo cannot render here, or None; found out once per process."""
    reason = _try_gl(os.environ.get("MUJOCO_GL", ""))
    if reason is not None:
        _say_once(reason)
    return reason


def _posed(model, edits, spec, state):
    """Model and data of a state, with everything derived from it."""
    mujoco = library()
    values = np.array([state.params[f.name] for f in spec.factors], np.float32)
    model = copy.copy(model)
    for field, value in mujoco_edits.apply(edits, spec, values).items():
        holder, _, name = field.rpartition(".")
        getattr(model.opt if holder else model, name)[:] = value
    data = mujoco.MjData(model)
    data.qpos[:] = state.physics.qpos
    mujoco.mj_forward(model, data)
    return model, data


def _render(model, scenes, size) -> list[np.ndarray]:
    mujoco = library()
    height, width = size
    model = copy.copy(model)
    model.vis.global_.offheight = height
    model.vis.global_.offwidth = width
    scene = mujoco.MjvScene(model, maxgeom=max(1000, 2 * model.ngeom))
    camera = mujoco.MjvCamera()
    if model.ncam:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    else:
        mujoco.mjv_defaultFreeCamera(model, camera)
        camera.elevation = -15
    window = mujoco.MjrRect(0, 0, width, height)
    pictures = []
    gl = _gl_class()(width, height)
    gl.make_current()
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    try:
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        for posed, data in scenes:
            options = mujoco.MjvOption()
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(
                posed, data, options, None, camera, everything, scene
            )
            picture = np.empty((height, width, 3), np.uint8)
            mujoco.mjr_render(window, scene, context)
            mujoco.mjr_readPixels(picture, None, window, context)
            pictures.append(picture[::-1])
    finally:
        context.free()
        gl.free()
    return pictures


def _gl_class():
    """The class of MuJoCo's GL contexts; raises what the missing library raises."""
    mujoco = library()
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if os.environ.get("MUJOCO_GL") or display or sys.platform != "linux":
        return mujoco.GLContext  # type: ignore
    from mujoco.egl import GLContext

    return GLContext


@functools.cache
def _try_gl(choice: str) -> str | None:
    """Renders one pixel; `choice` is the variable that the outcome depends on."""
    if choice.lower() in ("disable", "disabled", "off", "false", "0"):
        return f"MUJOCO_GL is {choice}"
    mujoco = library()
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    try:
        _render(model, [(model, mujoco.MjData(model))], (1, 1))
    except Exception as error:
        # GL fails in as many ways as there are drivers: ImportError, AttributeError,
        # OSError, RuntimeError, FatalError ...
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _say_once(reason: str) -> None:
    logging.getLogger("jaxwm").warning(
        "No OpenGL for MuJoCo (%s): pictures are drawn figures. On Debian and Ubuntu "
        '"apt install libegl1 libgl1-mesa-dri" brings it.',
        reason.splitlines()[0] if reason else "unknown reason",
    )
