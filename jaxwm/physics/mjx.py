"""MuJoCo's dynamics compiled by XLA or Warp: the only place that calls `mjx.step`.

Shapes: Q positions, V velocities, U activations, A controls, N bodies. Functions take
one simulation; `jax.vmap` adds the batch. Units are the model's own (m, s, kg, rad).

`mujoco.mjx` takes seconds to import, so it is loaded when the first model is put.

Source: Todorov et al., "MuJoCo: A physics engine for model-based control", IROS 2012;
package mujoco-mjx 3.17.
"""

import contextlib
import io
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxwm.types import PyTree


class MjState(NamedTuple):
    """All that is Markov; everything else MuJoCo keeps is derived from it."""

    qpos: Float[Array, " Q"]
    qvel: Float[Array, " V"]
    act: Float[Array, " U"]  # of actuators with dynamics
    qacc_warmstart: Float[Array, " V"]  # where the constraint solver begins


class Rest(NamedTuple):
    """What the inertia at the reference pose is made of; constant while masses vary."""

    linear: np.ndarray  # [N, 3, V] velocity of each body's centre per joint velocity
    angular: np.ndarray  # [N, 3, V] in the principal axes of the body
    subtree: np.ndarray  # [N, N] 1 where the column's body hangs below the row's
    averaged: np.ndarray  # [V, V] means over the axes of free and ball joints


class Simulator(NamedTuple):
    """A model on the device, and blank data to fill with a state."""

    model: PyTree  # mjx.Model
    blank: PyTree  # mjx.Data
    rest: Rest | None  # None: not known for this kind of model, masses may not vary
    constrained: bool  # whether limits, contacts, friction or equalities can act


def put(
    model: Any,
    *,
    impl: str = "jax",
    iterations: int | None = None,
    ls_iterations: int | None = None,
    max_envs: int = 16384,
) -> Simulator:
    """Puts a compiled `mujoco.MjModel` on the device.

    Args:
        model: `mujoco.MjModel`; not kept.
        impl: `"jax"` (XLA, any device) or `"warp"` (NVIDIA GPUs).
        iterations: of the constraint solver; None keeps the model's. XLA runs a whole
            batch until its slowest member has converged, so this bounds the time.
        ls_iterations: of its line search, which XLA always runs to this bound.
        max_envs: with `"warp"`, the environments that share one buffer of contacts.

    Raises:
        ValueError: where the engine lacks something that the model uses.
        ImportError: for `"warp"` without the package warp-lang.
        RuntimeError: for `"warp"` without an NVIDIA GPU.
    """
    if impl == "warp":
        _require_warp()
    mujoco, mjx = _load()
    integrator = mujoco.mjtIntegrator(model.opt.integrator)
    supported = ("mjINT_EULER", "mjINT_RK4", "mjINT_IMPLICITFAST")
    if integrator.name not in supported:
        raise ValueError(
            f"integrator must be Euler, RK4 or implicitfast, got {integrator.name}; "
            'change it in the model or use engine="c".'
        )
    try:
        put_model = mjx.put_model(model, impl=impl)
        if impl == "warp":
            # Every world may touch with all its pairs at once at most.
            per_env = max(16, 4 * model.ngeom)
            blank = mjx.make_data(model, impl=impl, naconmax=per_env * max_envs)
        else:
            blank = mjx.make_data(put_model, impl=impl)
    except NotImplementedError as error:
        raise ValueError(
            f'MuJoCo\'s "{impl}" engine cannot step this model: {error}. '
            'Use engine="c", which has all of MuJoCo.'
        ) from error
    # Uncommitted arrays, so that the model can be used on any mesh of devices.
    put_model, blank = jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x)) if isinstance(x, jax.Array) else x,
        (put_model, blank),
    )
    options = {
        "opt.iterations": iterations,
        "opt.ls_iterations": ls_iterations,
    }
    options = {name: value for name, value in options.items() if value is not None}
    put_model = put_model.tree_replace(options) if options else put_model
    return Simulator(
        put_model, blank, _rest(mujoco, model), _is_constrained(mujoco, model)
    )


def step(
    simulator: Simulator,
    state: MjState,
    ctrl: Float[Array, " A"],
    *,
    num_substeps: int = 1,
) -> MjState:
    """Advances one simulation by `num_substeps` timesteps of the model.

    Args:
        simulator: from `put` or `edited`.
        state: where to start; `blank` data are filled with it at every substep, which
            gives what carrying MuJoCo's data along would give.
        ctrl: held over the substeps; MuJoCo clamps it to the actuators' ranges.
        num_substeps: a Python int.

    Returns:
        The state reached; not finite where the simulation blew up. Forward-mode
        derivatives flow; reverse mode fails on models with constraints, whose solver
        is a `while_loop`.
    """
    _, mjx = _load()
    model, blank = simulator.model, simulator.blank

    def substep(state, _):
        data = blank.replace(
            qpos=state.qpos,
            qvel=state.qvel,
            act=state.act,
            qacc_warmstart=state.qacc_warmstart,
            ctrl=ctrl,
        )
        data = mjx.step(model, data)
        after = MjState(data.qpos, data.qvel, data.act, data.qacc_warmstart)
        return after, None

    return jax.lax.scan(substep, state, None, length=num_substeps)[0]


def edited(simulator: Simulator, fields: Mapping[str, ArrayLike]) -> Simulator:
    """The same simulator with other model fields, e.g. `{"opt.gravity": [3]}`.

    Values may be traced and batched. Constants that MuJoCo derives from masses when it
    compiles a model, and that scale its constraints, follow:

        M = Σ_b m_b Jᵀ_b J_b + Σ_b Rᵀ_b I_b R_b + diag(armature)      [V, V]
        dof_invweight0 = diag(M⁻¹),
        body_invweight0[b] = (tr J_b M⁻¹ Jᵀ_b, tr R_b M⁻¹ Rᵀ_b) / 3

    with the Jacobians J of the centres of mass and R of the rotations in the reference
    pose, as `mj_setConst` does; the axes of a free or ball joint share their mean.
    Lengths and places may change only where nothing is constrained, masses only where
    there are no tendons.

    Args:
        simulator: from `put`.
        fields: new values by the field's name in `mjx.Model`, whole arrays.

    Raises:
        ValueError: for fields that do not exist or cannot change.
    """
    check_editable(simulator, fields)
    model, rest = simulator.model, simulator.rest
    fields = dict(fields)
    if simulator.constrained and not INERTIAL.isdisjoint(fields):
        mass = fields.get("body_mass", model.body_mass)
        inertia = fields.get("body_inertia", model.body_inertia)
        armature = fields.get("dof_armature", model.dof_armature)
        fields |= _derived(rest, mass, inertia, armature)  # type: ignore
    return simulator._replace(model=model.tree_replace(fields))


# Fields that enter the joint-space inertia without moving anything.
INERTIAL = frozenset({"body_mass", "body_inertia", "dof_armature"})
# Fields that move bodies, centres of mass or joints.
GEOMETRIC = frozenset(
    {"body_ipos", "body_iquat", "body_pos", "body_quat", "jnt_pos", "jnt_axis"}
)


def check_editable(simulator: Simulator, names) -> None:
    """Raises ValueError unless `edited` can change these fields."""
    model, rest = simulator.model, simulator.rest
    names = set(names)
    for name in names:
        holder, _, field = name.rpartition(".")
        if not hasattr(model.opt if holder == "opt" else model, field):
            raise ValueError(f'"{name}" is not a field of mjx.Model.')
    if not simulator.constrained:
        return
    if names & GEOMETRIC:
        raise ValueError(
            f"{sorted(names & GEOMETRIC)} cannot vary in a model with limits or "
            "contacts: constants derived from the geometry would go stale. "
            "Compile a model for each value instead."
        )
    if names & INERTIAL and rest is None:
        raise ValueError(
            f"{sorted(names & INERTIAL)} can vary only in models without tendons, "
            "whose inverse weights would go stale; compile a model for each value."
        )


def body_positions(
    simulator: Simulator, qpos: Float[Array, " Q"]
) -> tuple[Float[Array, "N 3"], Float[Array, "N 4"]]:
    """World positions [m] and quaternions of all bodies in a pose.

    For observations: what `mj_step` leaves behind is one substep old.
    """
    _, mjx = _load()
    data = mjx.kinematics(simulator.model, simulator.blank.replace(qpos=qpos))
    return data.xpos, data.xquat


def _derived(rest: Rest, mass, inertia, armature) -> dict[str, Array]:
    """Constants of MuJoCo's compiler that depend on masses."""
    linear, angular = jnp.asarray(rest.linear), jnp.asarray(rest.angular)
    inertia_matrix = (
        jnp.einsum("b,bki,bkj->ij", mass, linear, linear)
        + jnp.einsum("bk,bki,bkj->ij", inertia, angular, angular)
        + jnp.diag(armature)
    )
    inverse = jnp.linalg.inv(inertia_matrix)
    spread = lambda J: jnp.einsum("bki,ij,bkj->b", J, inverse, J) / 3
    return {
        "dof_invweight0": rest.averaged @ jnp.diag(inverse),
        "body_invweight0": jnp.stack([spread(linear), spread(angular)], -1),
        "body_subtreemass": rest.subtree @ mass,
    }


def _rest(mujoco, model) -> Rest | None:
    """Jacobians in the reference pose; None for models that `_derived` does not fit."""
    if model.ntendon or not model.nv:
        return None
    data = mujoco.MjData(model)
    data.qpos[:] = model.qpos0
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    linear = np.zeros((model.nbody, 3, model.nv))
    angular = np.zeros((model.nbody, 3, model.nv))
    subtree = np.eye(model.nbody)
    for body in range(model.nbody):
        mujoco.mj_jacBodyCom(model, data, linear[body], angular[body], body)
        angular[body] = data.ximat[body].reshape(3, 3).T @ angular[body]
        above = body
        while above:
            above = model.body_parentid[above]
            subtree[above, body] = 1
    averaged = np.eye(model.nv)
    for joint in range(model.njnt):
        start = int(model.jnt_dofadr[joint])
        parts = {mujoco.mjtJoint.mjJNT_FREE: (0, 3), mujoco.mjtJoint.mjJNT_BALL: (0,)}
        for part in parts.get(mujoco.mjtJoint(int(model.jnt_type[joint])), ()):
            axes = slice(start + part, start + part + 3)
            averaged[axes, axes] = 1 / 3
    return Rest(linear, angular, subtree, averaged)


def _is_constrained(mujoco, model) -> bool:
    contacts = bool(model.npair) or bool(
        (model.geom_contype[:, None] & model.geom_conaffinity[None]).any()
    )
    if model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CONTACT:
        contacts = False
    others = (
        model.jnt_limited,
        model.tendon_limited,
        model.dof_frictionloss,
        model.tendon_frictionloss,
    )
    return contacts or bool(model.neq) or any(array.any() for array in others)


def library() -> Any:
    """The package `mujoco`, told to leave no MUJOCO_LOG.TXT where it is run.

    Where the library of graphics that MUJOCO_GL names is missing, importing `mujoco`
    fails; physics need no graphics, so the variable is then dropped.
    """
    try:
        import mujoco
    except (AttributeError, OSError):
        if os.environ.pop("MUJOCO_GL", None) is None:
            raise
        import mujoco
    package: Any = mujoco
    config = package.MjLogConfig.get()
    config.logto_file = False
    config.set()
    return package


def _load():
    """`mujoco` and `mujoco.mjx`; the latter prints about optional parts it lacks."""
    mujoco = library()
    with contextlib.redirect_stdout(io.StringIO()):
        from mujoco import mjx
    return mujoco, mjx


def _require_warp() -> None:
    try:
        import warp  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'engine="warp" needs an NVIDIA GPU and the package warp-lang, which is not '
            'installed: pip install "jaxwm[warp]". Elsewhere use engine="mjx" or "c".'
        ) from error
    if jax.default_backend() != "gpu":
        raise RuntimeError(
            'engine="warp" needs an NVIDIA GPU, but JAX runs on '
            f'"{jax.default_backend()}"; install "jaxwm[cuda]" there, or use '
            'engine="mjx" or "c".'
        )
