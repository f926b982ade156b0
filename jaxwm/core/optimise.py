"""Gradient steps: clipping belongs to the optimiser, status to the metrics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxwm.core import stats, tree
from jaxwm.types import Metrics, ModelState, Params, PyTree


def init_state(
    optimiser: optax.GradientTransformation, params: Params, buffers: PyTree = ()
) -> ModelState:
    """A model's state before the first update."""
    return tree.strong(ModelState(params, buffers, optimiser.init(params)))


def gradient_step(
    loss: Callable,
    optimiser: optax.GradientTransformation,
    state: ModelState,
    *data,
    has_aux: bool = False,
) -> tuple[ModelState, Metrics]:
    """One optimiser step on `loss(params, *data)`.

    Args:
        loss: returns a scalar, or `(scalar, (buffers, metrics))` with `has_aux`.
        optimiser: an optax transformation; put clipping in its chain.
        state: updated in params and opt_state, and in buffers with `has_aux`.
        *data: passed on to `loss`.
        has_aux: whether `loss` returns buffers and metrics as well.

    Returns:
        The new state, and metrics `loss`, `grad_norm` and `finite` beside the loss's
        own. Nothing is clamped: a non-finite gradient shows in `finite`.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=has_aux)
    if has_aux:
        (value, (buffers, metrics)), grads = value_and_grad(state.params, *data)
    else:
        value, grads = value_and_grad(state.params, *data)
        buffers, metrics = state.buffers, {}
    norm = optax.tree.norm(grads)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    metrics = {
        **metrics,
        "loss": value,
        "grad_norm": norm,
        "finite": finite.astype(jnp.float32),
    }
    return ModelState(params, buffers, opt_state), metrics


def batched(loss: Callable) -> Callable:
    """Turns `loss(params, example)` into the mean over a batch of examples."""

    def mean_loss(params, *batch):
        losses = jax.vmap(loss, (None, *[0] * len(batch)))(params, *batch)
        return jnp.mean(losses)

    return mean_loss


def fit(
    loss: Callable,
    optimiser: optax.GradientTransformation,
    *,
    ema: float | None = None,
) -> Callable:
    """Makes a world model's `fit` from its one-window loss.

    Args:
        loss: `(key, state, window) -> (scalar, (buffers, metrics))`.
        optimiser: moves `state.params`.
        ema: decay of `buffers["ema"]`, a copy of the params; None keeps no copy. Where
            the buffers count `updates` (int32), the n-th decay is at most
            (1 + n) / (10 + n), so that young averages forget their random start.

    Returns:
        `fit(key, state, windows [B, T, ...]) -> (state, metrics)`: one update on the
        batch mean. Buffers that a loss returns are averaged over the batch.
    """

    def update(key: Key[Array, ""], state: ModelState, windows: PyTree):
        batch = jax.tree.leaves(windows)[0].shape[0]

        def mean_loss(params):
            current = state._replace(params=params)
            keys = jax.random.split(key, batch)
            values, (buffers, metrics) = jax.vmap(loss, (0, None, 0))(
                keys, current, windows
            )
            buffers = jax.tree.map(
                lambda new: jnp.mean(new, 0).astype(new.dtype), buffers
            )
            return jnp.mean(values), (buffers, stats.mean_metrics(metrics))

        new_state, metrics = gradient_step(mean_loss, optimiser, state, has_aux=True)
        if ema is not None:
            buffers, decay = dict(new_state.buffers), ema
            if "updates" in buffers:
                buffers["updates"] += 1
                warm_up = (1 + buffers["updates"]) / (10 + buffers["updates"])
                decay = jnp.minimum(ema, warm_up)
            buffers["ema"] = tree.ema(buffers["ema"], new_state.params, decay)
            new_state = new_state._replace(buffers=buffers)
        return new_state, metrics

    return update


def repeat(
    step: Callable,
    state: PyTree,
    key: Key[Array, ""],
    data: PyTree,
    num_steps: int,
) -> tuple[PyTree, Metrics]:
    """Scans `step(key, state, data) -> (state, metrics)`; metrics gain an axis T.

    Args:
        step: one update.
        state: first state.
        key: folded with the step's index.
        data: the same for every step.
        num_steps: T, a Python int.
    """

    def body(carry, i):
        return step(jax.random.fold_in(key, i), carry, data)

    return jax.lax.scan(body, state, jnp.arange(num_steps))
