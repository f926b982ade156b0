"""Pendulum swing-up in pure JAX, with the numbers of Gymnasium's Pendulum-v1.

A rod of mass m and length l turns about one end, driven by a torque too weak to lift
it at once. theta is 0 upright, positive counter-clockwise, in rad, and is not wrapped.

    omega' = clip(omega + [3 g / (2 l) sin(theta)
                           + 3 / (m l^2) (gain a - friction omega)] dt, -8, 8)
    theta' = theta + omega' dt,                        dt = 0.05 s
    reward = -(wrap(theta)^2 + 0.1 omega^2 + 0.001 (gain a)^2)

The reward is that of the state the action was taken in, as in Gymnasium. Actions are
in [-1, 1] where Gymnasium's are the torque in [-2, 2] N m.

Source: Gymnasium 1.4, Pendulum-v1 (friction is ours, 0 by default).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxwm.envs import drawing, tasks
from jaxwm.types import Box, Env, EnvSpec, Factor

DT = 0.05  # s
MAX_SPEED = 8.0  # rad/s


class Pendulum(NamedTuple):
    """Physics: all that is Markov."""

    theta: Float[Array, ""]  # rad from upright
    omega: Float[Array, ""]  # rad/s


FACTORS = (
    Factor("mass", 1.0, 0.7, 1.3, "kg", "mass of the rod"),
    Factor("length", 1.0, 0.8, 1.2, "m", "length of the rod"),
    Factor("gravity", 10.0, 8.0, 12.0, "m/s^2", "gravitational acceleration"),
    Factor("gain", 2.0, 1.5, 2.5, "N m", "torque at action 1"),
    Factor("friction", 0.0, 0.0, 0.1, "N m s", "viscous friction of the joint"),
)

SPEC = EnvSpec(
    name="pendulum",
    obs=jax.ShapeDtypeStruct((3,), np.dtype("float32")),  # cos, sin, omega
    action=Box((-1.0,), (1.0,)),
    control_dt=DT,
    time_limit=200,
    factors=FACTORS,
    random_return=-1199.0,
    best_return=-132.0,
    doc="Swing a rod up and hold it with a weak motor. Best return: dynamic "
    "programming on a grid, mean of 1000 episodes (benchmarks/best_returns.py).",
)


def pendulum() -> Env:
    """Pendulum swing-up; observation (cos theta, sin theta, omega).

    Starts with theta uniform in (-pi, pi) and omega in (-1, 1) rad/s. Never terminates;
    the time limit is 200 steps of 0.05 s.
    """
    return tasks.assemble(SPEC, _start, _advance, _observe, drawing.pendulum)


def _start(key, params):
    del params  # starts do not depend on the factors
    high = jnp.array([jnp.pi, 1.0])
    theta, omega = jax.random.uniform(key, (2,), minval=-high, maxval=high)
    return Pendulum(theta, omega)


def _advance(key, physics, params, action):
    del key  # deterministic
    theta, omega = physics
    torque = params["gain"] * action[0]
    wrapped = (theta + jnp.pi) % (2 * jnp.pi) - jnp.pi
    reward = -(wrapped**2 + 0.1 * omega**2 + 0.001 * torque**2)
    gravity = 3 * params["gravity"] / (2 * params["length"]) * jnp.sin(theta)
    driven = 3 / (params["mass"] * params["length"] ** 2)
    acceleration = gravity + driven * (torque - params["friction"] * omega)
    omega = jnp.clip(omega + acceleration * DT, -MAX_SPEED, MAX_SPEED)
    return Pendulum(theta + omega * DT, omega), reward, 1.0


def _observe(physics, params):
    del params
    theta, omega = physics
    return jnp.stack([jnp.cos(theta), jnp.sin(theta), omega])
