"""The saddle point against its known numbers, enumeration against counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import perceptron

# Overlaps found by iterating the textbook form of the equations with 120 nodes.
OVERLAPS = {0.5: 0.293, 1.0: 0.561, 1.2: 0.669, 1.3: 0.726, 1.4: 0.790, 1.45: 0.829}


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "q"), OVERLAPS.items())
def test_the_saddle_has_the_known_overlaps(alpha, q):
    found = perceptron.saddle(alpha)
    np.testing.assert_allclose(found.q, q, atol=1e-3)
    np.testing.assert_allclose(found.error_sample, np.arccos(q) / np.pi, atol=1e-3)


def test_without_examples_nothing_is_known():
    found = perceptron.saddle(0.0)
    np.testing.assert_allclose(found.q, 0, atol=1e-6)
    np.testing.assert_allclose(found.error_mean, 0.5, atol=1e-3)


def test_past_the_spinodal_and_on_the_other_branch_the_teacher_is_found():
    assert perceptron.saddle(1.55).q > 0.999
    assert perceptron.saddle(1.3, start=0.999).q > 0.999
    assert perceptron.saddle(1.45).q < 0.9


def test_enumeration_keeps_exactly_the_weights_that_agree(key):
    x_key, w_key = jax.random.split(key)
    x = jax.random.normal(x_key, (6, 5))
    teacher = jax.random.rademacher(w_key, (5,), jnp.float32)
    y = jnp.sign(x @ teacher)
    log_post = perceptron.enumerate_posterior(x, y, noise=1e-6)
    weights = perceptron.binary_weights(jnp.arange(32), 5)
    assert len({tuple(w) for w in np.asarray(weights)}) == 32
    agree = np.all(np.sign(x @ weights.T) == y[:, None], 0)
    np.testing.assert_allclose(np.exp(log_post), agree / agree.sum(), atol=1e-4)
    vote = perceptron.posterior_vote(log_post, x)
    np.testing.assert_array_equal(vote, y)


def test_two_tasks_in_turn_are_both_at_once(key):
    x_key, y_key = jax.random.split(key)
    x = jax.random.normal(x_key, (8, 4))
    y = jax.random.rademacher(y_key, (8,), jnp.float32)
    first = perceptron.enumerate_posterior(x[:3], y[:3])
    turn = perceptron.enumerate_posterior(x[3:], y[3:], first)
    np.testing.assert_allclose(
        np.exp(turn), np.exp(perceptron.enumerate_posterior(x, y)), atol=1e-5
    )


def test_many_blocks_agree_with_one(key):
    x = jax.random.normal(key, (3, 13))  # 2^13 weights are two blocks
    log_post = perceptron.enumerate_posterior(x, jnp.ones(3))
    assert log_post.shape == (2**13,)
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_post)), 1, rtol=1e-4)
    np.testing.assert_array_equal(perceptron.posterior_vote(log_post, x), 1)


def test_teachers_overlap_as_asked(key):
    w = perceptron.teachers(key, 20_000, 3, 0.4)
    np.testing.assert_allclose(w[1:] @ w[0] / 20_000, 0.4, atol=0.02)
    assert set(np.unique(w)) == {-1.0, 1.0}


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"alpha must be at least 0 examples, got -1"):
        perceptron.saddle(-1.0)
    with pytest.raises(ValueError, match=r"start must be in \(0, 1\), got 1"):
        perceptron.saddle(1.0, start=1.0)
    with pytest.raises(ValueError, match="at most 24 inputs, got 25"):
        perceptron.enumerate_posterior(jnp.ones((2, 25)), jnp.ones(2))
    with pytest.raises(ValueError, match="labels"):
        perceptron.enumerate_posterior(jnp.ones((2, 3)), jnp.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"noise must be in \(0, 0.5\), got 0"):
        perceptron.enumerate_posterior(jnp.ones((2, 3)), jnp.ones(2), noise=0.0)
