"""Environments on MuJoCo: one description of a task, stepped by any of three engines.

- `"mjx"`: `mujoco.mjx`, compiled by XLA, on any device. Derivatives flow in forward
  mode, and in reverse mode where nothing is constrained.
- `"c"`: MuJoCo's threads behind a callback, on the CPU, also beside a GPU. No
  derivatives. The fastest on CPUs where there are contacts.
- `"warp"`: MuJoCo Warp, on NVIDIA GPUs. No derivatives.

A task's physics are `MjState(qpos, qvel, act, qacc_warmstart)` whatever the engine, so
a state saved under one can be continued under another. Observation and reward are
functions of that state alone: what `mj_step` leaves in `xpos` is one substep old.
"""

import functools
import importlib.resources
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import mujoco_c, mujoco_edits, rendering, tasks
from jaxwm.envs.factors import unknown
from jaxwm.envs.mujoco_edits import Edit
from jaxwm.physics import mjx
from jaxwm.physics.mjx import MjState
from jaxwm.types import Box, Env, EnvSpec

ENGINES = ("mjx", "c", "warp")


def build(
    spec: EnvSpec,
    model: Any,
    *,
    engine: str,
    num_substeps: int,
    start: Callable,
    observe: Callable,
    outcome: Callable,
    settle: Callable | None = None,
    edits: Mapping[str, tuple[Edit, ...]] | None = None,
    num_threads: int = 0,
    iterations: int | None = None,
    ls_iterations: int | None = None,
) -> Env:
    """An environment from a model and the functions that make it a task.

    Args:
        spec: sizes, bounds, clock and factors.
        model: a compiled `mujoco.MjModel`; not changed.
        engine: `"mjx"`, `"c"` or `"warp"`.
        num_substeps: timesteps of the model per action, a Python int.
        start: `(key, params, MjState of the model at rest) -> (qpos [Q], qvel [V])`.
        observe: `(MjState, params) -> obs`.
        outcome: `(MjState before, action, MjState after, params) -> (reward [],
            discount [])`; the action is already clipped to its bounds.
        settle: `(MjState before, MjState after, params) -> MjState`, what the task does
            to a state that MuJoCo has no word for; None does nothing.
        edits: of the model's fields, by factor of the spec.
        num_threads: of engine `"c"`; 0 takes all processors.
        iterations: bound of the solver under `"mjx"`, see `physics.mjx.put`.
        ls_iterations: likewise, of its line search.

    Raises:
        ValueError: for an unknown engine, and where spec and model disagree.
        ImportError, RuntimeError: for engine `"warp"` where it cannot run.
    """
    _check(model, spec, engine, num_substeps)
    fields = mujoco_edits.resolve(model, spec, edits or {})
    if engine == "c":
        on_host = mujoco_c.stepper(
            model, spec, fields, num_substeps=num_substeps, num_threads=num_threads
        )

        def step(state, ctrl, params):
            return on_host(state, ctrl, mujoco_edits.values(spec, params))
    else:
        step = _device_stepper(
            model,
            spec,
            fields,
            num_substeps,
            impl="warp" if engine == "warp" else "jax",
            iterations=iterations,
            ls_iterations=ls_iterations,
        )
    at_rest = reference_state(model)

    def begin(key, params):
        reference = jax.tree.map(jnp.asarray, at_rest)
        qpos, qvel = start(key, params, reference)
        return reference._replace(qpos=qpos, qvel=qvel)

    def advance(key, before, params, action):
        del key  # MuJoCo is deterministic
        before = MjState(*before)
        after = step(before, action, params)
        after = after if settle is None else settle(before, after, params)
        return after, *outcome(before, action, after, params)

    render = rendering.of_model(model, fields, spec)
    return tasks.assemble(spec, begin, advance, observe, render)


def reference_state(model: Any) -> MjState:
    """A `mujoco.MjModel` at rest in its reference pose."""
    # NumPy, so that environments can also be made while tracing.
    zeros = lambda size: np.zeros(size, np.float32)
    qpos = np.asarray(model.qpos0, np.float32)
    return MjState(qpos, zeros(model.nv), zeros(model.na), zeros(model.nv))


def asset(name: str) -> Any:
    """`mujoco.MjModel` of one of our own files; others go through `mjcf.load`."""
    folder = importlib.resources.files("jaxwm.envs.tasks") / "assets"
    text = (folder / f"{name}.xml").read_text(encoding="utf-8")
    return mjx.library().MjModel.from_xml_string(text)


def _device_stepper(model, spec, fields, num_substeps, **options) -> Callable:
    simulator = mjx.put(model, **options)
    mjx.check_editable(simulator, [edit.field for edit in fields])

    def step(state: MjState, ctrl, params) -> MjState:
        if not any(isinstance(x, jax.core.Tracer) for x in (*state, ctrl)):
            _hint_at_jit(spec.name)
        acting = mujoco_edits.varying(fields, spec, params)
        changed = mujoco_edits.apply(acting, spec, mujoco_edits.values(spec, params))
        own = mjx.edited(simulator, changed) if changed else simulator
        return mjx.step(own, state, ctrl, num_substeps=num_substeps)

    return step


@functools.cache
def _hint_at_jit(name: str) -> None:
    logging.getLogger("jaxwm").warning(
        "%s is stepped by MJX without jax.jit: every step is compiled anew, which "
        "takes seconds. Wrap the loop around `env.step`, or the step, in jax.jit.",
        name,
    )


def _check(model, spec: EnvSpec, engine: str, num_substeps: int) -> None:
    mujoco = mjx.library()
    if engine not in ENGINES:
        unknown("engine", engine, ENGINES, spec.name)
    if num_substeps < 1:
        raise ValueError(f"num_substeps must be at least 1, got {num_substeps}.")
    if not isinstance(spec.action, Box) or spec.action.size != model.nu:
        raise ValueError(
            f"{spec.name} must have a Box of as many actions as the model has "
            f"actuators, {model.nu}; got {spec.action}."
        )
    control_dt = model.opt.timestep * num_substeps
    if not np.isclose(spec.control_dt, control_dt):
        raise ValueError(
            f"control_dt of {spec.name} must be timestep * num_substeps = "
            f"{control_dt:g} s, got {spec.control_dt:g}."
        )
    full = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    if full != 1 + model.nq + model.nv + model.na or model.nmocap:
        raise ValueError(
            f"the model of {spec.name} has state beside positions, velocities and "
            "activations (plugins, delays, plasticity or mocap bodies), which "
            "environments do not carry; remove it."
        )
