"""Permuted clusters: one problem in several orders of its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.data.permuted_clusters import permuted_clusters


@pytest.mark.slow
def test_shapes_and_labels(key):
    tasks = permuted_clusters(
        key, 3, 40, num_test=10, num_inputs=7, num_classes=4, clusters_per_class=2
    )
    assert tasks.x.shape == (3, 40, 7)
    assert tasks.x_test.shape == (3, 10, 7)
    assert set(np.unique(tasks.y)) <= set(range(4))
    assert tasks.y_test.shape == (3, 10)


@pytest.mark.slow
def test_tasks_are_the_same_problem_in_another_order(key):
    """Class means of two tasks have the same entries, in different places."""
    tasks = permuted_clusters(
        key,
        2,
        20_000,
        num_inputs=6,
        num_classes=2,
        clusters_per_class=1,
        separation=3.0,
    )
    means = jnp.stack(
        [jnp.mean(tasks.x[t], 0, where=(tasks.y[t] == 0)[:, None]) for t in (0, 1)]
    )
    np.testing.assert_allclose(*jnp.sort(means, 1), atol=0.1)
    assert jnp.max(jnp.abs(means[0] - means[1])) > 0.5


@pytest.mark.slow
def test_spread_around_the_centres_is_one(key):
    tasks = permuted_clusters(key, 1, 5000, separation=0.0)
    np.testing.assert_allclose(jnp.std(tasks.x), 1, rtol=0.01)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 5), {}, "num_tasks must be at least 1, got 0"),
        ((1, 0), {}, "num_train must be at least 1, got 0"),
        ((1, 5), {"num_classes": 1}, "num_classes must be at least 2, got 1"),
    ],
)
def test_wrong_sizes_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        permuted_clusters(jax.random.key(0), *arguments, **options)
