"""Motors that act late: a factor of variation for any engine.

Shapes: A action, D longest delay in control steps.
"""

import jax.numpy as jnp

from jaxwm.envs.factors import resolve
from jaxwm.types import Box, Env, EnvState, Factor, PyTree


def delayed(env: Env, max_delay: int) -> Env:
    """An environment whose motors act late: factor `delay`, in control steps.

    The action applied at step t is the one given at step t - delay, the zero action
    (clipped to its bounds) before the first has arrived. The actions under way are part
    of `physics`, `{"body": physics of env, "queue": [D, A]}`, newest first; the
    observation does not show them, so the task is only partly observed.

    Args:
        env: any environment with continuous actions.
        max_delay: D, the longest delay that may be drawn or set, at least 1 step.

    Raises:
        ValueError: for discrete actions, `max_delay` below 1, or an `env` that is
            delayed already.
    """
    bounds = env.spec.action
    if not isinstance(bounds, Box):
        raise ValueError(
            f"delayed needs continuous actions, {env.spec.name} has {bounds}."
        )
    if max_delay < 1:
        raise ValueError(
            f"max_delay must be at least 1 step, got {max_delay}; "
            "use the environment itself where nothing is delayed."
        )
    if any(f.name == "delay" for f in env.spec.factors):
        raise ValueError(f"{env.spec.name} has a factor delay already.")
    row = Factor(
        "delay", 0.0, 0.0, float(max_delay), "steps", "steps until an action takes hold"
    )
    spec = env.spec._replace(factors=(*env.spec.factors, row))

    def outer(state: EnvState, queue, delay) -> EnvState:
        return state._replace(
            physics={"body": state.physics, "queue": queue},
            params={**state.params, "delay": delay},
        )

    def inner(state: EnvState) -> EnvState:
        return state._replace(
            physics=state.physics["body"], params=_without_delay(state.params)
        )

    def reset(key, params=None):
        params = resolve(spec, params)
        queue = jnp.zeros((max_delay, bounds.size))
        state = env.reset(key, _without_delay(params))
        return outer(state, queue, params["delay"])

    def reset_to(physics, params=None):
        params = resolve(spec, params)
        state = env.reset_to(physics["body"], _without_delay(params))
        return outer(state, jnp.asarray(physics["queue"]), params["delay"])

    def step(key, state, action):
        queue, delay = state.physics["queue"], state.params["delay"]
        line = jnp.concatenate([jnp.asarray(action, queue.dtype)[None], queue])
        applied = line[jnp.round(delay).astype(jnp.int32)]
        return outer(env.step(key, inner(state), applied), line[:-1], delay)

    render = env.render
    if render is not None:
        draw = render
        render = lambda states, size: draw([inner(s) for s in states], size)
    return Env(spec, reset, reset_to, step, render)


def _without_delay(params: PyTree) -> PyTree:
    return {name: value for name, value in params.items() if name != "delay"}
