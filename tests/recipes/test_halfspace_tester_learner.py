"""The certificate says what its inequality says, accepts the good, rejects the bad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.recipes import halfspace_tester_learner as recipe
from jaxwm.recipes.halfspace_tester_learner import (
    TINY,
    Config,
    Sample,
    certify_halfspace,
    error,
    halfspace_tester_learner,
    learn_halfspace,
    massart_data,
    moment_test,
    ramp_gradient,
)

ETA, BANDS = 0.1, (0.003, 0.006, 0.012, 0.05)
TRUTH = jnp.array([0.6, 0.8])
GAUSSIAN = lambda key, num, size: jax.random.normal(key, (num, size))


@functools.cache
def sample(num=600_000, seed=0, eta=ETA, squeezed=False):
    def marginal(key, num, size):
        x = jax.random.normal(key, (num, size))
        across = x @ jnp.array([-0.8, 0.6])
        near = jnp.abs(x @ TRUTH) < 0.3
        flat = (0.98 * across * near)[:, None] * jnp.array([-0.8, 0.6])
        return x - flat if squeezed else x

    draw = lambda key: massart_data(key, num, 2, TRUTH, lambda x: eta, marginal)
    return jax.jit(draw)(jax.random.key(seed))


@functools.cache
def certifier(eta=ETA):
    return jax.jit(lambda s, w: certify_halfspace(s, w, eta, BANDS))


def turned(angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return jnp.array([[cos, -sin], [sin, cos]], jnp.float32) @ TRUTH


def test_labels_are_flipped_as_often_as_told():
    np.testing.assert_allclose(error(sample(), TRUTH), ETA, atol=0.002)


def test_the_truth_is_accepted_on_gaussian_inputs_with_the_moments_of_a_gaussian():
    found = certifier()(sample(), TRUTH)
    assert found.accept
    assert 0 < found.excess <= 0.1
    for moment, value in ((found.lmin, 1.0), (found.lmax, 1.0), (found.m4, 3.0)):
        np.testing.assert_allclose(moment, value, rtol=0.45)
    np.testing.assert_allclose(
        found.band_mass, found.band * 2 / np.sqrt(2 * np.pi) / 2, rtol=0.1
    )
    spread = found.lmin**1.5 / found.m4**0.5
    below = (1 - 2 * ETA) * spread - found.gradient * found.band / found.band_mass
    np.testing.assert_allclose(found.tan_theta, found.band / below, rtol=1e-4)
    np.testing.assert_allclose(found.strips.sum(), 1, rtol=1e-4)


@pytest.mark.parametrize("angle", [0.01, 0.03, 0.3, 1.0])
def test_a_wrong_halfspace_is_rejected_or_its_excess_is_covered(angle):
    found = certifier()(sample(), turned(angle))
    true_excess = (1 - 2 * ETA) * angle / np.pi
    assert found.excess >= true_excess
    if angle >= 0.3:
        assert not found.accept


def test_the_opposite_of_the_truth_is_rejected():
    assert not certifier()(sample(), -TRUTH).accept


def test_inputs_that_vanish_beside_the_boundary_are_rejected():
    found = certifier()(sample(squeezed=True), TRUTH)
    assert not found.accept
    assert found.lmin < 0.01


def test_more_samples_do_not_worsen_the_bound():
    few, many = (certifier()(sample(num), TRUTH).excess for num in (300_000, 600_000))
    assert many <= 1.1 * few


def test_too_few_samples_are_rejected():
    found = certifier()(sample(2000), TRUTH)
    assert not found.accept
    assert np.isinf(found.excess)


def test_the_gradient_is_that_of_the_ramp_loss_across_w():
    data = sample(4000)
    w = turned(0.2)

    def loss(w, width):  # flat, then falling with slope 1 / s, then flat
        margin = data.y * (data.x @ w)
        return jnp.mean(jnp.clip(0.5 - margin / width, 0.0, 1.0))

    g = ramp_gradient(data, w, 0.5)
    full = jax.grad(loss)(w, 0.5)
    np.testing.assert_allclose(g, full - (full @ w) * w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(g @ w, 0, atol=1e-6)


@pytest.mark.slow
def test_the_learner_finds_the_truth():
    config = Config(num=200_000, size=2, eta=ETA, restarts=2, steps=200, batch=5000)
    learn = jax.jit(lambda key, data: learn_halfspace(key, data, config))
    for w in learn(jax.random.key(0), sample(200_000)):
        assert jnp.arccos(jnp.clip(w @ TRUTH, -1, 1)) < 0.02


def test_sums_per_segment_do_not_depend_on_chunks(monkeypatch):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(103, 2)), jnp.float32)
    data = Sample(x, jnp.ones(103))
    segment = lambda part: (part.x[:, 0] > 0).astype(jnp.int32)
    monkeypatch.setattr(recipe, "_CHUNK", 10)
    sums = recipe._segment_sums(data, segment, lambda part: part.x, 2)
    for i in (0, 1):
        np.testing.assert_allclose(
            sums[i], x[np.asarray(x[:, 0] > 0) == i].sum(0), rtol=1e-4
        )


def test_the_label_free_tester_accepts_gaussians_and_nothing_else():
    x = GAUSSIAN(jax.random.key(0), 400_000, 2)
    is_gaussian, miss = moment_test(x)
    assert is_gaussian
    assert miss < 0.15
    cube = recipe._cube(jax.random.key(1), 400_000, 2)
    is_gaussian, miss = moment_test(cube)
    assert not is_gaussian
    np.testing.assert_allclose(miss, 1.2, atol=0.02)  # E x^4 is 9/5, not 3


@pytest.mark.slow
def test_the_experiment_measures_what_its_claim_reads(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert all(np.isfinite(value) for value in metrics.values())
    assert not any(metrics[f"accept/{family}"] for family in recipe._FAMILIES)


def test_input_that_would_void_the_certificate_is_refused():
    learn, certify = sample(2000), sample(2000, seed=1)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="must be another sample than learn"):
        halfspace_tester_learner(key, learn, learn, TINY)
    thin = Sample(certify.x[:, :1], certify.y)
    with pytest.raises(ValueError, match="same number of dimensions, at least 2"):
        halfspace_tester_learner(key, learn, thin, TINY)
    wrong = Sample(learn.x, (learn.y + 1) / 2)
    with pytest.raises(ValueError, match="labels must be -1 or 1"):
        halfspace_tester_learner(key, wrong, certify, TINY)
    with pytest.raises(ValueError, match="labels must be -1 or 1"):
        certify_halfspace(wrong, TRUTH, ETA, BANDS)
    for eta in (0.5, -0.1):
        with pytest.raises(ValueError, match=f"eta must be in .* got {eta}"):
            certify_halfspace(certify, TRUTH, eta, BANDS)
    with pytest.raises(ValueError, match="eta must be in"):
        Config(eta=0.6)
    with pytest.raises(ValueError, match="size must be at least 2"):
        Config(size=1)
    with pytest.raises(ValueError, match="bands must increase"):
        Config(bands=(0.1, 0.01))
