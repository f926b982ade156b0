"""Spectral entropy: closed forms, invariances, gradients where spectra are awkward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm import measures

METHODS = ("svd", "gram", "renyi2")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def with_spectrum(sigma, rows, columns, seed=0):
    """A matrix with these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, rows)))[0][:, : len(sigma)]
    right = np.linalg.qr(rng.normal(size=(columns, columns)))[0][:, : len(sigma)]
    return left @ np.diag(sigma) @ right.T


def numbers(sigma, method):
    """Entropies by hand."""
    sigma = np.asarray(sigma, float)
    if method == "renyi2":
        p = sigma**2 / np.sum(sigma**2)
        return -np.log(np.sum(p**2))
    q = sigma[sigma > 0] / np.sum(sigma)
    return -np.sum(q * np.log(q))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sigma", [[3.0, 2.0, 1.0], [5.0], [1.0, 1.0, 1.0, 1.0]])
def test_entropy_is_that_of_the_singular_values(sigma, method):
    W = jnp.asarray(with_spectrum(sigma, 4, 7), jnp.float32)
    np.testing.assert_allclose(
        measures.spectral_entropy(W, method), numbers(sigma, method), atol=2e-5
    )


def test_the_published_formula_is_met():
    """It adds 1e-10 inside the logarithm instead of leaving zeros out."""
    W = np.random.default_rng(0).normal(size=(20, 30))
    q = np.linalg.svd(W, compute_uv=False)
    q = q / q.sum()
    reference = -np.sum(q * np.log(q + 1e-10))
    np.testing.assert_allclose(
        measures.spectral_entropy(jnp.asarray(W, jnp.float32)), reference, rtol=1e-5
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
def test_scale_and_transposition_change_nothing(seed, scale):
    W = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 5)), jnp.float32)
    for method in METHODS:
        H = measures.spectral_entropy(W, method)
        assert 0 <= H <= np.log(3) + 1e-5
        same = measures.spectral_entropy(scale * W, method)
        np.testing.assert_allclose(same, H, atol=1e-4)
        np.testing.assert_allclose(measures.spectral_entropy(W.T, method), H, atol=1e-4)


def test_effective_rank_counts_equal_singular_values():
    W = jnp.asarray(with_spectrum([2.0] * 5, 8, 6), jnp.float32)
    np.testing.assert_allclose(measures.effective_rank(W), 5.0, rtol=1e-4)
    np.testing.assert_allclose(measures.effective_rank(jnp.zeros((4, 4))), 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_has_no_entropy_and_no_gradient(method):
    value, grad = jax.value_and_grad(measures.spectral_entropy)(
        jnp.zeros((4, 3)), method
    )
    assert value == 0
    np.testing.assert_array_equal(grad, 0.0)


SPECTRA = {
    "distinct": [3.0, 2.0, 1.0],
    "all equal": [1.0, 1.0, 1.0],
    "two equal": [2.0, 2.0, 0.5],
    "one zero": [2.0, 1.0, 0.0],
    "repeated and zero": [1.0, 1.0, 0.0],
    "rank one": [1.0, 0.0, 0.0],
}


@pytest.mark.slow
@pytest.mark.parametrize("sigma", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(sigma, method, x64):
    """Central ones: where a singular value is zero they average the kink's slopes."""
    W = with_spectrum(sigma, 4, 3)
    value = jax.jit(lambda W: measures.spectral_entropy(W, method))
    grad = jax.jit(jax.grad(value))(jnp.asarray(W))
    assert grad.dtype == np.float64
    rng = np.random.default_rng(1)
    # At a kink the difference keeps a term of order h log h.
    h, tolerance = (1e-5, 2e-3) if min(sigma) == 0 else (1e-6, 1e-6)
    for _ in range(4):
        D = rng.normal(size=W.shape)
        difference = (value(W + h * D) - value(W - h * D)) / (2 * h)
        np.testing.assert_allclose(np.sum(grad * D), difference, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_survive_loops_and_branches(method):
    """Where linearisation might make unused derivatives of eigenvectors real."""
    W = jnp.eye(4)[:, :3]

    def total(W):
        def body(total, i):
            return total + jax.lax.cond(
                i % 2 == 0, lambda W: measures.spectral_entropy(W, method), jnp.sum, W
            ), None

        return jax.lax.scan(jax.checkpoint(body), 0.0, jnp.arange(3))[0]

    grad = jax.jit(jax.grad(total))(W)
    np.testing.assert_allclose(grad, 1.0, atol=1e-5)  # H is largest here: no slope


def test_descending_the_penalty_lowers_the_rank():
    W = jax.random.normal(jax.random.key(0), (12, 10))

    @jax.jit
    def descend(W):
        step = lambda W, _: (W - 0.5 * jax.grad(measures.spectral_entropy)(W), None)
        return jax.lax.scan(step, W, length=100)[0]

    assert measures.effective_rank(descend(W)) < 0.7 * measures.effective_rank(W)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_numbers_show(method):
    W = jnp.eye(3).at[1, 2].set(jnp.nan)
    assert np.isnan(measures.spectral_entropy(W, method))


def tree():
    normal = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    return {
        "dense": normal(0, 6, 4),
        "wide": normal(1, 4, 6),
        "conv": normal(2, 3, 2, 5, 4),
        "bias": normal(3, 9),
        "scale": normal(4),
        "count": jnp.arange(6).reshape(2, 3),
    }


@pytest.mark.slow
def test_the_penalty_is_the_mean_over_matrices():
    params = tree()
    found = [
        measures.spectral_entropy(W)
        for W in (params["dense"], params["wide"], params["conv"].reshape(30, 4))
    ]
    np.testing.assert_allclose(
        measures.spectral_entropy_penalty(params), np.mean(found), rtol=1e-5
    )
    np.testing.assert_allclose(
        measures.mean_effective_rank(params), np.mean(np.exp(found)), rtol=1e-5
    )


def test_equal_shapes_are_decomposed_in_one_call():
    jaxpr = str(jax.make_jaxpr(measures.spectral_entropy_penalty)(tree()))
    assert jaxpr.count(" svd[") == 2  # (6, 4) with its transposed, and (30, 4)


def test_stacked_layers_are_matrices_of_their_own():
    layers = jax.random.normal(jax.random.key(0), (3, 6, 4))
    params = {"layers": layers, "biases": jnp.ones((3, 6))}
    found = measures.spectral_entropy_penalty(params, stacked=True)
    alone = jnp.mean(measures.spectral_entropy(layers))
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_trees_without_matrices_cost_nothing():
    assert measures.spectral_entropy_penalty({"bias": jnp.ones(3)}) == 0


def test_what_has_no_spectrum_is_refused():
    with pytest.raises(ValueError, match=r"W must be a matrix .* got shape \(3,\)"):
        measures.spectral_entropy(jnp.ones(3))
    with pytest.raises(ValueError, match="method must be one of svd, gram, renyi2"):
        measures.spectral_entropy(jnp.ones((2, 2)), "qr")
