"""Codes, their divergences, the transition and the decoder of latent world models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn


@pytest.fixture
def codes():
    """Two distributions over codes of 3 groups with 5 classes."""
    logits = 3 * jax.random.normal(jax.random.key(2), (2, 3, 5))
    return nn.mixed_log_probs(logits, 0.05)


def test_every_class_keeps_its_share_of_the_uniform(codes):
    p = np.exp(codes)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    assert p.min() >= 0.05 / 5 - 1e-6
    sure = nn.mixed_log_probs(jnp.array([[1e4, 0.0]]), 0.02)
    np.testing.assert_allclose(np.exp(sure), [[0.99, 0.01]], rtol=1e-5)


def test_divergence_is_that_of_independent_groups(codes):
    p, q = np.exp(codes)
    by_hand = sum((p[g] * np.log(p[g] / q[g])).sum() for g in range(3))
    np.testing.assert_allclose(nn.code_kl(*codes), by_hand, rtol=1e-5)
    np.testing.assert_allclose(nn.code_kl(codes, codes), 0, atol=1e-6)


def test_a_drawn_code_is_one_hot_and_as_frequent_as_its_probability(codes, key):
    keys = jax.random.split(key, 4000)
    drawn = np.asarray(jax.vmap(lambda key: nn.draw_code(key, codes[0]))(keys))
    np.testing.assert_allclose(np.sort(drawn, -1)[..., :-1], 0, atol=1e-6)
    np.testing.assert_allclose(drawn.max(-1), 1, atol=1e-6)
    # Four standard errors of a frequency from 4000 draws are 0.032.
    np.testing.assert_allclose(drawn.mean(0), np.exp(codes[0]), atol=0.032)


def test_the_gradient_of_a_drawn_code_is_that_of_its_probabilities(key):
    logits = jnp.array([[0.3, -1.0, 0.7]])
    values = jnp.array([[1.0, 5.0, -2.0]])

    def through_code(logits):
        return jnp.sum(values * nn.draw_code(key, nn.mixed_log_probs(logits, 0.01)))

    def through_mean(logits):
        return jnp.sum(values * jnp.exp(nn.mixed_log_probs(logits, 0.01)))

    found, wanted = jax.grad(through_code)(logits), jax.grad(through_mean)(logits)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_the_balanced_divergence_pulls_the_prior_four_times_as_hard(codes):
    posterior, prior = codes

    def balanced(free_nats, balance=0.8):
        return jax.grad(
            lambda q, p: nn.balanced_kl(q, p, balance=balance, free_nats=free_nats),
            (0, 1),
        )(posterior, prior)

    alone = jax.grad(nn.code_kl, (0, 1))(posterior, prior)
    for found, whole, share in zip(balanced(0.0), alone, (0.2, 0.8), strict=True):
        np.testing.assert_allclose(found, share * whole, rtol=1e-4)
    enough = float(nn.code_kl(posterior, prior)) + 1
    for found in balanced(enough):
        np.testing.assert_array_equal(found, 0)
    value = nn.balanced_kl(posterior, prior, free_nats=enough)
    np.testing.assert_allclose(value, enough, rtol=1e-6)


def test_the_transition_reads_h_code_and_action(key):
    cell = nn.LatentTransition(deter=6, groups=2, classes=3, hidden=5)
    latent = nn.Latent(jnp.full(6, 0.2), jnp.eye(3)[jnp.array([0, 2])])
    action = jnp.array([0.5])
    params = cell.init(key, latent, action)
    step = jax.jit(cell.apply)
    h, log_p = step(params, latent, action)
    assert h.shape == (6,) and log_p.shape == (2, 3)
    assert latent.feature.shape == (12,)
    np.testing.assert_array_equal(latent.feature[6:], [1, 0, 0, 0, 0, 1])
    for other in (
        (latent._replace(h=-latent.h), action),
        (latent._replace(z=latent.z[::-1]), action),
        (latent, -action),
    ):
        assert not np.allclose(step(params, *other)[0], h)


def test_the_decoder_doubles_the_sides_and_puts_channels_side_by_side(key):
    decoder = nn.ConvDecoder((8, 12, 3), (4, 5))
    params = decoder.init(key, jnp.zeros(7))
    one, two = jax.random.normal(jax.random.key(1), (2, 7))
    image = jax.jit(decoder.apply)(params, jnp.stack([one, two]))
    assert image.shape == (2, 8, 12, 3)
    np.testing.assert_allclose(decoder.apply(params, one), image[0], atol=1e-5)
    from jaxwm.nn.latent import _doubled

    flat = jnp.arange(1 * 2 * 8.0).reshape(1, 2, 8)  # 1 x 2 pixels, 4 x 2 channels
    np.testing.assert_array_equal(
        _doubled(flat)[..., 0], [[0, 2, 8, 10], [4, 6, 12, 14]]
    )


def test_sizes_that_do_not_fit_are_refused(key):
    with pytest.raises(ValueError, match="multiples of 8 for 3 layers, got 12 x 16"):
        nn.ConvDecoder((12, 16, 3), (4, 4, 4)).init(key, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"uniform must be in \[0, 1\), got 1"):
        nn.mixed_log_probs(jnp.zeros((1, 2)), 1.0)


def test_an_encoder_that_does_not_pool_knows_where_things_are(key):
    encoder = nn.ConvEncoder((4,), (2,), pooled=False)
    image = jnp.zeros((8, 8, 1)).at[3, 3].set(1.0)
    params = encoder.init(key, image)
    seen = encoder.apply(params, image)
    assert seen.shape == (4 * 4 * 4,)
    moved = encoder.apply(params, jnp.roll(image, 2, 0))
    assert not np.allclose(seen, moved)
    pooled = nn.ConvEncoder((4,), (2,))
    np.testing.assert_allclose(
        pooled.apply(params, image), seen.reshape(16, 4).mean(0), rtol=1e-5
    )


def test_a_standardising_encoder_sees_no_brightness_contrast_or_tint(key):
    encoder = nn.ConvEncoder((4,), (2,), pooled=False, standardised=True)
    image_key, init_key = jax.random.split(key)
    image = 5 * jax.random.normal(image_key, (8, 8, 3))
    params = encoder.init(init_key, image)
    seen, tint = encoder.apply(params, image), jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(encoder.apply(params, 3 * image - tint), seen, atol=1e-3)
    assert np.isfinite(encoder.apply(params, jnp.ones((8, 8, 3)))).all()
    plain = nn.ConvEncoder((4,), (2,), pooled=False)
    assert np.abs(plain.apply(params, 3 * image - tint) - seen).max() > 1
