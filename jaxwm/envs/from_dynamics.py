"""An environment around a simulator of `jaxwm.physics`: it adds the task.

Gradients flow through `step` wherever they flow through the simulator's.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxwm.envs import tasks
from jaxwm.physics import Dynamics
from jaxwm.types import Box, Env, EnvSpec, Factor


def from_dynamics(
    dynamics: Dynamics,
    *,
    name: str,
    time_limit: int,
    start: Callable,
    reward: Callable,
    observe: Callable | None = None,
    terminated: Callable | None = None,
    factors: Sequence[Factor] = (),
    doc: str = "",
) -> Env:
    """Puts a task on a simulator; actions lie in [-1, 1].

    Args:
        dynamics: the simulator; its parameters are at their defaults, but for factors.
        name: of the task.
        time_limit: steps until an episode is cut.
        start: `(key, params) -> state`.
        reward: `(state before, action, state after) -> scalar`.
        observe: `(params, state) -> obs [O]`; None is the simulator's own.
        terminated: `(state after) -> bool`; None never terminates.
        factors: parameters of the simulator that may differ between environments.
        doc: one line.

    Raises:
        ValueError: for factors that are no parameters of the simulator.
    """
    unknown = [f.name for f in factors if f.name not in dynamics.params]
    if unknown:
        raise ValueError(
            f"factors of {name} must be parameters of its simulator, "
            f"{sorted(dynamics.params)}, got {unknown}."
        )
    observe = observe or dynamics.observe

    def full(params):
        return {**dynamics.params, **params}

    def advance(key, state, params, action):
        del key  # deterministic
        after = dynamics.step(full(params), state, action)
        ended = False if terminated is None else terminated(after)
        return after, reward(state, action, after), jnp.where(ended, 0.0, 1.0)

    def seen(state, params):
        return observe(full(params), state)

    defaults = {f.name: jnp.float32(f.default) for f in factors}
    example = jax.eval_shape(
        lambda key: seen(start(key, full(defaults)), defaults), jax.random.key(0)
    )
    size = dynamics.action_size
    spec = EnvSpec(
        name=name,
        obs=example,
        action=Box((-1.0,) * size, (1.0,) * size),
        control_dt=dynamics.dt,
        time_limit=time_limit,
        factors=tuple(factors),
        doc=doc,
    )
    return tasks.assemble(
        spec, lambda key, params: start(key, full(params)), advance, seen
    )
