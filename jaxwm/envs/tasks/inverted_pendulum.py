"""Inverted pendulum: keep a pole upright on a cart, as Gymnasium's InvertedPendulum-v5.

The reward is 1 per step, 0 in the step that ends with the pole leaning by more than
0.2 rad, which terminates. Steps of 0.04 s (2 of 0.02 s, RK4). Actions are the control
in [-3, 3], with 100 N each; joints end at +-1 m and +-90 degrees.

Random return: uniform actions, engine "c", standard error 0.2 over 400 episodes
(`python benchmarks/best_returns.py inverted_pendulum --engine c`). No policy can get
more than 1 per step.

Source: Gymnasium 1.4, InvertedPendulum-v5 (our own model file, the same physics).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import mujoco
from jaxwm.envs.mujoco import Edit
from jaxwm.envs.tasks import planar
from jaxwm.types import Box, Env, EnvSpec, Factor

SUBSTEPS = 2

SPEC = EnvSpec(
    name="inverted_pendulum",
    obs=jax.ShapeDtypeStruct((4,), np.dtype("float32")),  # x, theta, x', theta'
    action=Box((-3.0,), (3.0,)),
    control_dt=0.04,
    time_limit=1000,
    factors=(
        Factor("cart_mass", 10.4719755, 7.0, 14.0, "kg", "mass of the cart"),
        Factor("pole_mass", 5.0185917, 3.5, 6.5, "kg", "mass of the pole"),
        Factor("gravity", 9.81, 8.0, 12.0, "m/s^2", "gravitational acceleration"),
        Factor("gain", 100.0, 70.0, 130.0, "N", "force at action 1"),
        Factor("damping", 1.0, 0.5, 2.0, "1", "scales the damping of both joints"),
    ),
    random_return=5.1,
    best_return=1000.0,
    doc="Keep a pole upright on a cart.",
)

EDITS = {
    "cart_mass": (Edit("body_mass", "cart"), Edit("body_inertia", "cart")),
    "pole_mass": (Edit("body_mass", "pole"), Edit("body_inertia", "pole")),
    "gravity": (Edit("opt.gravity"),),
    "gain": (Edit("actuator_gear", "force"),),
    "damping": (Edit("dof_damping"),),
}


def inverted_pendulum(engine: str = "c", num_threads: int = 0) -> Env:
    """Inverted pendulum; observation (x, theta, x', theta').

    Starts upright at rest, every position and velocity moved by up to 0.01; 1000 steps.

    Args:
        engine: `"mjx"`, `"c"` or `"warp"`.
        num_threads: of engine `"c"`; 0 takes all processors.
    """
    return mujoco.build(
        SPEC,
        mujoco.asset("inverted_pendulum"),
        engine=engine,
        num_substeps=SUBSTEPS,
        start=lambda *args: planar.start_uniform(*args, noise=0.01),
        observe=lambda physics, params: jnp.concatenate([physics.qpos, physics.qvel]),
        outcome=_outcome,
        edits=EDITS,
        num_threads=num_threads,
        iterations=planar.ITERATIONS,
        ls_iterations=planar.LS_ITERATIONS,
    )


def _outcome(before, action, after, params):
    del before, action, params
    alive = (jnp.abs(after.qpos[1]) <= 0.2).astype(after.qpos.dtype)
    return alive, alive
