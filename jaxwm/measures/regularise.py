"""Regularisers for any optax loop: spectral entropy every k steps, and weight noise.

Source: DeMoss et al., "The Complexity Dynamics of Grokking", Physica D 482, 2025.
Weight decay is optax's own (`optax.adamw`, `optax.add_decayed_weights`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int, Key

from jaxwm.measures.spectral import spectral_entropy_penalty
from jaxwm.types import Params


def with_spectral_entropy(
    loss: Callable, coefficient: float, *, every: int = 1, method: str = "svd"
) -> Callable:
    """Adds `coefficient` times the mean spectral entropy of the weights to a loss.

    The penalty enters each k-th step with weight k, so its mean is that of a penalty
    at every step, at 1/k of its cost.

    Args:
        loss: `(params, *data) -> scalar`.
        coefficient: weight of the penalty, per nat.
        every: k.
        method: as in `spectral_entropy`.

    Returns:
        `regularised(params, *data, step)` with the same value type. `step` counts
        updates from 0; it must be the same for all seeds under `vmap` (not batched),
        since a batched one would compute the penalty at every step.

    Raises:
        ValueError: if `coefficient` is negative or `every` less than 1.
    """
    _check(coefficient, every)

    def regularised(params: Params, *data, step: int | Int[Array, ""]):
        penalty = jax.lax.cond(
            jnp.asarray(step) % every == 0,
            lambda p: every * coefficient * spectral_entropy_penalty(p, method),
            # Same type as the branch above, also in float64.
            lambda p: jnp.zeros((), jax.eval_shape(spectral_entropy_penalty, p).dtype),
            params,
        )
        return loss(params, *data) + penalty

    return regularised


class SpectralState(NamedTuple):
    """Of `spectral_entropy_decay`."""

    count: Int[Array, ""]
    grads: Params  # of the penalty, kept between two decompositions; () if not kept


def spectral_entropy_decay(
    coefficient: float,
    *,
    every: int = 1,
    method: str = "svd",
    hold: bool = False,
) -> optax.GradientTransformation:
    """Adds the gradient of the spectral-entropy penalty to the updates.

    Works for any model whose optimiser can be handed in. Before an optimiser in a chain
    it is a penalty in the loss:

        optax.chain(spectral_entropy_decay(0.1, every=10), optax.adamw(1e-3))

    Args:
        coefficient: weight of the penalty, per nat.
        every: k, steps between two decompositions.
        method: as in `spectral_entropy`.
        hold: whether the last gradient is added at every step, instead of k times the
            gradient at each k-th step. Optimisers that divide by the size of recent
            gradients see no bursts then; it costs a copy of the weights.

    Returns:
        The transformation; `update` needs `params`. Under `vmap` over seeds the
        decompositions still happen only at each k-th step as long as seeds run in
        step; they differ in nothing else.

    Raises:
        ValueError: if `coefficient` is negative or `every` less than 1; from `update`,
            without `params`.
    """
    _check(coefficient, every)
    gradient = jax.grad(lambda params: spectral_entropy_penalty(params, method))

    def init(params: Params) -> SpectralState:
        kept = jax.tree.map(jnp.zeros_like, params) if hold else ()
        return SpectralState(jnp.zeros((), jnp.int32), kept)

    def update(updates, state: SpectralState, params: Params | None = None):
        if params is None:
            raise ValueError(
                "spectral_entropy_decay needs params: call "
                "`optimiser.update(grads, opt_state, params)`."
            )
        kept = state.grads if hold else jax.tree.map(jnp.zeros_like, params)
        grads = _now_or_keep(gradient)(state.count % every == 0, params, kept)
        scale = coefficient if hold else coefficient * every
        updates = jax.tree.map(lambda u, g: u + scale * g, updates, grads)
        count = optax.safe_increment(state.count)
        return updates, SpectralState(count, grads if hold else ())

    return optax.GradientTransformation(init, update)


def weight_noise(function: Callable, std: float) -> Callable:
    """Evaluates a gradient, or a loss, at randomly moved weights.

    Args:
        function: `(params, *data) -> anything`, e.g. from `jax.value_and_grad`. Of a
            loss made noisy, the gradient is that of the loss at the moved weights.
        std: standard deviation of the Gaussian noise on every weight.

    Returns:
        `noisy(key, params, *data)`: `function` at `params + std * N(0, 1)`. The update
        belongs to `params` itself.

    Raises:
        ValueError: if `std` is negative.
    """
    if std < 0:
        raise ValueError(f"std must be at least 0, got {std}; it is no variance.")

    def noisy(key: Key[Array, ""], params: Params, *data):
        if std == 0:  # draws cost as much as a small network's forward pass
            return function(params, *data)
        noise = optax.tree.random_like(key, params, jax.random.normal)
        moved = jax.tree.map(lambda p, e: p + std * e, params, noise)
        return function(moved, *data)

    return noisy


def _check(coefficient: float, every: int) -> None:
    if coefficient < 0:
        raise ValueError(
            f"coefficient must be at least 0, got {coefficient}; a negative one would "
            "reward high rank."
        )
    if every < 1:
        raise ValueError(f"every must be at least 1 step, got {every}.")


def _now_or_keep(function: Callable) -> Callable:
    """`(now, x, kept) -> function(x) if now else kept`, one branch run, also batched.

    A plain `lax.cond` with a batched predicate runs both branches. Here the predicate
    is first reduced over the batch, so `function` runs only if some member needs it.
    """

    @custom_vmap
    def choose(now, x, kept):
        return jax.lax.cond(now, lambda: function(x), lambda: kept)

    @choose.def_vmap
    def batched(size, is_batched, now, x, kept):
        def spread(tree, flags):
            return jax.tree.map(
                lambda leaf, flag: (
                    leaf if flag else jnp.broadcast_to(leaf, (size, *leaf.shape))
                ),
                tree,
                flags,
            )

        x, kept = spread(x, is_batched[1]), spread(kept, is_batched[2])
        flags = jax.tree.map(lambda _: True, kept)
        if not is_batched[0]:
            return _now_or_keep(jax.vmap(function))(now, x, kept), flags

        def mixed(x):
            def pick(new, old):
                shape = (size,) + (1,) * (new.ndim - 1)
                return jnp.where(now.reshape(shape), new, old)

            return jax.tree.map(pick, jax.vmap(function)(x), kept)

        return _now_or_keep(mixed)(jnp.any(now), x, kept), flags

    return choose
