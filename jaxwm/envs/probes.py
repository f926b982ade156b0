"""Five tiny environments whose values are known, to find faults in learners.

| probe | observation | reward | if only this one fails, look at |
| --- | --- | --- | --- |
| `constant_reward` | 0 | 1 | the critic: loss, learning rate |
| `obs_reward` | -1 or 1 | s | the critic's input, backpropagation |
| `delayed_reward` | 0, then 1 | 0, then 1 | discounting, bootstrapping |
| `action_reward` | 0 | 1 - (a - 1/2)^2 | advantages, actor loss and update |
| `obs_action_reward` | -1 or 1 | 1 - (a - s/2)^2 | pairing of actions with obs |

s is the observation, a the action in [-1, 1]. With `terminal=True` an episode ends
after one step (two for the delayed reward). With `terminal=False` it goes on for 50
steps to a time limit, s being drawn anew at every step (or alternating): the values are
then those of the endless task, which a learner that bootstraps at time limits finds.

Source: the idea of probe environments is A. Jones', "Debugging RL, Without the
Agonizing Pain", 2021.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import tasks
from jaxwm.types import Box, Env, EnvSpec

TIME_LIMIT = 50  # steps, where nothing terminates
LAST = 2.0  # the observation after a terminal step


class Probe(NamedTuple):
    """An environment and what is true of it.

    `value(obs, gamma)` is the discounted return of the best policy from `obs`;
    `action(obs)` its action, or None where all are alike (the value is then that of
    every policy).
    """

    env: Env
    value: Callable
    action: Callable | None


def constant_reward(terminal: bool = True) -> Probe:
    """Reward 1 whatever happens: value 1, or 1 / (1 - gamma) without end."""
    return Probe(
        _build("constant_reward", terminal, _zero, lambda s, a: 1.0),
        lambda obs, gamma: jnp.ones_like(obs[0]) * _total(terminal, gamma),
        None,
    )


def obs_reward(terminal: bool = True) -> Probe:
    """Reward s, a fair coin of -1 and 1: value s, with or without end.

    What follows the first reward has mean 0, since the next s is drawn anew.
    """
    return Probe(
        _build("obs_reward", terminal, _coin, lambda s, a: s),
        lambda obs, gamma: obs[0],
        None,
    )


def delayed_reward(terminal: bool = True) -> Probe:
    """Observation s alternates between 0 and 1, the reward is s; starts at 0.

    Value gamma at 0 and 1 at 1; both divided by 1 - gamma^2 without end.
    """
    spec = _spec("delayed_reward", terminal)

    def advance(key, s, params, action):
        del key, params, action
        after = jnp.where(s == 1, LAST, jnp.ones_like(s)) if terminal else 1 - s
        return after, s, jnp.where(terminal & (s == 1), 0.0, 1.0)

    def value(obs, gamma):
        return jnp.where(obs[0] == 1, 1.0, gamma) * _total(terminal, gamma**2)

    return Probe(tasks.assemble(spec, _zero, advance, _observe), value, None)


def action_reward(terminal: bool = True) -> Probe:
    """Reward 1 - (a - 1/2)^2: best action 1/2, value 1 or 1 / (1 - gamma)."""
    return Probe(
        _build("action_reward", terminal, _zero, lambda s, a: 1 - (a - 0.5) ** 2),
        lambda obs, gamma: jnp.ones_like(obs[0]) * _total(terminal, gamma),
        lambda obs: jnp.full_like(obs, 0.5),
    )


def obs_action_reward(terminal: bool = True) -> Probe:
    """Reward 1 - (a - s/2)^2: best action s/2, value 1 or 1 / (1 - gamma)."""
    return Probe(
        _build("obs_action_reward", terminal, _coin, lambda s, a: 1 - (a - s / 2) ** 2),
        lambda obs, gamma: jnp.ones_like(obs[0]) * _total(terminal, gamma),
        lambda obs: obs / 2,
    )


PROBES = (
    constant_reward,
    obs_reward,
    delayed_reward,
    action_reward,
    obs_action_reward,
)


def _spec(name: str, terminal: bool) -> EnvSpec:
    return EnvSpec(
        name=name,
        obs=jax.ShapeDtypeStruct((1,), np.dtype("float32")),
        action=Box((-1.0,), (1.0,)),
        control_dt=1.0,
        time_limit=TIME_LIMIT,
        doc="Probe with a known value; see jaxwm.envs.probes.",
    )


def _build(name: str, terminal: bool, draw: Callable, reward: Callable) -> Env:
    """One reward per step; s is drawn by `draw(key, params)` at every step."""

    def advance(key, s, params, action):
        after = jnp.full_like(s, LAST) if terminal else draw(key, params)
        return after, reward(s, action[0]), 0.0 if terminal else 1.0

    return tasks.assemble(_spec(name, terminal), draw, advance, _observe)


def _zero(key, params):
    del key, params
    return jnp.zeros(())


def _coin(key, params):
    del params
    return jax.random.rademacher(key, (), jnp.float32)


def _observe(s, params):
    del params
    return s[None]


def _total(terminal: bool, gamma):
    """What a reward of 1 per step sums to."""
    return 1.0 if terminal else 1 / (1 - gamma)
