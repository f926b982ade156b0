"""Walker: walk forward on two legs without falling, as Gymnasium's Walker2d-v5.

    reward = 1 + speed - 0.001 |a|^2,   without the 1 in the step that falls,
    speed  = (x' - x) / dt,             dt = 0.008 s (4 steps of 0.002 s, RK4)

Terminates where the torso leaves heights of 0.8 to 2 m or leans by 1 rad or more.
Actions are torques of 100 N m times a in [-1, 1].

Random return: uniform actions, engine "c", standard error 0.5 over 128 episodes
(`python benchmarks/best_returns.py walker2d --engine c`). Best return: published, of
the SAC expert behind Minari's data for this version of the task, 6956.61 +- 15.95
(huggingface.co/farama-minari/Walker2d-v5-SAC-expert).

Source: Gymnasium 1.4, Walker2d-v5 (our own model file, the same physics).
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
    name="walker2d",
    obs=jax.ShapeDtypeStruct((17,), np.dtype("float32")),
    action=Box((-1.0,) * 6, (1.0,) * 6),
    control_dt=DT,
    time_limit=1000,
    factors=planar.factors(torso_mass=3.6651914),
    random_return=1.0,
    best_return=6956.6,
    doc="Walk forward on two legs without falling.",
)


def walker2d(engine: str = "c", num_threads: int = 0) -> Env:
    """Walker; observation: positions but x, then velocities clipped to +-10.

    Starts in the upright pose at rest, every position and velocity moved by up to
    0.005; 1000 steps of 0.008 s.

    Args:
        engine: `"mjx"`, `"c"` or `"warp"`.
        num_threads: of engine `"c"`; 0 takes all processors.
    """
    limbs = ("thigh", "leg", "foot", "thigh_left", "leg_left", "foot_left")
    return mujoco.build(
        SPEC,
        mujoco.asset("walker2d"),
        engine=engine,
        num_substeps=SUBSTEPS,
        start=planar.start_uniform,
        observe=functools.partial(planar.observe, max_speed=10.0),
        outcome=_outcome,
        edits=planar.edits(*limbs),
        num_threads=num_threads,
        iterations=planar.ITERATIONS,
        ls_iterations=planar.LS_ITERATIONS,
    )


def _outcome(before, action, after, params):
    del params
    height, lean = after.qpos[1], after.qpos[2]
    healthy = (height > 0.8) & (height < 2.0) & (jnp.abs(lean) < 1.0)
    alive = healthy.astype(after.qpos.dtype)
    speed = planar.progress(before, after, DT)
    return speed + alive - 1e-3 * jnp.sum(action**2), alive
