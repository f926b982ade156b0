"""What the planar runners share: hopper, half-cheetah and walker.

Their positions are (x, z, pitch, joint angles): progress is along x, which the
observation leaves out, so that it does not tell where the body has got to.
"""

import jax
import jax.numpy as jnp

from jaxwm.envs.mujoco import Edit
from jaxwm.types import Factor

# Of the solver under XLA, whose line search always runs to its bound. Measured on 256
# states that random actions led to: 4 and 8 give the digits that 100 and 50 give.
ITERATIONS = 8
LS_ITERATIONS = 16


def observe(physics, params, max_speed: float = jnp.inf):
    """Positions but x, then velocities, these clipped to +-`max_speed`."""
    del params
    qvel = jnp.clip(physics.qvel, -max_speed, max_speed)
    return jnp.concatenate([physics.qpos[1:], qvel])


def progress(before, after, dt: float):
    """Mean speed along x over one control step, m/s."""
    return (after.qpos[0] - before.qpos[0]) / dt


def start_uniform(key, params, reference, noise: float = 5e-3):
    """The reference pose at rest, all positions and velocities moved by up to noise."""
    del params
    # Planar joints only: as many velocities as positions.
    shape = (2, *reference.qpos.shape)
    shift = jax.random.uniform(key, shape, minval=-noise, maxval=noise)
    return reference.qpos + shift[0], shift[1]


def factors(torso_mass: float) -> tuple[Factor, ...]:
    """Factors of variation; `torso_mass` is that of the compiled model, kg."""
    low, high = 0.7 * torso_mass, 1.3 * torso_mass
    return (
        Factor("torso_mass", torso_mass, low, high, "kg", "mass of the torso"),
        Factor("limb_mass", 1.0, 0.8, 1.2, "1", "scales the masses of all limbs"),
        Factor("friction", 1.0, 0.6, 1.4, "1", "scales the friction of all contacts"),
        Factor("gravity", 9.81, 8.0, 12.0, "m/s^2", "gravitational acceleration"),
        Factor("gain", 1.0, 0.8, 1.2, "1", "scales the torques of all motors"),
        Factor("damping", 1.0, 0.5, 2.0, "1", "scales the damping of all joints"),
    )


def edits(*limbs: str) -> dict[str, tuple[Edit, ...]]:
    """The fields that follow `factors`, of a model with a torso and these limbs."""
    mass = lambda body: (Edit("body_mass", body), Edit("body_inertia", body))
    return {
        "torso_mass": mass("torso"),
        "limb_mass": sum(map(mass, limbs), ()),
        "friction": (Edit("geom_friction", column=0),),
        "gravity": (Edit("opt.gravity"),),
        "gain": (Edit("actuator_gear"),),
        "damping": (Edit("dof_damping"),),
    }
