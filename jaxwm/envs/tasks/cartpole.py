"""Cart and pole in pure JAX: balance and swing-up.

A cart of mass M slides on a rail; a uniform pole of mass m and half-length l hangs on
it. x in m, theta in rad from upright, positive where the pole's tip is at larger x.

    f    = (gain a - friction x_dot + m l theta_dot^2 sin(theta)) / (M + m)
    th'' = (g sin(theta) - cos(theta) f) / (l [4/3 - m cos(theta)^2 / (M + m)])
    x''  = f - m l th'' cos(theta) / (M + m)

Balance keeps everything that Gymnasium's CartPole-v1 has (explicit Euler, start,
termination) but the action, a force 10 a with a in [-1, 1] instead of two pushes, and
the reward. Swing-up takes semi-implicit Euler, since explicit Euler feeds energy into
a hanging pole, and ends the rail at +-2.4 m with plastic stops: the cart loses its
speed there and the pole receives the impulse, theta_dot += 3 cos(theta) x_dot / (4 l).

Source: Gymnasium 1.4, CartPole-v1 (friction is ours, 0 by default); reward of
swing-up: Tassa et al., "DeepMind Control Suite", 2018.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxwm.envs import drawing, tasks
from jaxwm.types import Box, Env, EnvSpec, Factor

DT = 0.02  # s
RAIL = 2.4  # m, from the middle to either end
FALLEN = 12 * 2 * np.pi / 360  # rad


class Cartpole(NamedTuple):
    """Physics: all that is Markov."""

    x: Float[Array, ""]  # m
    x_dot: Float[Array, ""]  # m/s
    theta: Float[Array, ""]  # rad from upright, not wrapped
    theta_dot: Float[Array, ""]  # rad/s


FACTORS = (
    Factor("cart_mass", 1.0, 0.7, 1.3, "kg", "mass of the cart"),
    Factor("pole_mass", 0.1, 0.05, 0.2, "kg", "mass of the pole"),
    Factor("length", 0.5, 0.35, 0.65, "m", "half the length of the pole"),
    Factor("gravity", 9.8, 8.0, 12.0, "m/s^2", "gravitational acceleration"),
    Factor("gain", 10.0, 7.0, 13.0, "N", "force at action 1"),
    Factor("friction", 0.0, 0.0, 0.5, "N s/m", "viscous friction of the cart"),
)

BALANCE = EnvSpec(
    name="cartpole_balance",
    obs=jax.ShapeDtypeStruct((4,), np.dtype("float32")),  # x, x', theta, theta'
    action=Box((-1.0,), (1.0,)),
    control_dt=DT,
    time_limit=200,
    factors=FACTORS,
    random_return=27.9,
    best_return=199.99,
    doc="Keep a pole upright and the cart near the middle. Best return: "
    "linear-quadratic control, mean of 1000 episodes (benchmarks/best_returns.py).",
)

SWINGUP = EnvSpec(
    name="cartpole_swingup",
    obs=jax.ShapeDtypeStruct((5,), np.dtype("float32")),  # x, cos, sin, x', theta'
    action=Box((-1.0,), (1.0,)),
    control_dt=DT,
    time_limit=500,
    factors=FACTORS,
    random_return=21.3,
    best_return=427.4,
    doc="Swing a hanging pole up and hold it near the middle of the rail. Best return: "
    "planning with the true model, 20 episodes (benchmarks/best_returns.py).",
)


def cartpole_balance() -> Env:
    """Balance; observation (x, x_dot, theta, theta_dot), reward `1 - (x / 2.4)^2`.

    The reward is that of the state reached. Terminates where |theta| > 12 degrees or
    |x| > 2.4 m; starts with all four uniform in (-0.05, 0.05); 200 steps of 0.02 s.
    """
    return tasks.assemble(
        BALANCE, _start_upright, _advance_balance, _observe_angle, drawing.cartpole
    )


def cartpole_swingup() -> Env:
    """Swing-up; observation (x, cos theta, sin theta, x_dot, theta_dot).

        reward = (1 + cos theta) / 2 * (1 + 0.1^((x / 2)^2)) / 2
                 * (5 - a^2) / 5 * (1 + 0.1^((theta_dot / 5)^2)) / 2

    of the state reached, in [0, 1]. Starts hanging: theta within 0.1 rad of pi, x
    within 0.1 m, speeds within 0.1. Never terminates; 500 steps of 0.02 s.
    """
    return tasks.assemble(
        SWINGUP, _start_hanging, _advance_swingup, _observe_cosine, drawing.cartpole
    )


def _start_upright(key, params):
    del params  # starts do not depend on the factors
    return Cartpole(*jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05))


def _start_hanging(key, params):
    del params
    noise = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
    return Cartpole(noise[0], noise[1], jnp.pi + noise[2], noise[3])


def _accelerations(physics, params, action):
    _, x_dot, theta, theta_dot = physics
    sin, cos = jnp.sin(theta), jnp.cos(theta)
    total = params["cart_mass"] + params["pole_mass"]
    moment = params["pole_mass"] * params["length"]
    force = params["gain"] * action[0] - params["friction"] * x_dot
    pushed = (force + moment * theta_dot**2 * sin) / total
    theta_acc = (params["gravity"] * sin - cos * pushed) / (
        params["length"] * (4 / 3 - params["pole_mass"] * cos**2 / total)
    )
    return pushed - moment * theta_acc * cos / total, theta_acc


def _advance_balance(key, physics, params, action):
    del key  # deterministic
    x, x_dot, theta, theta_dot = physics
    x_acc, theta_acc = _accelerations(physics, params, action)
    x, x_dot = x + DT * x_dot, x_dot + DT * x_acc
    theta, theta_dot = theta + DT * theta_dot, theta_dot + DT * theta_acc
    terminal = (jnp.abs(x) > RAIL) | (jnp.abs(theta) > FALLEN)
    reward = 1 - (x / RAIL) ** 2
    return Cartpole(x, x_dot, theta, theta_dot), reward, jnp.where(terminal, 0.0, 1.0)


def _advance_swingup(key, physics, params, action):
    del key  # deterministic
    x, x_dot, theta, theta_dot = physics
    x_acc, theta_acc = _accelerations(physics, params, action)
    x_dot, theta_dot = x_dot + DT * x_acc, theta_dot + DT * theta_acc
    x, theta = x + DT * x_dot, theta + DT * theta_dot
    stopped = jnp.abs(x) > RAIL
    impulse = 3 * jnp.cos(theta) * x_dot / (4 * params["length"])
    physics = Cartpole(
        jnp.clip(x, -RAIL, RAIL),
        jnp.where(stopped, 0.0, x_dot),
        theta,
        jnp.where(stopped, theta_dot + impulse, theta_dot),
    )
    upright = (1 + jnp.cos(theta)) / 2
    centred = (1 + 0.1 ** ((physics.x / 2) ** 2)) / 2
    calm = (1 + 0.1 ** ((physics.theta_dot / 5) ** 2)) / 2
    return physics, upright * centred * calm * (5 - action[0] ** 2) / 5, 1.0


def _observe_angle(physics, params):
    del params
    return jnp.stack(physics)


def _observe_cosine(physics, params):
    del params
    x, x_dot, theta, theta_dot = physics
    return jnp.stack([x, jnp.cos(theta), jnp.sin(theta), x_dot, theta_dot])
