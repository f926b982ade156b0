"""Networks that grok: sizes, formulas, and who sees whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn

X = jnp.array([3, 5])
TOKENS = jnp.array([3, 7, 5, 8])


def num_params(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_reduced_network_has_its_published_size(key):
    params = nn.GrokMLP(59, 59).init(key, X)
    assert num_params(params) == 27_840 + 128 - 128
    assert params["params"]["embed"].shape == (59, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", lambda z: np.maximum(z, 0)), ("square", np.square)],
)
def test_the_mlp_is_its_formula(activation, function, key):
    network = nn.GrokMLP(7, 7, 4, (6,), activation)
    params = network.init(key, X)
    p = jax.tree.map(np.array, params["params"])
    p["hidden_0"]["bias"] += 0.1
    e = np.concatenate([p["embed"][3], p["embed"][5]])
    h = function(e @ p["hidden_0"]["kernel"] + p["hidden_0"]["bias"])
    found = network.apply({"params": p}, X)
    np.testing.assert_allclose(found, h @ p["logits"]["kernel"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_first_weights_have_unit_gain(key):
    params = nn.GrokMLP(97, 97, 128, (256,)).init(key, X)["params"]
    for W in (
        params["embed"],
        params["hidden_0"]["kernel"],
        params["logits"]["kernel"],
    ):
        np.testing.assert_allclose(W.std() * np.sqrt(W.shape[0]), 1.0, rtol=0.05)


@pytest.mark.slow
def test_the_transformer_sees_every_token(key):
    network = nn.GrokTransformer(9, 9, 8, 2, 2, 16)
    params = network.init(key, TOKENS)
    apply = jax.jit(network.apply)
    logits = apply(params, TOKENS)
    for i in range(4):
        moved = apply(params, TOKENS.at[i].set(1))
        assert np.all(moved != logits)


@pytest.mark.slow
def test_post_norm_blocks_leave_unit_rows(key):
    network = nn.GrokTransformer(9, 8, 8, 2, 1, 16)
    params = network.init(key, TOKENS)["params"]
    params["logits"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    out = network.apply({"params": params}, TOKENS)
    np.testing.assert_allclose(out.mean(), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std(), 1.0, rtol=1e-3)


def test_the_published_size(key):
    """p = 113: one block of width 512 between embedding and logits."""
    shapes = jax.eval_shape(nn.GrokTransformer(115, 115).init, key, TOKENS)["params"]
    assert shapes["up_0"]["kernel"].shape == (128, 512)
    assert shapes["attend_0"]["qkv"]["kernel"].shape == (128, 384)
    assert shapes["logits"]["kernel"].shape == (128, 115)


def test_unknown_activations_are_refused(key):
    with pytest.raises(ValueError, match="activation must be one of relu, square"):
        nn.GrokMLP(7, 7, activation="tanh").init(key, X)
