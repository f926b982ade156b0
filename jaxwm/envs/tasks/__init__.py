"""Tasks, one file each; this one builds an `Env` from the functions that differ.

The convention every environment keeps: `step` adds one to `t`, leaves `truncated`
alone and never resets. `envs.batch` owns the clock (it compares `t` with
`spec.time_limit`) and the resets, so the limit is changed in one place:
`env._replace(spec=env.spec._replace(time_limit=50))`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxwm.envs import factors
from jaxwm.types import Box, Env, EnvSpec, EnvState


def assemble(
    spec: EnvSpec,
    start: Callable,
    advance: Callable,
    observe: Callable,
    render: Callable | None = None,
) -> Env:
    """An environment of plain JAX functions.

    Args:
        spec: sizes, bounds, clock and factors.
        start: `(key, params) -> physics`, a start state.
        advance: `(key, physics, params, action) -> (physics, reward [], discount [])`;
            the action is already clipped to the bounds of a `Box`.
        observe: `(physics, params) -> obs`.
        render: `(list of EnvState, size) -> frames`, or None.

    Returns:
        The environment. Gradients flow through `step` wherever they flow through
        `advance`; they are zero where an action is outside its bounds.
    """

    def reset_to(physics, params=None):
        params = factors.resolve(spec, params)
        physics = jax.tree.map(jnp.asarray, physics)
        return EnvState(
            physics=physics,
            params=params,
            t=jnp.zeros((), jnp.int32),
            obs=observe(physics, params),
            reward=jnp.zeros(()),
            discount=jnp.ones(()),
            truncated=jnp.zeros((), bool),
            metrics={},
        )

    def reset(key, params=None):
        params = factors.resolve(spec, params)
        return reset_to(start(key, params), params)

    def step(key, state, action):
        if isinstance(spec.action, Box):
            low, high = jnp.asarray(spec.action.low), jnp.asarray(spec.action.high)
            action = jnp.clip(jnp.asarray(action), low, high)
        physics, reward, discount = advance(key, state.physics, state.params, action)
        return state._replace(
            physics=physics,
            t=state.t + 1,
            obs=observe(physics, state.params),
            reward=jnp.asarray(reward, state.reward.dtype),
            discount=jnp.asarray(discount, state.discount.dtype),
            truncated=jnp.zeros((), bool),
        )

    return Env(spec, reset, reset_to, step, render)
