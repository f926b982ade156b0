"""The transformer is causal, and reading in pieces equals reading at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn
from jaxwm.nn import transformer


@pytest.fixture(scope="module")
def body():
    network = nn.Transformer(num_blocks=2, num_heads=2)
    x = jax.random.normal(jax.random.key(0), (6, 8))
    return network, network.init(jax.random.key(1), x), x


@pytest.fixture(scope="module")
def denoiser():
    network = nn.TransformerDenoiser(embed=16, num_blocks=2, num_heads=2)
    keys = jax.random.split(jax.random.key(0), 3)
    x, action = jax.random.normal(keys[0], (5, 3)), jax.random.normal(keys[1], (5, 2))
    return network, network.init(keys[2], x, action, jnp.ones(())), x, action


def test_later_steps_do_not_reach_earlier_ones(denoiser):
    network, params, x, action = denoiser

    def predict(x, action):
        return network.apply(params, x, action, jnp.array(2.0))

    base = predict(x, action)
    moved = predict(x.at[3].add(1.0), action)
    np.testing.assert_array_equal(moved[:3], base[:3])
    assert np.all(np.any(moved[3:] != base[3:], -1))
    moved = predict(x, action.at[2].add(1.0))
    np.testing.assert_array_equal(moved[:2], base[:2])
    assert np.all(np.any(moved[2:] != base[2:], -1))


def test_the_level_reaches_every_step(denoiser):
    network, params, x, action = denoiser
    low, high = (network.apply(params, x, action, jnp.array(t)) for t in (1.0, 9.0))
    assert np.all(np.any(low != high, -1))


def test_a_cache_gives_what_the_whole_sequence_gives(body):
    network, params, x = body
    whole, _, _ = network.apply(params, x)
    cache, pieces = nn.empty_cache(8, 2, 8, 2), []
    for piece in (x[:3], x[3:4], x[4:]):
        out, cache, _ = network.apply(params, piece, cache)
        pieces.append(out)
    np.testing.assert_allclose(jnp.concatenate(pieces), whole, atol=1e-5)
    assert cache[0].length == 6


@pytest.mark.parametrize(("size", "width"), [(5, 3), (70, 3), (5, 70)])
def test_a_token_alone_attends_as_it_does_beside_another(size, width, key):
    """Short axes are summed in another way than long ones."""
    query, keys, values = jax.random.normal(key, (3, size, 2, width))
    mask = jnp.stack([jnp.arange(size) < 3, jnp.zeros(size, bool)])
    both, both_weights = transformer.softmax_attention(query[:2], keys, values, mask)
    for i in range(2):  # an empty mask attends to everything equally
        one = slice(i, i + 1)
        alone, weights = transformer.softmax_attention(
            query[one], keys, values, mask[one]
        )
        np.testing.assert_allclose(alone, both[one], atol=1e-5)
        np.testing.assert_allclose(weights, both_weights[:, one], atol=1e-6)


def test_attention_is_returned_causal_and_sums_to_one(body):
    network, params, x = body
    _, _, attention = network.apply(params, x)
    assert len(attention) == 2
    for weights in attention:  # [N, T, T]
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
        np.testing.assert_array_equal(np.triu(weights, 1), 0.0)


def test_masked_tokens_are_not_attended_to(body):
    network, params, x = body
    mask = jnp.ones((6, 6), bool).at[:, 1].set(False)
    _, _, attention = network.apply(params, x, None, mask)
    np.testing.assert_array_equal(attention[0][:, 2:, 1], 0.0)


def test_attention_can_be_replaced(body):
    _, params, x = body
    first = lambda query, key, value, mask: (jnp.zeros_like(query) + value[0], None)
    out, _, _ = nn.Transformer(2, 2, attend=first).apply(params, x)
    assert out.shape == x.shape
    assert np.all(np.isfinite(out))


def test_heads_that_do_not_divide_the_embedding_are_refused(key):
    with pytest.raises(ValueError, match="num_heads must divide"):
        nn.Transformer(1, num_heads=3).init(key, jnp.zeros((2, 8)))


@pytest.mark.slow
def test_without_a_level_it_is_a_next_step_regressor(key):
    network = nn.TransformerDenoiser(16, 1, 2, max_length=9)
    params = network.init(key, jnp.zeros((4, 3)), jnp.zeros((4, 1)))
    assert "time" not in params["params"]
    assert params["params"]["position"].shape == (9, 16)
    out = network.apply(params, jnp.zeros((7, 3)), jnp.zeros((7, 1)))
    assert out.shape == (7, 3)
