"""Policy guidance: the condition holds actions, which follow a policy.

The condition is in the model's units: `action = shift + scale * cond`. A rule moves raw
actions, `(key, action, dist, step, scale) -> action`, where `dist` is the policy at the
states that are now predicted.
Shapes: H steps, A action size; the condition and actions are `[H, A]`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.core import dists
from jaxwm.diffusion.sample import Step, Term
from jaxwm.types import PyTree

Rule = Callable[..., Array]


def follow_policy(
    policy: Callable[[PyTree], PyTree],
    rule: Rule,
    *,
    shift: float | Float[Array, " A"] = 0.0,
    scale: float | Float[Array, " A"] = 1.0,
    states: Callable[[Step], PyTree] = lambda step: step.x0,
) -> Term:
    """Moves the actions by `rule` after every call.

    Args:
        policy: sample `x` in the model's units -> distribution of raw actions, with
            `mean` and `stddev` `[H, A]` and whatever else the rule reads.
        rule: `resample`, `climb_score`, `fresh_sample` or one's own.
        shift: raw action of condition 0.
        scale: raw action per unit of condition.
        states: which sample the policy is asked at: `step.x0` or `step.mean`.

    Source: Rigter et al., TMLR 2024, algorithm 1.
    """

    def on_cond(key, cond, step):
        action = rule(key, shift + scale * cond, policy(states(step)), step, scale)
        return (action - shift) / scale

    return Term(on_cond=on_cond)


def resample(draw: Callable[[PyTree], Array]) -> Rule:
    """Sets the actions to a reparameterised sample with noise fixed for the whole run.

    Then the trajectory is a function of start and noise, and few calls are enough. The
    last call resets the actions too, so they belong to the states returned.

    Args:
        draw: `(dist) -> action`, e.g. `dist.mean + dist.stddev * eps`.
    """
    return lambda key, action, dist, step, scale: draw(dist)


def fresh_sample(draw: Callable[[Key[Array, ""], PyTree], Array]) -> Rule:
    """Sets the actions to a new sample `draw(key, dist)` at every call."""
    return lambda key, action, dist, step, scale: draw(key, dist)


def climb_score(
    rate: float | Float[Array, ""],
    *,
    clip_std: float | Float[Array, ""] = jnp.inf,
    noise: float | Float[Array, ""] = 1.0,
    recorded: Float[Array, "N H A"] | None = None,
) -> Rule:
    """Moves the actions along the policy's score, the reference's rule.

        a <- clip(a, mean +- clip_std stddev)
        a <- a + rate grad_a log pi(a | s) + noise spread scale eps

    The last call only clips. Stable for `rate < 2 stddev^2`. Tune the rate at the
    number of calls in use: it does not carry over to another number.

    Args:
        rate: guidance scale, in squared action units.
        clip_std: largest distance from the mean, in standard deviations.
        noise: factor on the noise, which has the posterior's standard deviation of the
            level in the model's units.
        recorded: draws to use instead of the key's, one row per call.

    Source: Rigter et al., TMLR 2024, reference code.
    """

    def rule(key, action, dist, step, scale):
        reach = clip_std * dist.stddev
        action = jnp.clip(action, dist.mean - reach, dist.mean + reach)
        score = jax.grad(lambda a: jnp.sum(dist.log_prob(a)))(action)
        if recorded is None:
            eps = dists.standard_normal(key, action.shape, action.dtype)
        else:
            eps = recorded[step.row]
        moved = action + rate * score + noise * step.spread * scale * eps
        return jnp.where(step.is_last, action, moved)

    return rule


def pull_states(
    log_prob: Callable[[PyTree, Array], Array], rate: float | Array
) -> Term:
    """Also moves the estimated states up the policy's log-probability.

    `x0 + rate * grad_x0 log_prob(x0, cond)` with the actions just moved, not in the
    last call; put it behind `follow_policy` and before `inpaint` is applied again.

    Source: Rigter et al., TMLR 2024, reference code (`update_states`, an ablation).
    """

    def after_cond(x0, cond, step):
        grads = jax.grad(log_prob)(x0, cond)
        now = jnp.where(step.is_last, 0.0, rate)
        return jax.tree.map(lambda x, g: x + now * g, x0, grads)

    return Term(after_cond=after_cond)
