"""Field space: divergence, moments and plasticity against their closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.data.permuted_clusters import permuted_clusters
from jaxwm.recipes import statmech_continual_learning as recipe
from jaxwm.recipes.statmech_continual_learning import TINY


def two_fields(key, shape=(5, 3)):
    return ((jax.random.normal(k, shape),) for k in jax.random.split(key))


def test_the_divergence_is_that_of_bernoulli_weights(key):
    fields, prior = two_fields(key)
    p, q = (jax.nn.sigmoid(2 * 0.7 * f[0]) for f in (fields, prior))
    expected = jnp.sum(p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q)))
    np.testing.assert_allclose(recipe.kl(fields, prior, 0.7), expected, rtol=1e-4)
    np.testing.assert_allclose(recipe.kl(fields, fields, 0.7), 0, atol=1e-5)
    assert recipe.kl(fields, prior, 0.7) > 0


@pytest.mark.slow
def test_the_divergences_gradient_is_small_for_a_confident_synapse(key):
    (theta,), (theta0,) = two_fields(key)
    beta = 1.3
    (found,) = jax.grad(recipe.kl)((theta,), (theta0,), beta)
    m = jnp.tanh(beta * theta)
    expected = beta**2 * (1 - m**2) * (theta - theta0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    far = ((jnp.array([[50.0]]),), (jnp.array([[40.0]]),))
    assert jnp.isfinite(recipe.kl(*far, beta))


def test_pre_activations_have_the_moments_of_sampled_networks(key):
    theta_key, sample_key = jax.random.split(key)
    theta = jax.random.normal(theta_key, (30, 2))
    x = jnp.linspace(-1, 2, 30)
    keys = jax.random.split(sample_key, 20_000)
    (w,) = jax.vmap(lambda k: recipe.sample(k, (theta,), 0.8))(keys)
    z = jnp.einsum("i,siu->su", x, w) / np.sqrt(30)
    g, d2 = recipe.binary_dense(theta, x, jnp.zeros(30), 0.8)
    np.testing.assert_allclose(z.mean(0), g, atol=0.02)
    np.testing.assert_allclose(z.var(0), d2, rtol=0.05)
    mean, variance = recipe.sign_moments(g, d2)
    np.testing.assert_allclose(jnp.sign(z).mean(0), mean, atol=0.05)
    np.testing.assert_allclose(variance, 1 - mean**2)


def test_uncertain_inputs_add_their_variance(key):
    theta = jax.random.normal(key, (40, 1))
    mean, variance = jnp.zeros(40), jnp.ones(40)  # inputs are fair coins
    g, d2 = recipe.binary_dense(theta, mean, variance, 1.0)
    np.testing.assert_allclose(g, 0)
    np.testing.assert_allclose(d2, 1, rtol=1e-4)


def test_the_perceptron_loss_is_the_chance_of_a_wrong_label(key):
    theta_key, sample_key, loss_key = jax.random.split(key, 3)
    theta, x = jax.random.normal(theta_key, (50, 1)), jnp.ones(50)
    keys = jax.random.split(sample_key, 20_000)
    (w,) = jax.vmap(lambda k: recipe.sample(k, (theta,), 1.0))(keys)
    right = jnp.mean(jnp.sum(w, (1, 2)) > 0)
    found = recipe.loss(loss_key, (theta,), x, jnp.array(1.0), TINY)
    np.testing.assert_allclose(jnp.exp(-found), right, atol=0.07)


def test_metaplasticity_only_slows_updates_towards_zero():
    u = jnp.array([[2.0, 2.0, -2.0, 0.0]])
    update = jnp.array([[0.5, -0.5, 0.5, -0.5]])
    found = recipe.metaplastic_update(u, update, 1.35)
    slow = 1 - np.tanh(2.7) ** 2
    np.testing.assert_allclose(found, [[0.5, -0.5 * slow, 0.5 * slow, -0.5]], rtol=1e-4)


def test_without_data_to_fit_the_prior_is_kept(key):
    """Labels that carry nothing: the divergence pulls the fields back to the prior."""
    config = dataclasses.replace(TINY, num_steps=300, kl_weight=100.0)
    (start, prior), x = two_fields(key, (6, 1)), jnp.zeros((4, 6))
    fields = jax.jit(recipe.learn_task, static_argnums=5)(
        jax.random.key(1), start, prior, x, jnp.ones(4), config
    )
    np.testing.assert_allclose(fields[0], prior[0], atol=0.1)


def test_fields_stay_where_they_can_still_learn(key):
    config = dataclasses.replace(TINY, learning_rate=10.0, kl_weight=0.0, beta=2.0)
    (start, _), x = (
        two_fields(key, (6, 1)),
        jax.random.normal(jax.random.key(1), (4, 6)),
    )
    fields = recipe.learn_task(jax.random.key(2), start, start, x, jnp.ones(4), config)
    assert jnp.max(jnp.abs(fields[0])) <= 3.0


@pytest.mark.slow
def test_a_sequence_of_tasks_gives_a_square_of_accuracies(key):
    task_key, fit_key = jax.random.split(key)
    tasks = permuted_clusters(
        task_key, 3, 40, num_test=50, num_inputs=12, num_classes=2, separation=2.0
    )
    config = dataclasses.replace(TINY, num_steps=150, batch_size=40)
    fields, accuracy = jax.jit(
        recipe.statmech_continual_learning, static_argnums=(2, 3)
    )(fit_key, tasks, (12, 16, 2), config)
    assert [f.shape for f in fields] == [(12, 16), (16, 2)]
    assert accuracy.shape == (3, 3)
    assert accuracy[0, 0] > 0.8


@pytest.mark.slow
def test_the_experiment_gives_finite_numbers_from_a_tiny_setting(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert {"perceptron/mean", "small/exact_first", "permuted/joint"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta must be positive, got 0"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0, got -1"),
        ({"num_small": 25}, "num_small must be at most 24 synapses, got 25"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
