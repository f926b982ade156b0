"""Bring your own MuJoCo model, also one from a stranger.

MJCF can include files from anywhere, ask for two million bodies in one line, and carry
masses that are no numbers. So a model is first compiled by a child process with limits
on time and memory, which refuses files outside of the model's folder and numbers that
are not finite; only what it hands back is loaded here.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import mjcf_child, mujoco
from jaxwm.envs.mujoco_edits import Edit
from jaxwm.physics.mjx import library
from jaxwm.types import Box, Env, EnvSpec, Factor


def from_mjcf(
    source: str | os.PathLike,
    reward: Callable,
    *,
    terminated: Callable | None = None,
    observe: Callable | None = None,
    start: Callable | None = None,
    engine: str = "c",
    num_substeps: int = 1,
    time_limit: int = 1000,
    name: str | None = None,
    factors: Mapping[Factor, tuple[Edit, ...]] | None = None,
    num_threads: int = 0,
    allow_binary: bool = False,
    seconds: float = 3.0,
    megabytes: int = 2048,
) -> Env:
    """An environment from a MuJoCo model and the functions that make it a task.

    Args:
        source: path of an MJCF file, or MJCF text itself (begins with `<`).
        reward: `(MjState before, action, MjState after) -> scalar`.
        terminated: `(MjState after) -> bool`; None never terminates.
        observe: `(MjState) -> array`; None gives positions and velocities.
        start: `(key, params, reference MjState) -> (qpos, qvel)`; None starts at rest
            in the reference pose, every number moved by up to 0.01.
        engine: `"c"`, `"mjx"` or `"warp"`.
        num_substeps: timesteps of the model per action.
        time_limit: steps until `truncated`.
        name: of the task; None takes the file's.
        factors: factors of variation, each with the edits of model fields it makes.
        num_threads: of engine `"c"`; 0 takes all processors.
        allow_binary: also accept a compiled `.mjb`, whose bytes nothing checks.
        seconds: of processor time the compiler may take.
        megabytes: of address space it may take; on Linux and macOS only.

    Raises:
        ValueError: for a model that is refused or does not compile, saying why, and
            for actuators without a range.
        FileNotFoundError: if there is no such file.
    """
    model = load(
        source, allow_binary=allow_binary, seconds=seconds, megabytes=megabytes
    )
    factors = factors or {}
    observe = observe or (lambda state: jnp.concatenate([state.qpos, state.qvel]))
    seen = jax.eval_shape(observe, mujoco.reference_state(model))
    text = isinstance(source, str) and source.lstrip().startswith("<")
    spec = EnvSpec(
        name=name or ("mjcf" if text else pathlib.Path(source).stem),
        obs=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), seen),
        action=_bounds(model),
        control_dt=model.opt.timestep * num_substeps,
        time_limit=time_limit,
        factors=tuple(factors),
    )

    def outcome(before, action, after, params):
        del params
        ended = False if terminated is None else terminated(after)
        return reward(before, action, after), jnp.where(ended, 0.0, 1.0)

    return mujoco.build(
        spec,
        model,
        engine=engine,
        num_substeps=num_substeps,
        start=start or _start,
        observe=lambda state, params: observe(state),
        outcome=outcome,
        edits={factor.name: edits for factor, edits in factors.items()},
        num_threads=num_threads,
    )


def load(
    source: str | os.PathLike,
    *,
    allow_binary: bool = False,
    seconds: float = 3.0,
    megabytes: int = 2048,
) -> Any:
    """`mujoco.MjModel` of a model of unknown origin; arguments as in `from_mjcf`."""
    text, path = None, None
    if isinstance(source, str) and source.lstrip().startswith("<"):
        text = source
    else:
        path = pathlib.Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"there is no MuJoCo model at {path}.")
        if path.suffix.lower() == ".mjb" and not allow_binary:
            raise ValueError(
                f"{path} is a compiled model, whose bytes nothing checks; use the MJCF "
                "it came from, or allow_binary=True if you made it yourself."
            )
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "model.mjb")
        request = {
            "path": path and str(path),
            "text": text,
            "result": result,
            "seconds": seconds,
            "megabytes": megabytes,
        }
        error = _ask_child(request)
        if error is not None:
            raise ValueError(
                f"the model {path or 'given as text'} is refused: {error}."
            )
        return library().MjModel.from_binary_path(result)


def _ask_child(request: dict) -> str | None:
    """What the child says is wrong with the model, or None."""
    seconds, megabytes = request["seconds"], request["megabytes"]

    too_slow = f"compiling it takes more than seconds={seconds:g}"
    command = [sys.executable, "-I", str(mjcf_child.__file__)]
    try:
        child = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            # A busy machine may give the child little of a processor.
            timeout=10 * seconds,
            env={**os.environ, "MUJOCO_GL": "disable", "OPENBLAS_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return too_slow
    if child.returncode < 0:
        return f"{too_slow} or megabytes={megabytes} (signal {-child.returncode})"
    try:
        return json.loads(child.stdout)["error"]
    except (json.JSONDecodeError, KeyError):
        last = child.stderr.strip().splitlines()[-1:]
        return f"the compiler ended with {child.returncode}: {' '.join(last)}"


def _bounds(model) -> Box:
    limited = model.actuator_ctrllimited.astype(bool)
    if not model.nu or not limited.all():
        free = [model.actuator(i).name or i for i in np.flatnonzero(~limited)]
        raise ValueError(
            "every actuator must have a control range, "
            f"{free or 'the model'} has none; "
            'add ctrllimited="true" and ctrlrange="low high".'
        )
    low, high = model.actuator_ctrlrange.T
    return Box(tuple(low.tolist()), tuple(high.tolist()))


def _start(key, params, reference):
    del params
    low, high = -0.01, 0.01
    position_key, velocity_key = jax.random.split(key)
    shift = jax.random.uniform(
        position_key, reference.qpos.shape, minval=low, maxval=high
    )
    qvel = jax.random.uniform(
        velocity_key, reference.qvel.shape, minval=low, maxval=high
    )
    return reference.qpos + shift, qvel
