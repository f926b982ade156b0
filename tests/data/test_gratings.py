"""Gratings: balanced, centred, and told apart by their spectra alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.data.gratings import NUM_CLASSES, gratings


@pytest.mark.slow
def test_classes_are_balanced_and_have_no_mean(key):
    images, labels = gratings(key, 8000, noise=0.0)
    assert images.shape == (8000, 16, 16, 1)
    share = jnp.bincount(labels, length=NUM_CLASSES) / 8000
    np.testing.assert_allclose(share, 1 / NUM_CLASSES, atol=0.02)
    for label in range(NUM_CLASSES):
        mean = jnp.mean(images, 0, where=(labels == label)[:, None, None, None])
        assert jnp.max(jnp.abs(mean)) < 0.07


@pytest.mark.slow
def test_orientation_and_frequency_are_those_of_the_class(key):
    """The strongest Fourier component lies where the class says."""
    images, labels = gratings(key, 400, size=32, noise=0.0)
    spectrum = jnp.abs(jnp.fft.fft2(images[..., 0]))
    spectrum = spectrum.at[:, 0, 0].set(0)
    row, column = np.divmod(np.argmax(spectrum.reshape(400, -1), 1), 32)
    wave = 2 * np.pi * np.stack([np.fft.fftfreq(32)[column], np.fft.fftfreq(32)[row]])
    frequency = np.linalg.norm(wave, axis=0)
    expected = np.array([0.7, 1.2])[np.asarray(labels) // 4]
    assert np.mean(np.abs(frequency - expected) < 0.25) > 0.95
    angle = np.arctan2(wave[1], wave[0]) - np.asarray(labels) % 4 * np.pi / 4
    assert np.mean(np.abs(np.sin(angle)) < 0.35) > 0.95


@pytest.mark.slow
def test_noise_has_its_standard_deviation(key):
    clean, _ = gratings(key, 500, noise=0.0)
    noisy, _ = gratings(jax.random.clone(key), 500, noise=0.5)
    np.testing.assert_allclose(jnp.std(noisy - clean), 0.5, rtol=0.02)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="size at least 8, got 5 and 4"):
        gratings(jax.random.key(0), 5, size=4)
