"""Cart and pole on MuJoCo; the same tasks as `tasks.cartpole` has in pure JAX.

MuJoCo's semi-implicit Euler at dt = 0.02 s is the scheme of the swing-up in pure JAX,
so these agree to rounding; balance takes explicit Euler there, as CartPole-v1 does, and
the positions after one step differ by dt^2 times the acceleration. The rail's ends are
plastic stops that the task sets after the step, not limits of the joint: the model
stays free of constraints, hence fast and differentiable.

Physics are `MjState` with qpos = (x, theta) and qvel = (x_dot, theta_dot).
"""

import jax
import jax.numpy as jnp

from jaxwm.envs import mujoco
from jaxwm.envs.mujoco import Edit
from jaxwm.envs.tasks.cartpole import BALANCE, FALLEN, RAIL, SWINGUP
from jaxwm.types import Env

EDITS = {
    "cart_mass": (Edit("body_mass", "cart"), Edit("body_inertia", "cart")),
    "pole_mass": (Edit("body_mass", "pole"), Edit("body_inertia", "pole")),
    "length": (
        Edit("body_ipos", "pole"),
        Edit("body_inertia", "pole", slice(0, 2), power=2),
        Edit("geom_pos", "pole"),
        Edit("geom_size", "pole", 1),
    ),
    "gravity": (Edit("opt.gravity"),),
    "gain": (Edit("actuator_gear", "force"),),
    "friction": (Edit("dof_damping", "slider", power=0, slope=1),),
}


def balance(engine: str = "mjx", num_threads: int = 0) -> Env:
    """Balance; spec, observation, reward and starts as `tasks.cartpole_balance`.

    Args:
        engine: `"mjx"`, `"c"` or `"warp"`.
        num_threads: of engine `"c"`; 0 takes all processors.
    """
    return mujoco.build(
        BALANCE,
        mujoco.asset("cartpole"),
        engine=engine,
        num_substeps=1,
        start=_start_upright,
        observe=_observe_angle,
        outcome=_outcome_balance,
        edits=EDITS,
        num_threads=num_threads,
    )


def swingup(engine: str = "mjx", num_threads: int = 0) -> Env:
    """Swing-up; spec, observation, reward and starts as `tasks.cartpole_swingup`.

    Args:
        engine: `"mjx"`, `"c"` or `"warp"`.
        num_threads: of engine `"c"`; 0 takes all processors.
    """
    return mujoco.build(
        SWINGUP,
        mujoco.asset("cartpole"),
        engine=engine,
        num_substeps=1,
        start=_start_hanging,
        observe=_observe_cosine,
        outcome=_outcome_swingup,
        settle=_settle,
        edits=EDITS,
        num_threads=num_threads,
    )


def _start_upright(key, params, reference):
    del params, reference  # starts do not depend on them
    noise = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
    return noise[::2], noise[1::2]


def _start_hanging(key, params, reference):
    del params, reference
    noise = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
    return noise[::2] + jnp.array([0.0, jnp.pi]), noise[1::2]


def _settle(before, after, params):
    """Stops the cart at the rail's ends; the pole receives the impulse."""
    del before
    (x, theta), (x_dot, theta_dot) = after.qpos, after.qvel
    stopped = jnp.abs(x) > RAIL
    impulse = 3 * jnp.cos(theta) * x_dot / (4 * params["length"])
    qvel = jnp.stack([0.0 * x_dot, theta_dot + impulse])
    return after._replace(
        qpos=jnp.stack([jnp.clip(x, -RAIL, RAIL), theta]),
        qvel=jnp.where(stopped, qvel, after.qvel),
    )


def _outcome_balance(before, action, after, params):
    del before, action, params
    x, theta = after.qpos
    terminal = (jnp.abs(x) > RAIL) | (jnp.abs(theta) > FALLEN)
    return 1 - (x / RAIL) ** 2, jnp.where(terminal, 0.0, 1.0)


def _outcome_swingup(before, action, after, params):
    del before, params
    (x, theta), theta_dot = after.qpos, after.qvel[1]
    upright = (1 + jnp.cos(theta)) / 2
    centred = (1 + 0.1 ** ((x / 2) ** 2)) / 2
    calm = (1 + 0.1 ** ((theta_dot / 5) ** 2)) / 2
    return upright * centred * calm * (5 - action[0] ** 2) / 5, 1.0


def _observe_angle(physics, params):
    del params
    return jnp.stack([physics.qpos, physics.qvel], -1).ravel()


def _observe_cosine(physics, params):
    del params
    x, theta = physics.qpos
    return jnp.stack([x, jnp.cos(theta), jnp.sin(theta), *physics.qvel])
