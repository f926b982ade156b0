"""Families of environments: one task, many bodies, drawn from ranges.

A family is a task of this package whose factors are drawn anew for every system, the
sign of the action among them, so that nobody can act well who has not seen how the
system at hand answers. Systems beyond the ranges test extrapolation.

Shapes: T steps, O observation, A action. Functions take ONE system; `jax.vmap` adds
the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.envs.tasks import cartpole, pendulum
from jaxwm.types import Env, Factor, PyTree, Trajectory

BEYOND = 0.3  # systems outside lie up to this share beyond the upper ends


class Family(NamedTuple):
    """A task and how its systems are drawn.

    env:    the task; its `reset` takes the factors of one system
    traits: what is drawn, with ranges; dimensionless where the task's own factors would
            make a body that no motor of the range can move
    draw:   (key, outside=False) -> factors of one system. Inside, every trait is
            uniform over its range; `outside`, every trait lies up to 30 % above its
            upper end. The sign of the action is a fair coin in both.
    locate: (obs) -> physics, the state that shows this observation
    """

    env: Env
    traits: tuple[Factor, ...]
    draw: Callable
    locate: Callable


def pendulum_family() -> Family:
    """Pendulum swing-up with a motor from half to twice the weight's largest torque.

    gain = ± strength m g l / 2,   friction = damping m l^2 / 3
    """
    traits = (
        Factor("mass", 1.0, 0.5, 2.0, "kg", "mass of the rod"),
        Factor("length", 1.0, 0.5, 1.5, "m", "length of the rod"),
        Factor("gravity", 10.0, 6.0, 14.0, "m/s^2", "gravitational acceleration"),
        Factor("damping", 0.0, 0.0, 0.3, "1/s", "rate at which friction slows it"),
        Factor("strength", 1.0, 0.5, 2.0, "1", "torque at action 1 over the weight's"),
    )

    def factors(drawn, sign):
        m, l, g = drawn["mass"], drawn["length"], drawn["gravity"]
        gain = sign * drawn["strength"] * m * g * l / 2
        friction = drawn["damping"] * m * l**2 / 3
        return dict(mass=m, length=l, gravity=g, gain=gain, friction=friction)

    def locate(obs: Float[Array, " O"]):
        return pendulum.Pendulum(jnp.arctan2(obs[1], obs[0]), obs[2])

    return _family(pendulum.pendulum(), traits, factors, locate)


def cartpole_family() -> Family:
    """Swing-up with carts, poles and motors of many sizes, without friction."""
    traits = (
        Factor("cart_mass", 1.0, 0.5, 2.0, "kg", "mass of the cart"),
        Factor("pole_mass", 0.1, 0.05, 0.5, "kg", "mass of the pole"),
        Factor("length", 0.5, 0.15, 0.6, "m", "half the length of the pole"),
        Factor("strength", 10.0, 5.0, 20.0, "N", "force at action 1"),
    )
    env = cartpole.cartpole_swingup()

    def factors(drawn, sign):
        drawn = {**env.spec.default_params(), **drawn}
        drawn["gain"] = sign * drawn.pop("strength")
        return drawn

    def locate(obs: Float[Array, " O"]):
        angle = jnp.arctan2(obs[2], obs[1])
        return cartpole.Cartpole(obs[0], obs[3], angle, obs[4])

    return _family(env, traits, factors, locate)


def padded(env: Env, obs_size: int) -> Env:
    """The same task with zeros behind its observation, `[obs_size]` in all.

    Raises:
        ValueError: if the observation is no vector or is longer already.
    """
    size, _ = env.spec.flat_sizes("padded")
    if obs_size < size:
        raise ValueError(
            f"obs_size must be at least {size}, what {env.spec.name} observes, got "
            f"{obs_size}."
        )

    def pad(state):
        return state._replace(obs=jnp.pad(state.obs, (0, obs_size - size)))

    spec = env.spec._replace(obs=jax.ShapeDtypeStruct((obs_size,), env.spec.obs.dtype))
    return env._replace(
        spec=spec,
        reset=lambda key, params=None: pad(env.reset(key, params)),
        reset_to=lambda physics, params=None: pad(env.reset_to(physics, params)),
        step=lambda key, state, action: pad(env.step(key, state, action)),
    )


def episode(
    key: Key[Array, ""],
    env: Env,
    params: PyTree,
    act: Callable,
    num_steps: int,
    *,
    memory: PyTree = (),
) -> Trajectory:
    """One episode of one system, cut after `num_steps`, as rows to learn from.

    Args:
        key: start, steps and acting.
        env: the task.
        params: factors of the system; None for the defaults.
        act: `(key, memory, obs, is_first) -> (action, memory)`.
        num_steps: T, a Python int.
        memory: what `act` reads at the first step.

    Returns:
        `[T, ...]` with `extras["next_obs"]`; rows behind a true termination are masked.
    """
    reset_key, run_key = jax.random.split(key)
    start = env.reset(reset_key, params)

    def step(carry, i):
        state, memory, alive = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, i))
        action, memory = act(act_key, memory, state.obs, i == 0)
        new = env.step(env_key, state, action)
        extras = {"next_obs": new.obs}
        row = Trajectory(state.obs, action, new.reward, new.discount, alive, extras)
        return (new, memory, alive * new.discount), row

    carry = (start, memory, jnp.ones(()))
    return jax.lax.scan(step, carry, jnp.arange(num_steps))[1]


def _family(env: Env, traits, factors: Callable, locate: Callable) -> Family:
    def draw(key: Key[Array, ""], outside: bool = False) -> dict[str, Array]:
        drawn = {}
        for i, trait in enumerate(traits):
            low, high = trait.low, trait.high
            if outside:
                low, high = high, (1 + BEYOND) * high
            trait_key = jax.random.fold_in(key, i)
            drawn[trait.name] = jax.random.uniform(
                trait_key, (), jnp.float32, low, high
            )
        sign_key = jax.random.fold_in(key, len(traits))
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        found = factors(drawn, sign)
        return {name: jnp.asarray(x, jnp.float32) for name, x in found.items()}

    return Family(env, traits, draw, locate)
