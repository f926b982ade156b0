"""World models from a function that predicts one step: a rollout is a scan of it.

Shapes: T rows of a window, H imagined steps, A action, F feature. Everything is in raw
units; functions take ONE trajectory.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.core import tree
from jaxwm.types import ModelSpec, ModelState, PyTree, Rollout, WorldModel


class Step(NamedTuple):
    """What one predicted step returns."""

    memory: PyTree  # after the step
    reward: Float[Array, ""]  # of (obs before the step, action)
    discount: Float[Array, ""]  # probability that the episode goes on
    info: dict  # arrays per step, e.g. "disagreement"


def from_step(
    spec: ModelSpec,
    step: Callable,
    *,
    init: Callable,
    loss: Callable,
    fit: Callable,
    adapt: Callable | None = None,
    initial: Callable | None = None,
    observe: Callable | None = None,
    feature: Callable | None = None,
    decode: Callable | None = None,
) -> WorldModel:
    """A world model from the function that predicts one step.

    Without a memory of its own the model is Markov: its memory is the last
    observation, which is also what it decodes to, and its feature is that observation
    flattened, in raw units. A model with a memory gives `initial`, `observe` and
    `feature` together, and `decode` if it can.

    Args:
        spec: sizes and abilities; "policy" and "actions" are added, and "decode" where
            there is a decoder.
        step: `(key, state, memory, action) -> Step`, in raw units. Called once per
            imagined step with a key of its own; it must not change the memory's
            shapes and dtypes.
        init: `(key) -> ModelState`.
        loss: `(key, state, window) -> (scalar, (buffers, metrics))`.
        fit: `(key, state, windows [B, T, ...]) -> (state, metrics)`.
        adapt: `(state, transitions [B, ...]) -> state`; None: nothing to adapt.
        initial: `(state, context) -> memory`.
        observe: `(key, state, memory, obs, prev_action, is_first) -> memory`.
        feature: `(state, memory) -> [F]`.
        decode: `(state, memory) -> obs`.

    Returns:
        The model. Row k of a rollout holds the observation before step k, the action
        taken there and that step's reward and discount, so H rows cost H steps.
        `info` holds what `step` returned, with an axis H in front, and the flags
        `finite` (features, actions and rewards) and `chained` (more than one step).

    Raises:
        ValueError: if a memory is given in part; from `imagine`, for a horizon that is
            not a positive Python int or actions of another length.
    """
    own_memory = (initial, observe, feature)
    if all(part is None for part in own_memory):
        initial, observe = _forget_everything(spec), _remember_last
        feature, decode = _flatten, decode or _identity
    if initial is None or observe is None or feature is None:
        names = ("initial", "observe", "feature")
        missing = [n for n, part in zip(names, own_memory, strict=True) if part is None]
        raise ValueError(
            f"a model with its own memory needs initial, observe and feature, "
            f"{spec.name} lacks {', '.join(missing)}; give all three or none (Markov)."
        )
    given = {"policy", "actions", "decode"} if decode else {"policy", "actions"}

    def imagine(
        key: Key[Array, ""], state: ModelState, memory: PyTree, actor, horizon: int
    ) -> Rollout:
        actions = _clamped_actions(actor, horizon)

        def predict(memory, row):
            i, action = row
            act_key, step_key = jax.random.split(jax.random.fold_in(key, i))
            read = feature(state, memory)
            obs = decode(state, memory) if decode else None
            if actions is None:
                action = actor(read).sample(act_key)
            after, reward, discount, info = step(step_key, state, memory, action)
            return after, Rollout(obs, read, action, reward, discount, info)

        _, rollout = jax.lax.scan(predict, memory, (jnp.arange(horizon), actions))
        numbers = (rollout.feature, rollout.action, rollout.reward)
        info = {
            **rollout.info,
            "finite": tree.all_finite(numbers),
            "chained": jnp.array(horizon > spec.horizon),
        }
        return rollout._replace(info=info)

    return WorldModel(
        spec=spec._replace(abilities=spec.abilities | given),
        init=init,
        loss=loss,
        fit=fit,
        adapt=adapt or (lambda state, transitions: state),
        initial=initial,
        observe=observe,
        feature=feature,
        decode=decode,
        imagine=imagine,
    )


def _clamped_actions(actor, horizon: int) -> Array | None:
    """The actions to take, or None where the actor is a policy."""
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ValueError(
            f"horizon must be a positive Python int, got {horizon!r}; it fixes shapes, "
            "so it cannot be traced."
        )
    if callable(actor):
        return None
    actions = jnp.asarray(actor)
    if actions.shape[0] != horizon:
        raise ValueError(
            f"actor must be a policy or {horizon} actions (the horizon), got "
            f"{actions.shape[0]}; cut or extend the actions."
        )
    return actions


def _forget_everything(spec: ModelSpec) -> Callable:
    """Memory before the first observation: zeros, never read."""

    def initial(state, context=None):
        del state, context  # a Markov model carries over nothing
        blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), spec.obs)
        return tree.usual_floats(blank)

    return initial


def _remember_last(key, state, memory, obs, prev_action, is_first):
    del key, state, memory, prev_action, is_first  # the observation says it all
    return tree.usual_floats(obs)


def _flatten(state, memory):
    del state  # raw units: no statistics needed
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(memory)]
    return jnp.concatenate(leaves) if len(leaves) > 1 else leaves[0]


def _identity(state, memory):
    del state  # the memory is the observation
    return memory
