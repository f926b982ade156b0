"""Probes on representations whose accuracy is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import probes

PROBES = [probes.linear_probe, probes.knn_probe]


def split(features, labels):
    return features[:200], labels[:200], features[200:], labels[200:]


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_separated_clusters_are_told_apart_and_noise_is_not(key, probe):
    label_key, x_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (600,), 0, 3)
    noise = jax.random.normal(x_key, (600, 4))
    apart = 30 * jax.nn.one_hot(labels, 4) + noise
    assert probe(*split(apart, labels), 3) == 1
    assert abs(probe(*split(noise, labels), 3) - 1 / 3) < 0.12


@pytest.mark.slow
def test_a_ring_is_seen_by_neighbours_and_not_by_a_line(key):
    angle_key, label_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, (600,), maxval=2 * jnp.pi)
    labels = jax.random.bernoulli(label_key, 0.5, (600,)).astype(int)
    radius = 1.0 + labels
    ring = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], 1)
    assert probes.knn_probe(*split(ring, labels), 2, k=5) > 0.95
    assert probes.linear_probe(*split(ring, labels), 2) < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_scale_and_offset_of_a_feature_do_not_matter(key, probe):
    labels = jnp.arange(600) % 2
    x = jax.random.normal(key, (600, 3)) + labels[:, None]
    same = probe(*split(x, labels), 2)
    moved = probe(*split(x * jnp.array([1.0, 1e3, 1e-2]) + 5, labels), 2)
    np.testing.assert_allclose(same, moved, atol=0.02)


def test_wrong_arguments_are_refused():
    x, y = jnp.ones((4, 2)), jnp.zeros(4, int)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        probes.linear_probe(x, y, x, y, 1)
    with pytest.raises(ValueError, match=r"k must be in 1 ... 4"):
        probes.knn_probe(x, y, x, y, 2, k=5)
