"""Hopper: hop forward on one leg without falling, as Gymnasium's Hopper-v5.

    reward = 1 + speed - 0.001 |a|^2,   without the 1 in the step that falls,
    speed  = (x' - x) / dt,             dt = 0.008 s (4 steps of 0.002 s, RK4)

Terminates where the torso is at or below 0.7 m, leans by 0.2 rad or more, or anything
but x reaches 100. Actions are torques of 200 N m times a in [-1, 1].

Random return: uniform actions, engine "c", standard error 0.7 over 400 episodes
(`python benchmarks/best_returns.py hopper --engine c`). Best return: published, of
the SAC expert behind Minari's data for this version of the task, 4098.17 +- 247.70
(huggingface.co/farama-minari/Hopper-v5-SAC-expert).

Source: Gymnasium 1.4, Hopper-v5 (our own model file, the same physics).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import mujoco
from jaxwm.envs.tasks import planar
from jaxwm.types import Box, Env, EnvSpec

SUBSTEPS = 4
DT = 0.008  # s

SPEC = EnvSpec(
    name="hopper",
    obs=jax.ShapeDtypeStruct((11,), np.dtype("float32")),
    action=Box((-1.0,) * 3, (1.0,) * 3),
    control_dt=DT,
    time_limit=1000,
    factors=planar.factors(torso_mass=3.6651914),
    random_return=16.2,
    best_return=4098.2,
    doc="Hop forward on one leg without falling.",
)


def hopper(engine: str = "c", num_threads: int = 0) -> Env:
    """Hopper; observation: positions but x, then velocities clipped to +-10.

    Starts in the upright pose at rest, every position and velocity moved by up to
    0.005; 1000 steps of 0.008 s.

    Args:
        engine: `"mjx"`, `"c"` or `"warp"`.
        num_threads: of engine `"c"`; 0 takes all processors.
    """
    return mujoco.build(
        SPEC,
        mujoco.asset("hopper"),
        engine=engine,
        num_substeps=SUBSTEPS,
        start=planar.start_uniform,
        observe=functools.partial(planar.observe, max_speed=10.0),
        outcome=_outcome,
        edits=planar.edits("thigh", "leg", "foot"),
        num_threads=num_threads,
        iterations=planar.ITERATIONS,
        ls_iterations=planar.LS_ITERATIONS,
    )


def _outcome(before, action, after, params):
    del params
    height, lean = after.qpos[1], after.qpos[2]
    others = jnp.concatenate([after.qpos[2:], after.qvel])
    healthy = jnp.all(jnp.abs(others) < 100) & (height > 0.7) & (jnp.abs(lean) < 0.2)
    alive = healthy.astype(after.qpos.dtype)
    speed = planar.progress(before, after, DT)
    return speed + alive - 1e-3 * jnp.sum(action**2), alive
