"""A gradient step whose length is chosen by how far it moves the policy.

Source: Rigter et al., "World Models via Policy-Guided Trajectory Diffusion", TMLR 2024,
and its reference code. Shapes: any; log-probabilities are of one batch of actions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxwm.core import optimise
from jaxwm.types import Metrics, ModelState, Params, PyTree

Number = float | int | Float[Array, ""]


class TrustRegion(NamedTuple):
    """The learning rate that searches start from, itself adapted by gradient."""

    log_lr: Float[Array, ""]
    opt_state: PyTree  # of the learning rate's own optimiser


class _Search(NamedTuple):
    scale: Float[Array, ""]  # of the proposed step
    change: Float[Array, ""]  # mean |change of log-probability| at this scale
    low: Float[Array, ""]  # largest scale known to move too little
    high: Float[Array, ""]  # smallest scale known to move too far
    tries: Array


def trust_region(lr: float | int) -> TrustRegion:
    """The adapted learning rate before the first step; lives in an actor's buffers.

    Args:
        lr: positive; usually the largest one allowed.
    """
    if lr <= 0:
        raise ValueError(f"lr must be positive, got {lr}.")
    log_lr = jnp.log(jnp.float32(lr))
    return TrustRegion(log_lr, _rate_optimiser(1.0).init(log_lr))


def trust_region_step(
    loss: Callable,
    log_prob: Callable,
    optimiser: optax.GradientTransformation,
    state: ModelState,
    *data,
    max_lr: Number,
    target: Number,
    tolerance: Number = 0.2,
    max_tries: int = 50,
    rate: Number = 3e-4,
) -> tuple[ModelState, Metrics]:
    """One optimiser step, scaled until the policy moves by about `target`.

        u(s) = mean |log π(a; θ + s Δ) - log π(a; θ)|,  u(s) in target (1 ± tolerance)

    Δ is the optimiser's step, computed once. The search for s starts from the adapted
    learning rate, brackets the band and stops at `s = 1`, the largest step allowed.
    Afterwards `log lr` takes an AdamW step on `-log lr (target - u_first)`, where
    u_first is the change at the first try, and is kept at most `log max_lr`.

    Args:
        loss: `loss(params, *data) -> scalar`.
        log_prob: `params -> log-probabilities` of the batch's actions.
        optimiser: with learning rate `max_lr` inside.
        state: of the actor; its buffers are a `TrustRegion`.
        *data: passed on to `loss`.
        max_lr: the optimiser's learning rate, the largest one used.
        target: wanted mean absolute change of the log-probability, nats.
        tolerance: half width of the accepted band, relative.
        max_tries: most evaluations of `log_prob` after the first step.
        rate: step size of `log lr`.

    Returns:
        The new state and metrics: those of `gradient_step`, `log_prob_change`,
        `step_scale` (0: no scale was acceptable and the parameters stay), `tries`,
        `lr`. The accepted change never exceeds `target (1 + tolerance)`.

    Raises:
        ValueError: if `target` or `max_lr` is not positive, `tolerance` not in (0, 1),
            or `state.buffers` not a `TrustRegion`.

    Departs: the reference repeats the whole update at 0.8 or 1 / 0.8 times the
    learning rate; optimiser moments and the spread of the policy are not restored
    between its tries. Here the moments advance once, all parameters are scaled
    together, and the next scale is predicted from the change seen.
    """
    _check(state, target, tolerance, max_lr)
    start = state.params
    before = jax.lax.stop_gradient(log_prob(start))
    full, metrics = optimise.gradient_step(loss, optimiser, state, *data)
    step = jax.tree.map(jnp.subtract, full.params, start)

    def moved(scale) -> Params:
        return jax.tree.map(lambda p, d: p + scale * d, start, step)

    def change(scale):
        return jnp.mean(jnp.abs(log_prob(moved(scale)) - before))

    log_lr = state.buffers.log_lr
    first_scale = jnp.minimum(jnp.exp(log_lr) / max_lr, 1.0)
    first_change = change(first_scale)
    found = _search(change, first_scale, first_change, target, tolerance, max_tries)
    # A change that is not finite fails the comparison, and nothing is accepted.
    accepted = found.change <= target * (1 + tolerance)
    scale = jnp.where(accepted, found.scale, 0.0)
    params = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old), moved(found.scale), start
    )

    surprise = jnp.where(jnp.isfinite(first_change), target - first_change, -target)
    updates, rate_state = _rate_optimiser(rate).update(
        -surprise, state.buffers.opt_state, log_lr
    )
    log_lr = jnp.minimum(log_lr + updates, jnp.log(max_lr))
    buffers = TrustRegion(log_lr, rate_state)
    metrics = {
        **metrics,
        "log_prob_change": jnp.where(accepted, found.change, 0.0),
        "step_scale": scale,
        "tries": found.tries.astype(jnp.float32),
        "lr": jnp.exp(log_lr),
    }
    return ModelState(params, buffers, full.opt_state), metrics


def _search(change, scale, first_change, target, tolerance, max_tries) -> _Search:
    """Finds a scale in (0, 1] whose change lies in the band, or the nearest tried."""
    low, high = target * (1 - tolerance), target * (1 + tolerance)

    def unfinished(s: _Search):
        too_far = ~(s.change <= high)  # true for NaN
        too_near = (s.change < low) & (s.scale < 1)
        return (too_far | too_near) & (s.tries < max_tries)

    def try_next(s: _Search) -> _Search:
        near = s.change < target
        below = jnp.where(near, s.scale, s.low)
        above = jnp.where(near, s.high, s.scale)
        # The change is about linear in the scale; where that guess leaves the bracket
        # (or is NaN), the geometric middle always halves it.
        guess = s.scale * target / s.change
        middle = jnp.where(below > 0, jnp.sqrt(below * above), 0.1 * above)
        inside = (guess > below) & (guess < above)
        scale = jnp.minimum(jnp.where(inside, guess, middle), 1.0)
        return _Search(scale, change(scale), below, above, s.tries + 1)

    bounds = jnp.zeros_like(scale), jnp.full_like(scale, jnp.inf)
    begin = _Search(scale, first_change, *bounds, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, try_next, begin)


def _rate_optimiser(rate):
    return optax.adamw(rate, weight_decay=0.01)


def _check(state, target, tolerance, max_lr):
    if not isinstance(state.buffers, TrustRegion):
        raise ValueError(
            "state.buffers must be a rl.TrustRegion, got "
            f"{type(state.buffers).__name__}; make it by rl.trust_region(max_lr)."
        )
    for name, value in (("target", target), ("max_lr", max_lr)):
        if isinstance(value, int | float) and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if isinstance(tolerance, int | float) and not 0 < tolerance < 1:
        raise ValueError(
            f"tolerance must be in (0, 1), got {tolerance}; 0.2 accepts changes "
            "within 20 % of the target."
        )
