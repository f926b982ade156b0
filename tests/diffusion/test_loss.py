"""The loss and the draws of training levels."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import diffusion
from jaxwm.diffusion import Level

LEVEL = Level(0.0, jnp.float32(0.6), jnp.float32(0.8))
fixed = lambda key: LEVEL


def mean_loss(key, denoise, levels, num=20_000, **options):
    def one(key):
        data_key, key = jax.random.split(key)
        x0 = gaussian.MEAN + gaussian.STD * jax.random.normal(data_key, (2,))
        return diffusion.loss(key, denoise, levels, x0, **options)[0]

    return jax.jit(jax.vmap(one))(jax.random.split(key, num)).mean()


def test_the_exact_denoiser_has_the_posterior_variance_as_loss(key):
    value = mean_loss(key, gaussian.denoise, fixed)
    np.testing.assert_allclose(value, gaussian.error_variance(LEVEL), rtol=0.05)


@pytest.mark.parametrize(
    ("scalings", "target"),
    [
        (diffusion.predict_noise, lambda x0, eps: eps),
        (diffusion.predict_velocity, lambda x0, eps: 0.6 * eps - 0.8 * x0),
    ],
)
def test_by_default_it_is_the_error_of_the_networks_output(scalings, target, key):
    """A network that outputs 0 has the mean square of its target as loss."""
    denoise = diffusion.denoiser(lambda z, level, cond: 0.0 * z, scalings)
    value = mean_loss(key, denoise, fixed, scalings=scalings)
    eps, data = jax.random.normal(jax.random.key(3), (2, 20_000))
    x0 = gaussian.MEAN + gaussian.STD * data
    np.testing.assert_allclose(value, jnp.mean(target(x0, eps) ** 2), rtol=0.05)


def test_masked_entries_do_not_count(key):
    denoise = lambda x, level, cond: jnp.array([1.0, 100.0])
    value, error = diffusion.loss(
        key, denoise, fixed, jnp.zeros(2), mask=jnp.array([1.0, 0.0])
    )
    np.testing.assert_allclose(value, 1.0)
    np.testing.assert_allclose(error, [1.0, 1e4])
    empty = lambda x0: diffusion.loss(
        jax.random.key(0), denoise, fixed, x0, mask=jnp.zeros(2)
    )[0]
    value, grad = jax.value_and_grad(empty)(jnp.zeros(2))
    assert value == 0
    assert np.all(np.isfinite(grad))


def test_a_weight_replaces_the_default(key):
    denoise = lambda x, level, cond: jnp.ones(2)
    value, _ = diffusion.loss(
        key, denoise, fixed, jnp.zeros(2), weight=lambda level: 1 / level.noise**2
    )
    np.testing.assert_allclose(value, 1 / 0.64, rtol=1e-6)


def test_the_condition_is_dropped_as_often_as_asked(key):
    denoise = lambda x, level, cond: jnp.zeros(2) + cond["goal"]
    null = {"goal": jnp.array(1.0)}
    one = lambda key: diffusion.loss(
        key,
        denoise,
        fixed,
        jnp.zeros(2),
        {"goal": jnp.array(0.0)},
        null=null,
        dropout=0.3,
    )[0]
    dropped = jax.vmap(one)(jax.random.split(key, 4000))
    np.testing.assert_allclose(dropped.mean(), 0.3, atol=0.03)


def test_offset_noise_is_shared_by_all_entries(key):
    """Of x0 = 0 the noisy sample is the noise itself."""

    def noise(key):
        seen = []

        def spy(x, level, cond):
            seen.append(x)
            return x

        diffusion.loss(key, spy, fixed, jnp.zeros(2), offset=2.0)
        return seen[0]

    x = jax.vmap(noise)(jax.random.split(key, 20_000))
    np.testing.assert_allclose(x.var(0), 0.8**2 + 2.0**2, rtol=0.05)
    np.testing.assert_allclose(jnp.cov(x.T)[0, 1], 2.0**2, rtol=0.06)


def test_uniform_levels_are_those_of_the_schedule(key):
    schedule = diffusion.cosine_schedule(4)
    draw = jax.vmap(diffusion.uniform(schedule))(jax.random.split(key, 4000))
    count = np.bincount(np.asarray(draw.time, int), minlength=4)
    np.testing.assert_allclose(count, 1000, atol=130)
    index = draw.time.astype(int)
    np.testing.assert_allclose(draw.noise, schedule.noise[index], rtol=1e-6)


def test_lognormal_levels_have_their_moments_and_bounds(key):
    draw = jax.vmap(diffusion.lognormal(-0.4, 1.2))(jax.random.split(key, 4000))
    log = jnp.log(draw.noise)
    np.testing.assert_allclose([log.mean(), log.std()], [-0.4, 1.2], atol=0.07)
    bounded = diffusion.lognormal(-0.4, 1.2, low=0.5, high=1.0)
    noise = jax.vmap(bounded)(jax.random.split(jax.random.clone(key), 200)).noise
    assert noise.min() >= 0.5
    assert noise.max() <= 1.0


def test_log_logistic_levels_have_their_median_and_bounds(key):
    draw = diffusion.log_logistic(0.5, 0.5, low=0.01, high=25.0)
    noise = jax.vmap(draw)(jax.random.split(key, 4000)).noise
    np.testing.assert_allclose(jnp.median(noise), 0.5, rtol=0.07)
    # Quartiles of a logistic lie at +- ln 3 scales.
    ratio = jnp.quantile(noise, 0.75) / jnp.quantile(noise, 0.25)
    np.testing.assert_allclose(jnp.log(ratio), 2 * 0.5 * np.log(3), rtol=0.08)
    assert noise.min() >= 0.0099
    assert noise.max() <= 25.001


def test_dropping_the_condition_needs_one_that_stands_for_none(key):
    denoise = lambda x, level, cond: x
    with pytest.raises(ValueError, match="needs null"):
        diffusion.loss(key, denoise, fixed, jnp.zeros(2), jnp.zeros(1), dropout=0.1)
    with pytest.raises(ValueError, match="dropout must be in"):
        diffusion.loss(
            jax.random.clone(key),
            denoise,
            fixed,
            jnp.zeros(2),
            jnp.zeros(1),
            null=jnp.zeros(1),
            dropout=1.0,
        )
