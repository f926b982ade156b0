"""Layers that answer to hyperparameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.nn import hyper

U = jnp.array([0.7, -1.2])


def with_gates(params):
    """Larger gates than at the start, so that they show."""
    gate = params["params"]["gate"]
    noise = np.random.default_rng(0).normal(size=gate.shape).astype(np.float32)
    return {"params": {**params["params"], "gate": noise}}


def test_the_dense_layer_is_the_papers_formula(key):
    layer, x = hyper.ResponseDense(3), jnp.array([0.5, -1.0, 2.0, 0.1])
    params = with_gates(layer.init(key, x, U))
    p = params["params"]
    kernel_gate, bias_gate = (U @ p["gate"]).reshape(2, 3)
    expected = p["scale"] * (x @ p["kernel"] + p["bias"])
    expected += kernel_gate * (x @ p["response_kernel"])
    expected += bias_gate * p["response_bias"]
    np.testing.assert_allclose(layer.apply(params, x, U), expected, rtol=1e-5)


def test_weights_answer_linearly_and_each_output_has_its_own_gate(key):
    layer, x = hyper.ResponseDense(3, use_bias=False), jnp.ones(4)
    params = with_gates(layer.init(key, x, U))
    change = lambda u: layer.apply(params, x, u) - layer.apply(params, x, 0 * U)
    np.testing.assert_allclose(change(3 * U), 3 * change(U), rtol=1e-4)
    one = {**params["params"], "gate": params["params"]["gate"].copy()}
    one["gate"][:, 1:] = 0
    moved = layer.apply({"params": one}, x, U) - layer.apply({"params": one}, x, 0 * U)
    assert moved[0] != 0
    np.testing.assert_array_equal(moved[1:], 0)


@pytest.mark.slow
def test_a_batch_gives_every_example_its_own_hyperparameters(key):
    layer = hyper.ResponseDense(2)
    x = jax.random.normal(jax.random.key(1), (5, 3))
    u = jax.random.normal(jax.random.key(2), (5, 2))
    params = with_gates(layer.init(key, x[0], u[0]))
    batch = jax.vmap(layer.apply, (None, 0, 0))(params, x, u)
    for i in range(5):
        np.testing.assert_allclose(batch[i], layer.apply(params, x[i], u[i]), rtol=1e-5)


@pytest.mark.slow
def test_a_convolution_of_size_one_is_the_dense_layer_at_every_place(key):
    conv, dense = hyper.ResponseConv(3, (1, 1)), hyper.ResponseDense(3)
    x = jax.random.normal(jax.random.key(1), (4, 5, 2))
    params = with_gates(conv.init(key, x, U))["params"]
    flat = {
        **params,
        "kernel": params["kernel"]["kernel"][0, 0],
        "response_kernel": params["response_kernel"]["kernel"][0, 0],
    }
    place = lambda x: dense.apply({"params": flat}, x, U)
    np.testing.assert_allclose(
        conv.apply({"params": params}, x, U),
        jax.vmap(jax.vmap(place))(x),
        rtol=1e-4,
        atol=1e-5,
    )


def test_dropout_keeps_the_mean_and_follows_a_traced_rate():
    x = jnp.ones(40_000)
    drop = jax.jit(lambda rate: hyper.dropout(jax.random.key(0), x, rate))
    np.testing.assert_array_equal(drop(0.0), x)
    for rate, kept in ((0.3, 0.7), (0.99, 0.05)):  # clipped to 0.95
        y = drop(rate)
        np.testing.assert_allclose(jnp.mean(y != 0), kept, atol=0.01)
        np.testing.assert_allclose(jnp.mean(y), 1, atol=0.1)
    assert jax.grad(lambda rate: drop(rate).sum())(0.3) == 0


def test_hyperparameters_must_be_one_vector(key):
    layer = hyper.ResponseDense(3)
    with pytest.raises(ValueError, match="u must be a vector of at least one"):
        layer.init(key, jnp.ones(4), jnp.zeros(0))
