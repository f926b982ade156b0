"""Policy guidance: rules for actions that live in the condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import diffusion
from jaxwm.core import dists
from jaxwm.diffusion import Step

STEPS = diffusion.ancestral(diffusion.stride(diffusion.cosine_schedule(32), 6))
STATES = jnp.array([[0.5], [-0.2], [0.1]])  # the denoiser always predicts these
SHIFT, SCALE = jnp.array([0.3]), jnp.array([2.0])
STD = 0.2


def denoise(x, level, cond):
    return STATES


def policy(x0):
    return dists.Normal(jnp.tanh(x0), jnp.full_like(x0, STD))


def sample(key, rule, **options):
    term = diffusion.follow_policy(policy, rule, shift=SHIFT, scale=SCALE, **options)
    start = jax.random.normal(jax.random.key(5), (3, 1))
    result = diffusion.sample(key, denoise, STEPS, (3, 1), cond=start, terms=(term,))
    return SHIFT + SCALE * result.cond


def test_reparameterised_actions_are_a_sample_at_the_states_returned(key):
    eps = jnp.array([[1.0], [-2.0], [0.5]])
    action = sample(key, diffusion.resample(lambda d: d.mean + d.stddev * eps))
    np.testing.assert_allclose(action, jnp.tanh(STATES) + STD * eps, rtol=1e-5)


def test_fresh_samples_are_on_policy(key):
    rule = diffusion.fresh_sample(
        lambda key, d: d.mean + d.stddev * jax.random.normal(key, d.mean.shape)
    )
    actions = jax.vmap(lambda key: sample(key, rule))(jax.random.split(key, 2000))
    np.testing.assert_allclose(actions.mean(0), jnp.tanh(STATES), atol=0.02)
    np.testing.assert_allclose(actions.std(0), STD, rtol=0.1)


def step_at(left):
    zero = jnp.zeros(())
    return Step(0, left, None, None, jnp.float32(0.1), None, STATES, zero)


def test_the_score_rule_clips_then_climbs_then_adds_noise():
    eps = jnp.ones((1, 3, 1))
    rule = diffusion.climb_score(0.01, clip_std=3.0, noise=0.5, recorded=eps)
    dist, action = policy(STATES), jnp.array([[9.0], [-0.2], [0.1]])
    moved = rule(None, action, dist, step_at(2), SCALE)
    clipped = jnp.clip(action, dist.mean - 3 * STD, dist.mean + 3 * STD)
    expected = clipped + 0.01 * (dist.mean - clipped) / STD**2 + 0.5 * 0.1 * SCALE
    np.testing.assert_allclose(moved, expected, rtol=1e-5)
    last = rule(None, action, dist, step_at(0), SCALE)
    np.testing.assert_allclose(last, clipped, rtol=1e-6)


def test_a_rate_of_the_variance_reaches_the_mean():
    rule = diffusion.climb_score(STD**2, noise=0.0)
    key, dist = jax.random.key(0), policy(STATES)
    moved = rule(key, jnp.ones((3, 1)), dist, step_at(3), SCALE)
    np.testing.assert_allclose(moved, dist.mean, atol=1e-6)


def test_the_policy_may_be_asked_at_the_mean_of_the_next_sample(key):
    seen = diffusion.follow_policy(
        lambda x: dists.Normal(x, jnp.full_like(x, STD)),
        diffusion.resample(lambda d: d.mean),
        states=lambda step: step.mean,
    )
    result = diffusion.sample(
        key, denoise, STEPS, (3, 1), cond=jnp.zeros((3, 1)), terms=(seen,), record=True
    )
    np.testing.assert_allclose(result.cond, result.info["mean"][-1], rtol=1e-6)


def test_states_can_be_pulled_towards_the_actions(key):
    """d/dx of -(a - x)^2 / 2 moves the estimate by rate (a - x), but for the last."""
    hold = diffusion.follow_policy(policy, diffusion.resample(lambda d: d.mean * 0 + 1))
    pull = diffusion.pull_states(lambda x, a: -0.5 * jnp.sum((a - x) ** 2), 0.25)
    result = diffusion.sample(
        key,
        denoise,
        STEPS,
        (3, 1),
        cond=jnp.zeros((3, 1)),
        terms=(hold, pull),
        record=True,
    )
    expected = STATES + 0.25 * (1 - STATES)
    np.testing.assert_allclose(result.info["x0"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(result.info["x0"][-1], STATES, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_all_scales_may_be_traced(rate, key):
    run = jax.jit(
        lambda rate, std: sample(key, diffusion.climb_score(rate, clip_std=std))
    )
    assert np.all(np.isfinite(run(jnp.float32(rate), jnp.float32(3.0))))
