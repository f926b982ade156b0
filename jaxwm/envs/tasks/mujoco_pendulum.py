"""Pendulum swing-up on MuJoCo; the same task as `tasks.pendulum` has in pure JAX.

MuJoCo's semi-implicit Euler at dt = 0.05 s is Gymnasium's scheme, so both agree to
rounding. Pendulum-v1 also clips the speed at 8 rad/s, for which MuJoCo has no word: the
task clips it after the step and takes back what the angle had gone too far,

    omega' = clip(omega, -8, 8),    theta' = theta - (omega - omega') dt.

Physics are `MjState`; theta is `qpos[0]`, 0 upright, positive counter-clockwise.
"""

import jax
import jax.numpy as jnp

from jaxwm.envs import mujoco
from jaxwm.envs.mujoco import Edit
from jaxwm.envs.tasks.pendulum import DT, MAX_SPEED, SPEC
from jaxwm.types import Env

EDITS = {
    "mass": (Edit("body_mass", "rod"), Edit("body_inertia", "rod")),
    "length": (
        Edit("body_ipos", "rod"),
        Edit("body_inertia", "rod", slice(0, 2), power=2),
        Edit("geom_pos", "rod"),
        Edit("geom_size", "rod", 1),
    ),
    "gravity": (Edit("opt.gravity"),),
    "gain": (Edit("actuator_gear", "torque"),),
    "friction": (Edit("dof_damping", "hinge", power=0, slope=1),),
}


def pendulum(engine: str = "mjx", num_threads: int = 0) -> Env:
    """Pendulum swing-up; spec, observation, reward and starts as `tasks.pendulum`.

    Args:
        engine: `"mjx"`, `"c"` or `"warp"`.
        num_threads: of engine `"c"`; 0 takes all processors.
    """
    return mujoco.build(
        SPEC,
        mujoco.asset("pendulum"),
        engine=engine,
        num_substeps=1,
        start=_start,
        observe=_observe,
        outcome=_outcome,
        settle=_settle,
        edits=EDITS,
        num_threads=num_threads,
    )


def _start(key, params, reference):
    del params, reference  # starts do not depend on them
    high = jnp.array([jnp.pi, 1.0])
    theta, omega = jax.random.uniform(key, (2,), minval=-high, maxval=high)
    return theta[None], omega[None]


def _settle(before, after, params):
    del before, params
    qvel = jnp.clip(after.qvel, -MAX_SPEED, MAX_SPEED)
    return after._replace(qvel=qvel, qpos=after.qpos - (after.qvel - qvel) * DT)


def _outcome(before, action, after, params):
    del after  # the reward is that of the state the action was taken in
    wrapped = (before.qpos[0] + jnp.pi) % (2 * jnp.pi) - jnp.pi
    torque = params["gain"] * action[0]
    return -(wrapped**2 + 0.1 * before.qvel[0] ** 2 + 0.001 * torque**2), 1.0


def _observe(physics, params):
    del params
    theta, omega = physics.qpos[0], physics.qvel[0]
    return jnp.stack([jnp.cos(theta), jnp.sin(theta), omega])
