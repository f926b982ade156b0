"""Guidance terms against closed forms on Gaussian data."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import diffusion
from jaxwm.diffusion import Level, Noise

STEPS = diffusion.ancestral(diffusion.stride(diffusion.cosine_schedule(32), 6))
LEVEL = Level(0.0, jnp.float32(0.6), jnp.float32(0.8))


def sample(key, *terms, denoise=gaussian.denoise, shape=(4,), **options):
    return diffusion.sample(key, denoise, STEPS, shape, terms=terms, **options)


def test_known_entries_stay_known(key):
    known = lambda x: x.at[1].set(3.0)
    result = sample(key, diffusion.inpaint(known), record=True)
    assert result.x[1] == 3.0
    np.testing.assert_array_equal(result.info["x"][:, 1], 3.0)
    np.testing.assert_array_equal(result.info["x0"][:, 1], 3.0)
    assert not np.any(result.info["x"][:, 0] == 3.0)


def test_clipping_bounds_the_estimate(key):
    result = sample(key, diffusion.clip(0.6, 0.8), record=True)
    assert np.all((result.info["x0"] >= 0.6) & (result.info["x0"] <= 0.8))


def test_changes_are_limited_in_the_last_calls_only(key):
    result = sample(key, diffusion.clip_change(0.01, last=2), record=True)
    change = np.abs(result.info["mean"] - result.info["x"])
    assert np.all(change[-2:] <= 0.01 + 1e-6)
    assert np.any(change[:-2] > 0.01)


def test_an_exact_classifier_gives_the_exact_posterior():
    """y = x0 + N(0, r^2) observed: log p(y | x_t) is Gaussian, and so is the answer."""
    y, r = 2.0, 0.4
    x = jnp.array([0.1, 1.3])

    def log_prob(x, level):
        mean = gaussian.denoise(x, level)
        variance = gaussian.error_variance(level) + r**2
        return -0.5 * jnp.sum((y - mean) ** 2) / variance

    guided = diffusion.classifier(log_prob, 1.0).wrap(gaussian.denoise)
    mean, variance = gaussian.denoise(x, LEVEL), gaussian.error_variance(LEVEL)
    exact = mean + variance / (variance + r**2) * (y - mean)
    np.testing.assert_allclose(guided(x, LEVEL, None), exact, rtol=1e-5)


def test_energy_through_the_network_is_the_chain_rule():
    x = jnp.array([0.1, 1.3])
    cost = lambda x0: 0.5 * jnp.sum((x0 - 2.0) ** 2)
    guided = diffusion.energy_through_network(cost, 0.5).wrap(gaussian.denoise)
    x0 = gaussian.denoise(x, LEVEL)
    slope = jax.grad(lambda x: gaussian.denoise(x, LEVEL)[0])(x)[0]
    exact = x0 - 0.5 * 0.8**2 / 0.6 * slope * (x0 - 2.0)
    np.testing.assert_allclose(guided(x, LEVEL, None), exact, rtol=1e-5)


def test_energy_moves_the_estimate_down_the_cost(key):
    cost = lambda x0: 0.5 * jnp.sum((x0 - 2.0) ** 2)
    # A full step of size 1 lands on the minimum, whatever the denoiser says.
    np.testing.assert_allclose(sample(key, diffusion.energy(cost, 1.0)).x, 2.0)


def test_scales_may_depend_on_the_step_and_be_traced(key):
    cost = lambda x0: 0.5 * jnp.sum((x0 - 2.0) ** 2)

    @jax.jit
    def end(key, scale):
        late = lambda step: jnp.where(step.is_last, scale, 0.0)
        return sample(key, diffusion.energy(cost, late)).x

    free = sample(jax.random.clone(key)).x
    for scale in (0.0, 0.25):
        np.testing.assert_allclose(
            end(jax.random.clone(key), jnp.float32(scale)),
            free + scale * (2.0 - free),
            rtol=1e-4,
        )
    assert end._cache_size() == 1


def test_energy_on_the_mean_steps_by_the_variance(key):
    noise = Noise(jnp.ones(4), jnp.zeros((STEPS.num, 4)))
    cost = lambda x: jnp.sum(x)
    plain = sample(key, noise=noise, record=True).info
    term = diffusion.energy_on_mean(cost, 3.0)
    moved = sample(jax.random.clone(key), term, noise=noise, record=True).info
    np.testing.assert_allclose(
        plain["mean"][0] - moved["mean"][0], 3.0 * STEPS.spread[0] ** 2, rtol=1e-4
    )


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.0, 5.0), (2.0, 9.0)])
def test_classifier_free_guidance_extrapolates_from_no_condition(scale, expected):
    denoise = lambda x, level, cond: jnp.zeros_like(x) + cond["goal"]
    term = diffusion.classifier_free(scale, {"goal": jnp.array(1.0)})
    out = term.wrap(denoise)(jnp.zeros(2), LEVEL, {"goal": jnp.array(5.0)})
    np.testing.assert_allclose(out, expected)


def test_wrappers_are_applied_in_order(key):
    """The first term is the innermost: its denoiser is what the second one wraps."""
    plus = diffusion.Term(wrap=lambda d: lambda x, level, cond: d(x, level, cond) + 1)
    times = diffusion.Term(wrap=lambda d: lambda x, level, cond: 3 * d(x, level, cond))
    zero = lambda x, level, cond: jnp.zeros_like(x)
    np.testing.assert_allclose(sample(key, plus, times, denoise=zero).x, 3.0)
