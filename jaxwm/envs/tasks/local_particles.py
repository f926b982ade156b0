"""Particles that repel at close range, with the exact causal graph of every step.

N points in the unit square. A pair closer than R repels with a constant force, so that
an edge of the graph has the same effect whatever the distance:

    v_i <- v_i + 0.05 sum_{|x_i - x_j| < R} (x_i - x_j) / |x_i - x_j|
    x_i <- x_i + v_i,   walls stop the position and turn the velocity round

Which particle acts on which changes from step to step. Interventions are factors of
variation, 0 by default: gravity pulls particle 0, friction slows particle 1, wind
drives particle 2. The action pushes the last particle, which is rewarded for being near
the middle. Lengths are in sides of the square, times in steps.

Source: a state-space stand-in, of our own, for the particle worlds of Lei, Schölkopf
and Posner, "SPARTAN", NeurIPS 2025.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxwm.envs import tasks
from jaxwm.types import Box, Env, EnvSpec, Factor

RADIUS = 0.3  # R, below which a pair interacts
FORCE = 0.05  # change of velocity per neighbour and step
SPEED = 0.04  # standard deviation of the velocities at the start

FACTORS = (
    Factor("gravity", 0.0, 0.0, 0.08, "1/step^2", "downward pull on particle 0"),
    Factor("friction", 0.0, 0.0, 0.8, "1", "share of particle 1's velocity lost"),
    Factor("wind", 0.0, 0.0, 0.08, "1/step^2", "rightward push on particle 2"),
)
# The environments of the studies of interventions: factors that are not 0. The last
# joins two that were seen alone.
ENVIRONMENTS = (
    {},
    {"gravity": 0.08},
    {"friction": 0.8},
    {"wind": 0.08},
    {"gravity": 0.08, "friction": 0.8},
)


class Particles(NamedTuple):
    """Physics: all that is Markov."""

    position: Float[Array, "N 2"]
    velocity: Float[Array, "N 2"]  # per step


def local_particles(num: int = 5, push: float = 0.02) -> Env:
    """N particles; observation (x, y, v_x, v_y) of each, one after the other, `[4 N]`.

    Starts uniformly in the square with velocities of standard deviation 0.04. Never
    terminates; the time limit is 50 steps. The reward is minus the distance of the last
    particle from the middle of the square, before the step.

    Args:
        num: N; particles 0, 1 and 2 are those that interventions act on.
        push: change of the last particle's velocity at action 1; 0 makes an
            environment without actions.

    Raises:
        ValueError: for fewer than 3 particles, or a negative push.
    """
    if num < 3:
        raise ValueError(
            f"num must be at least 3 particles, got {num}; interventions act on three."
        )
    if push < 0:
        raise ValueError(f"push must not be negative, got {push}.")
    spec = EnvSpec(
        name="local_particles",
        obs=jax.ShapeDtypeStruct((4 * num,), np.dtype("float32")),
        action=Box((-1.0, -1.0), (1.0, 1.0)) if push else Box((), ()),
        control_dt=1.0,
        time_limit=50,
        factors=FACTORS,
        random_return=-20.6,
        best_return=-8.7,
        doc="Hold one of several repelling particles in the middle of a square. Best "
        "return: proportional-derivative control with gains 0.3 and 0.8, mean of 1000 "
        "episodes of five particles at push 0.02.",
    )

    def start(key, params):
        del params  # starts do not depend on the factors
        position_key, velocity_key = jax.random.split(key)
        position = jax.random.uniform(position_key, (num, 2))
        return Particles(position, SPEED * jax.random.normal(velocity_key, (num, 2)))

    def advance(key, physics, params, action):
        del key  # deterministic
        position, velocity = physics
        reward = -jnp.linalg.norm(position[-1] - 0.5)
        velocity = velocity + FORCE * _repulsion(position)
        velocity = velocity.at[0, 1].add(-params["gravity"])
        velocity = velocity.at[1].multiply(1 - params["friction"])
        velocity = velocity.at[2, 0].add(params["wind"])
        if push:
            velocity = velocity.at[-1].add(push * action)
        moved = position + velocity
        inside = jnp.clip(moved, 0.0, 1.0)
        velocity = jnp.where(moved == inside, velocity, -velocity)
        return Particles(inside, velocity), reward, 1.0

    def observe(physics, params):
        del params
        return jnp.concatenate(physics, -1).ravel()

    return tasks.assemble(spec, start, advance, observe)


def graph(physics: Particles, params) -> Bool[Array, "N N+1"]:
    """Who influences whom in the coming step: [i, j] true where j acts on i.

    Self edges are true. The last column is the environment: true for the particles
    that an intervention acts on. The push of the last particle is not in it.

    Args:
        physics: before the step.
        params: factors of the environment; those left out are 0.
    """
    num = physics.position.shape[0]
    near = _distance(physics.position) < RADIUS
    on = [jnp.asarray(params.get(f.name, 0.0)) != 0 for f in FACTORS]
    targets = jnp.zeros(num, bool).at[:3].set(jnp.stack(on))
    return jnp.concatenate([near, targets[:, None]], 1)


def _distance(position: Float[Array, "N 2"]) -> Float[Array, "N N"]:
    return jnp.linalg.norm(position[:, None] - position[None], axis=-1)


def _repulsion(position: Float[Array, "N 2"]) -> Float[Array, "N 2"]:
    """Sum of the unit vectors away from the neighbours."""
    offset = position[:, None] - position[None]
    near = jnp.sum(offset**2, -1) < RADIUS**2
    near &= ~jnp.eye(position.shape[0], dtype=bool)
    # The distance to itself is not looked at: its gradient is not finite.
    square = jnp.where(near, jnp.sum(offset**2, -1), 1.0)
    unit = offset / jnp.sqrt(jnp.maximum(square, 1e-12))[..., None]
    return jnp.sum(near[..., None] * unit, 1)
