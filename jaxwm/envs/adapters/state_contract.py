"""What brax and Playground share: one record that `reset` makes and `step` replaces.

Their record has the fields obs, reward, done, metrics, info and one for the physics,
whose name differs. They pass legacy uint32 keys, to `reset` only, so a stochastic
environment keeps its key in `info["rng"]`. Their wrappers own the time limit, may add
entries to `metrics` and `info`, and change these dicts in place.

Shapes: K words of a legacy key, A action.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxwm.types import Box, Env, EnvSpec, EnvState, Metrics, PyTree


class Body(NamedTuple):
    """Our environment inside their record: what their automatic reset brings back."""

    physics: PyTree
    params: PyTree
    t: Array


class Fields(NamedTuple):
    """Their record's values, whatever they call the first."""

    body: Body
    obs: PyTree
    reward: Array
    done: Array  # 1 at true termination, float as theirs
    metrics: Metrics
    info: dict


def reset(env: Env, rng: Array) -> Fields:
    """Their `reset` on our environment.

    Args:
        env: ours, with its default factors.
        rng: a legacy key `[K]` uint32, or a typed key.
    """
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    reset_key, step_key = jax.random.split(rng)
    state = env.reset(reset_key, None)
    return _fields(state, {}, {"rng": jax.random.key_data(step_key)})


def step(env: Env, body: Body, before: Any, action: Array) -> Fields:
    """Their `step` on our environment; their wrappers' entries are passed on.

    Args:
        env: ours.
        body: of the record `before`.
        before: their record; obs, reward, done, metrics and info are read.
        action: `[A]`, within our bounds.
    """
    key, next_key = jax.random.split(jax.random.wrap_key_data(before.info["rng"]))
    state = EnvState(
        physics=body.physics,
        params=body.params,
        t=body.t,
        obs=before.obs,
        reward=before.reward,
        discount=1 - before.done,
        truncated=jnp.zeros((), bool),
        metrics={k: v for k, v in before.metrics.items() if k.startswith("env/")},
    )
    after = env.step(key, state, action)
    info = {**before.info, "rng": jax.random.key_data(next_key)}
    return _fields(after, before.metrics, info)


def bounds(env: Env, library: str) -> Box:
    """The ends that their actions, in [-1, 1], are scaled to.

    Raises:
        ValueError: where our actions are discrete or not bounded.
    """
    action = env.spec.action
    if not isinstance(action, Box) or not np.isfinite([action.low, action.high]).all():
        raise ValueError(
            f"{library} needs continuous actions between finite bounds, "
            f"{env.spec.name} has {action}."
        )
    return action


def scaled(bounds: Box, action: Array) -> Array:
    """From [-1, 1] to the bounds, `low + (action + 1) / 2 (high - low)`."""
    low, high = (jnp.array(end) for end in bounds)
    return low + (action + 1) / 2 * (high - low)


def observation_size(env: Env):
    """O of a flat observation, or shapes by name."""
    if isinstance(env.spec.obs, dict):
        return {name: leaf.shape for name, leaf in env.spec.obs.items()}
    return env.spec.obs.shape[-1]


def to_env(
    theirs: Any,
    *,
    name: str | None,
    time_limit: int,
    action: Box | None,
    control_dt: float | None,
) -> Env:
    """Their environment as ours; `physics` is their whole record.

    The record is what their `step` reads, `info` included, so storing it restores the
    environment. It is copied before every call, because theirs change it in place.

    Args:
        theirs: with `reset(rng)`, `step(record, action)` and `action_size`; not wrapped
            for automatic reset, which belongs to `envs.batch`.
        name: of the task; its class's by default.
        time_limit: steps per episode.
        action: bounds; [-1, 1] in every dimension by default.
        control_dt: seconds per step; `theirs.dt` by default.

    Raises:
        ValueError: for an automatic reset within, bounds of another size, or, while
            tracing, a `step` that changes the structure of the record.
    """
    name = type(theirs).__name__.lower() if name is None else name
    size = theirs.action_size
    box = Box((-1.0,) * size, (1.0,) * size) if action is None else action
    if box.size != size:
        raise ValueError(
            f"action must have {size} dimensions as {name} has, got {box.size}."
        )
    like = jax.eval_shape(theirs.reset, jax.random.key_data(jax.random.key(0)))
    if "first_obs" in like.info:
        raise ValueError(
            f"{name} resets itself, which hides its final observation; hand over the "
            "environment without its automatic reset, envs.batch does that."
        )
    spec = EnvSpec(
        name=name,
        obs=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like.obs),
        action=box,
        control_dt=float(theirs.dt) if control_dt is None else control_dt,
        time_limit=time_limit,
        doc=f"{type(theirs).__name__} of another library.",
    )

    def ours(record, t) -> EnvState:
        _check_structure(name, like, record)
        # Constant dtypes, none of them weak: nothing is traced twice.
        record = jax.tree.map(lambda x, l: jnp.asarray(x, l.dtype), record, like)
        done = jnp.asarray(record.done, jnp.float32)
        late = jnp.asarray(record.info.get("truncation", 0.0), jnp.float32)
        return EnvState(
            physics=record,
            params={},
            t=t,
            obs=record.obs,
            reward=jnp.asarray(record.reward, jnp.float32),
            discount=1 - done * (1 - late),
            truncated=late > 0,
            metrics={
                f"env/{k.removeprefix('env/')}": v for k, v in record.metrics.items()
            },
        )

    def reset_to(physics, params=None):
        del params  # their factors are not known here
        return ours(physics, jnp.zeros((), jnp.int32))

    def reset_theirs(key, params=None):
        return reset_to(theirs.reset(jax.random.key_data(key)))

    def step_theirs(key, state, action):
        del key  # theirs is in `info`
        low, high = jnp.asarray(box.low), jnp.asarray(box.high)
        record = jax.tree.map(lambda x: x, state.physics)  # fresh dicts
        record = theirs.step(record, jnp.clip(jnp.asarray(action), low, high))
        return ours(record, state.t + 1)

    return Env(spec, reset_theirs, reset_to, step_theirs)


def _fields(state: EnvState, metrics: Metrics, info: dict) -> Fields:
    return Fields(
        Body(state.physics, state.params, state.t),
        state.obs,
        state.reward,
        1 - state.discount,
        {**metrics, **state.metrics},
        info,
    )


def _check_structure(name: str, like: PyTree, record: PyTree) -> None:
    before, after = jax.tree.structure(like), jax.tree.structure(record)
    if before != after:
        raise ValueError(
            f"step of {name} changes the structure of its state; every entry of "
            f"metrics and info must be set by reset. {before} became {after}."
        )
