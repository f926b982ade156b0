"""Half-cheetah: run with two legs in the plane, as Gymnasium's HalfCheetah-v5.

    reward = speed - 0.1 |a|^2,
    speed  = (x' - x) / dt,             dt = 0.05 s (5 steps of 0.01 s)

Never terminates. Actions in [-1, 1] are torques of up to 120 N m.

Random return: uniform actions, engine "c", standard error 6.6 over 128 episodes
(`python benchmarks/best_returns.py halfcheetah --engine c`). Best return: published, of
the TQC expert behind Minari's data for this version of the task, 17641.80 +- 61.88
(huggingface.co/farama-minari/HalfCheetah-v5-TQC-expert).

Source: Gymnasium 1.4, HalfCheetah-v5 (our own model file, the same physics).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import mujoco
from jaxwm.envs.tasks import planar
from jaxwm.types import Box, Env, EnvSpec

SUBSTEPS = 5
DT = 0.05  # s

SPEC = EnvSpec(
    name="halfcheetah",
    obs=jax.ShapeDtypeStruct((17,), np.dtype("float32")),
    action=Box((-1.0,) * 6, (1.0,) * 6),
    control_dt=DT,
    time_limit=1000,
    factors=planar.factors(torso_mass=6.2502093),
    random_return=-279.2,
    best_return=17641.8,
    doc="Run with two legs in the plane.",
)


def halfcheetah(engine: str = "c", num_threads: int = 0) -> Env:
    """Half-cheetah; observation: positions but x, then velocities.

    Starts in the reference pose, every position moved by up to 0.1 and every velocity
    by 0.1 times a standard normal draw; 1000 steps of 0.05 s.

    Args:
        engine: `"mjx"`, `"c"` or `"warp"`.
        num_threads: of engine `"c"`; 0 takes all processors.
    """
    limbs = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
    return mujoco.build(
        SPEC,
        mujoco.asset("halfcheetah"),
        engine=engine,
        num_substeps=SUBSTEPS,
        start=_start,
        observe=planar.observe,
        outcome=_outcome,
        edits=planar.edits(*limbs),
        num_threads=num_threads,
        iterations=planar.ITERATIONS,
        ls_iterations=planar.LS_ITERATIONS,
    )


def _start(key, params, reference):
    position_key, velocity_key = jax.random.split(key)
    qpos, _ = planar.start_uniform(position_key, params, reference, noise=0.1)
    return qpos, 0.1 * jax.random.normal(velocity_key, reference.qvel.shape)


def _outcome(before, action, after, params):
    del params
    return planar.progress(before, after, DT) - 0.1 * jnp.sum(action**2), 1.0
