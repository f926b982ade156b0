"""World models that imagine a whole trajectory at once, from their first observation.

Shapes: T rows of one piece, H imagined steps asked for, O observation, A action.
Everything is in raw units; functions take ONE trajectory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.core import tree
from jaxwm.types import ModelSpec, ModelState, PyTree, Rollout, WorldModel


def whole_trajectory(
    spec: ModelSpec,
    imagine: Callable,
    *,
    init: Callable,
    loss: Callable,
    fit: Callable,
    adapt: Callable,
    tune: Callable = lambda state, rollouts: state,
) -> WorldModel:
    """A world model from a function that imagines T = `spec.horizon` steps at once.

    Its memory is the last observation, which is also its feature and what it decodes
    to. Fewer steps than T are cut from one piece; more are chained: each further piece
    starts at the last observation of the one before, whose last row is dropped in
    favour of the new piece's first, so that n pieces give n (T - 1) + 1 steps. Rows
    behind a termination are made up, as `discount` says.

    Args:
        spec: sizes and abilities; `horizon` is T, at least 2.
        imagine: `(key, state, obs, actor) -> Rollout` of T steps; actions given are
            `[T, A]`. Leaves of `info` have a leading axis T, or are boolean scalars:
            of a chain, all pieces must be true.
        init: `(key) -> ModelState`.
        loss: `(key, state, window) -> (scalar, (buffers, metrics))`.
        fit: `(key, state, windows [B, T, ...]) -> (state, metrics)`.
        adapt: `(state, transitions [B, ...]) -> state`.
        tune: `(state, rollouts [B, H, ...]) -> state`.

    Returns:
        The model; `info["chained"]` says whether a rollout is made of several pieces.

    Raises:
        ValueError: if T < 2; from `imagine`, for a horizon that is not a positive
            Python int or actions of another length.
    """
    size = spec.horizon
    if size < 2:
        raise ValueError(
            f"horizon must be at least 2 steps, got {size}; "
            "one-step models live in jaxwm.dynamics."
        )

    def imagine_any(
        key: Key[Array, ""], state: ModelState, memory: PyTree, actor, horizon: int
    ) -> Rollout:
        _check(actor, horizon)
        num_pieces = max(1, -(-(horizon - 1) // (size - 1)))
        actions = None if callable(actor) else _pieces(actor, num_pieces, size)

        def piece(obs, row):
            i, given = row
            rollout = imagine(
                jax.random.fold_in(key, i),
                state,
                obs,
                actor if given is None else given,
            )
            return jax.tree.map(lambda x: x[-1], rollout.obs), rollout

        _, pieces = jax.lax.scan(piece, memory, (jnp.arange(num_pieces), actions))
        rollout = jax.tree.map(lambda x: _join(x, horizon), pieces)
        info = {**rollout.info, "chained": jnp.array(num_pieces > 1)}
        return rollout._replace(info=info)

    def initial(state: ModelState, context: PyTree) -> PyTree:
        del state, context  # nothing is remembered but the observation
        blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), spec.obs)
        return tree.usual_floats(blank)

    def observe(key, state, memory, obs, prev_action, is_first) -> PyTree:
        del key, state, memory, prev_action, is_first  # Markov
        return tree.usual_floats(obs)

    def feature(state: ModelState, memory: PyTree) -> Float[Array, " F"]:
        del state  # raw units: no statistics are needed
        leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(memory)]
        return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)

    return WorldModel(
        spec=spec._replace(abilities=spec.abilities | {"policy", "actions", "decode"}),
        init=init,
        loss=loss,
        fit=fit,
        adapt=adapt,
        initial=initial,
        observe=observe,
        feature=feature,
        decode=lambda state, memory: memory,
        imagine=imagine_any,
        tune=tune,
    )


def _check(actor, horizon: int) -> None:
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ValueError(
            f"horizon must be a positive Python int, got {horizon!r}; it fixes shapes, "
            "so it cannot be traced."
        )
    if not callable(actor) and actor.shape[0] != horizon:
        raise ValueError(
            f"actor must be a policy or {horizon} actions (the horizon), got "
            f"{actor.shape[0]}; cut or extend the actions."
        )


def _pieces(actions: Float[Array, "H A"], num: int, size: int) -> Float[Array, "n T A"]:
    """Actions of every piece; the last action fills what is asked for beyond them."""
    index = jnp.arange(num)[:, None] * (size - 1) + jnp.arange(size)
    return actions[jnp.minimum(index, actions.shape[0] - 1)]


def _join(x: Array, horizon: int) -> Array:
    """Rows `[H, ...]` of pieces `[n, T, ...]`; of scalars `[n]`, whether all hold."""
    if x.ndim == 1:
        return jnp.all(x)
    head = x[:, :-1].reshape(-1, *x.shape[2:])
    return jnp.concatenate([head, x[-1, -1:]])[:horizon]
