"""MuJoCo as a `Dynamics`, with derivatives in reverse mode through its contacts.

    dyn = mjx_dynamics(model, params=("body_mass", "geom_friction"))
    end = lambda params: rollout(dyn, params, state, actions, checkpoint="all")[0]
    jax.grad(lambda params: end(params).qpos[0])(dyn.params)

Compiling a derivative takes 20 to 45 s on one core: turn on JAX's compilation cache.
`checkpoint="all"` in the rollout is faster than none, and needs a tenth of the memory.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.physics import mjx, mjx_gradient
from jaxwm.physics.dynamics import Dynamics
from jaxwm.physics.forward_only import forward_only
from jaxwm.physics.mjx import MjState
from jaxwm.types import Params

# Fields that MuJoCo leaves out of the program where they are 0 at compile time.
_SWITCHES = (
    "dof_frictionloss",
    "tendon_frictionloss",
    "body_gravcomp",
    "opt.density",
    "opt.viscosity",
)
# Ranges that nothing reads where no limit is on.
_LIMITS = {
    "jnt_range": "jnt_limited",
    "tendon_range": "tendon_limited",
    "actuator_ctrlrange": "actuator_ctrllimited",
    "actuator_forcerange": "actuator_forcelimited",
    "actuator_actrange": "actuator_actlimited",
}
# Fields that nothing in a step reads.
_UNUSED = ("body_subtreemass", "dof_M0", "geom_rbound", "geom_aabb", "opt.tolerance")


def mjx_dynamics(
    model: Any,
    *,
    grad: str = "implicit",
    params: Sequence[str] = (),
    num_substeps: int = 1,
    safe_math: bool = True,
    polish: int = 0,
    impl: str = "jax",
) -> Dynamics:
    """Steps a compiled `mujoco.MjModel` by MJX.

    Args:
        model: not kept.
        grad: `"implicit"` gives right derivatives in both modes, with the full solver.
            `"forward"` leaves MJX as it is: forward mode only, cheaper to compile, for
            about ten inputs. `"none"` cuts all derivatives.
        params: fields of the model that may change and be differentiated, by name:
            `"body_mass"`, `"geom_friction"`, `"opt.gravity"` ... Changing masses,
            inertias or armatures also changes the inverse weights of constraints that
            MuJoCo derives from them, so derivatives are total ones.
        num_substeps: timesteps of the model per action.
        safe_math: mends places where MJX has no, or the wrong, derivative; see
            `mjx_gradient`. Only with `grad="implicit"`.
        polish: Newton steps behind the solver; 1 for elliptic cones where the value
            itself should be at the minimum to 1e-12.
        impl: MJX's engine, `"jax"`; Warp has no derivatives.

    Returns:
        A `Dynamics` whose state is `mjx.MjState(qpos, qvel, act, qacc_warmstart)`,
        observed as `[qpos, qvel]`, and whose parameters are the named fields.

    Raises:
        ValueError: for fields that do not exist, that no step reads, that MuJoCo has
            left out because they are 0, or whose limits are off; for masses in models
            with tendons or muscles; for powers of `solimp` that are not whole without
            `safe_math`; for Warp.
        ImportError: for a version of mujoco-mjx that was not tested.
    """
    if grad not in ("implicit", "forward", "none"):
        raise ValueError(f'grad must be "implicit", "forward" or "none", got {grad!r}.')
    if impl != "jax" and grad != "none":
        raise ValueError(
            f'impl="{impl}" has no derivatives; use impl="jax", or grad="none".'
        )
    if num_substeps < 1:
        raise ValueError(f"num_substeps must be at least 1, got {num_substeps}.")
    simulator = mjx.put(model, impl=impl)
    mjx.check_editable(simulator, params)
    _check(model, params, grad, safe_math)
    if grad == "implicit":
        mjx_gradient.check_version()

    def init(key, params):
        del key  # the reference pose
        del params
        qpos = jnp.asarray(model.qpos0, float)
        zeros = jnp.zeros
        return MjState(qpos, zeros(model.nv), zeros(model.na), zeros(model.nv))

    def step(params: Params, state: MjState, action) -> MjState:
        own = mjx.edited(simulator, params) if params else simulator
        # The solver's first guess does not matter for where it ends.
        state = MjState(*state)
        state = state._replace(
            qacc_warmstart=jax.lax.stop_gradient(state.qacc_warmstart)
        )
        if grad == "implicit":
            with mjx_gradient.exchanged(
                implicit=simulator.constrained, safe_math=safe_math, polish=polish
            ):
                return mjx.step(own, state, action, num_substeps=num_substeps)
        after = mjx.step(own, state, action, num_substeps=num_substeps)
        if grad == "none":
            return jax.tree.map(jax.lax.stop_gradient, after)
        if not simulator.constrained:
            return after
        return forward_only(
            after,
            'MJX with grad="forward" cannot be differentiated in reverse mode, its '
            'solver is a while_loop; make the dynamics with grad="implicit", or use '
            "jax.jvp or jax.jacfwd.",
        )

    def observe(params, state):
        del params
        return jnp.concatenate([state.qpos, state.qvel])

    defaults = {name: jnp.asarray(_field(simulator.model, name)) for name in params}
    dt = float(model.opt.timestep) * num_substeps
    return Dynamics(init, step, observe, dt, model.nu, defaults)


def _field(model, name: str):
    for part in name.split("."):
        model = getattr(model, part)
    return model


def _check(model, params: Sequence[str], grad: str, safe_math: bool) -> None:
    mujoco = mjx.library()
    for name in params:
        if name in _UNUSED:
            raise ValueError(
                f"no step of MuJoCo reads {name}: it cannot be a parameter."
            )
        if name in _SWITCHES and not np.any(_field(model, name)):
            raise ValueError(
                f"{name} is 0, so MuJoCo leaves it out of the program and its "
                "derivative would silently be 0; compile the model with a tiny value."
            )
        limited = _LIMITS.get(name)
        if limited is not None and not np.any(getattr(model, limited)):
            raise ValueError(
                f"{name} is read by no step, because {limited} is false throughout: "
                "its derivative would silently be 0; switch the limits on."
            )
    muscles = model.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE
    if muscles.any() and not mjx.INERTIAL.isdisjoint(params):
        raise ValueError(
            f"{sorted(mjx.INERTIAL & set(params))} cannot be parameters of a model "
            "with muscles: their strength was derived from the masses when compiling."
        )
    if grad == "implicit" and not safe_math:
        touched = [name for name in params if name.endswith("solimp")]
        if touched:
            raise ValueError(f"derivatives by {touched} need safe_math=True.")
        powers = [
            getattr(model, f"{kind}_solimp")[:, 4] for kind in ("geom", "jnt", "eq")
        ]
        odd = [p for power in powers for p in power if p != round(p)]
        if odd:
            raise ValueError(
                f"a solimp power of {odd[0]:g} needs safe_math=True: without it every "
                "derivative is NaN."
            )
