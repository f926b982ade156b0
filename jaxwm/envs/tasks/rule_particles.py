"""Typed discs in the plane that follow rules: which type pairs interact, and how.

Every disc has a type, A, B or C. In a step one rule acts on it, from the nearest other
disc within R to whose type the environment gives a rule; if there is none it flies on:

    0  none      v <- v
    1  attract   v <- v + F u                 u: unit vector to that disc
    2  repel     v <- v - F u
    3  orbit     v <- v + F (-u_y, u_x)
    x <- x + v

An environment is a table of rules by (type of the disc, type of the other), as nine
factors of variation, rounded: `a_from_b` is the rule of a disc of type A near one of
type B.
There are no walls: nothing depends on absolute positions. The action pushes the last
disc, which is rewarded for being near the origin. Lengths are in sides of the square
that discs start in, times in steps.

Source: after the particle worlds of Lei, Nolte, Schölkopf and Posner, "Compete and
Compose: Learning Independent Mechanisms for Modular World Models", 2024; the numbers
are ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxwm.envs import tasks
from jaxwm.types import Box, Env, EnvSpec, Factor

RADIUS = 0.4  # R, within which a rule acts
FORCE = 0.03  # F, change of velocity per step
SPEED = 0.04  # standard deviation of the velocities at the start
TYPES = "abc"
RULES = ("none", "attract", "repel", "orbit")

# Rules that are not 0. Each of them acts in at least two of the first four, which are
# trained on; the last is new. The first is the default.
ENVIRONMENTS = (
    {"a_from_b": 1, "a_from_c": 2, "b_from_a": 2, "b_from_c": 3, "c_from_a": 3},
    {"a_from_a": 2, "a_from_c": 3, "b_from_b": 3, "b_from_c": 1, "c_from_b": 2},
    {"a_from_a": 3, "b_from_a": 3, "c_from_b": 3, "c_from_c": 1},
    {"a_from_b": 3, "b_from_b": 1, "c_from_a": 2, "c_from_c": 2},
    {"a_from_b": 2, "a_from_c": 1, "b_from_b": 2, "c_from_b": 1, "c_from_c": 3},
)

FACTORS = tuple(
    Factor(
        f"{i}_from_{j}",
        float(ENVIRONMENTS[0].get(f"{i}_from_{j}", 0)),
        0.0,
        3.0,
        "1",
        f"rule of type {i.upper()} near {j.upper()}: " + ", ".join(RULES),
    )
    for i in TYPES
    for j in TYPES
)


class Discs(NamedTuple):
    """Physics: all that is Markov."""

    position: Float[Array, "N 2"]
    velocity: Float[Array, "N 2"]  # per step
    kind: Int[Array, " N"]  # 0, 1, 2: type A, B, C


class Acting(NamedTuple):
    """What acts on each disc in the coming step."""

    rule: Int[Array, " N"]  # index into RULES
    context: Int[Array, " N"]  # the other disc; itself where the rule is 0


def rule_particles(num: int = 4, push: float = 0.02) -> Env:
    """N discs; observation (x, y, v_x, v_y, is A, is B, is C) of each, `[7 N]`.

    Starts uniformly in the square of side 1 around the origin, with types uniformly
    drawn and velocities of standard deviation 0.04. Never terminates; the time limit is
    50 steps. The reward is minus the distance of the last disc from the origin, before
    the step.

    Args:
        num: N.
        push: change of the last disc's velocity at action 1; 0 makes an environment
            without actions.

    Raises:
        ValueError: for fewer than 2 discs, or a negative push.
    """
    if num < 2:
        raise ValueError(f"num must be at least 2 discs, got {num}; rules need pairs.")
    if push < 0:
        raise ValueError(f"push must not be negative, got {push}.")
    spec = EnvSpec(
        name="rule_particles",
        obs=jax.ShapeDtypeStruct((7 * num,), np.dtype("float32")),
        action=Box((-1.0, -1.0), (1.0, 1.0)) if push else Box((), ()),
        control_dt=1.0,
        time_limit=50,
        factors=FACTORS,
        random_return=-135.1,
        best_return=-4.86,
        doc="Hold one of several discs, whose types attract, repel or orbit, in place. "
        "Best return: proportional-derivative control with gains 0.3 and 1.2, mean of "
        "1000 episodes of four discs at push 0.02.",
    )

    def start(key, params):
        del params  # starts do not depend on the factors
        position_key, velocity_key, kind_key = jax.random.split(key, 3)
        return Discs(
            jax.random.uniform(position_key, (num, 2), minval=-0.5, maxval=0.5),
            SPEED * jax.random.normal(velocity_key, (num, 2)),
            jax.random.randint(kind_key, (num,), 0, len(TYPES)),
        )

    def advance(key, physics, params, action):
        del key  # deterministic
        position, velocity, kind = physics
        reward = -jnp.linalg.norm(position[-1])
        rule, context = acting(physics, params)
        offset = position[context] - position
        # Nobody looks at the direction where no rule acts: its gradient is not finite.
        square = jnp.where(rule > 0, jnp.sum(offset**2, -1), 1.0)
        to = offset / jnp.sqrt(jnp.maximum(square, 1e-12))[:, None]
        across = jnp.stack([-to[:, 1], to[:, 0]], -1)
        pushes = jnp.stack([jnp.zeros_like(to), to, -to, across])  # by rule
        velocity = velocity + FORCE * pushes[rule, jnp.arange(num)]
        if push:
            velocity = velocity.at[-1].add(push * action)
        return Discs(position + velocity, velocity, kind), reward, 1.0

    def observe(physics, params):
        del params
        position, velocity, kind = physics
        label = jax.nn.one_hot(kind, len(TYPES))
        return jnp.concatenate([position, velocity, label], -1).ravel()

    return tasks.assemble(spec, start, advance, observe)


def table(params) -> Int[Array, "3 3"]:
    """Rules by (type of the disc, type of the other); factors left out are 0."""
    values = [params.get(f.name, 0.0) for f in FACTORS]
    return (
        jnp.round(jnp.stack([jnp.asarray(v) for v in values]))
        .astype(jnp.int32)
        .reshape(3, 3)
    )


def acting(physics: Discs, params) -> Acting:
    """The rule and the other disc that act on each disc in the coming step.

    Args:
        physics: before the step.
        params: factors of the environment.
    """
    position, _, kind = physics
    num = position.shape[0]
    rules = table(params)[kind[:, None], kind[None]]  # [N, N]
    square = jnp.sum((position[:, None] - position[None]) ** 2, -1)
    can = (rules > 0) & (square < RADIUS**2) & ~jnp.eye(num, dtype=bool)
    nearest = jnp.argmin(jnp.where(can, square, jnp.inf), 1)
    acts = jnp.any(can, 1)
    this = jnp.arange(num)
    return Acting(
        jnp.where(acts, rules[this, nearest], 0), jnp.where(acts, nearest, this)
    )
