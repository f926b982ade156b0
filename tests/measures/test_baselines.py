"""What stands beside the complexity: sizes, norms, code lengths, bounds, lambda."""

import bz2
import gzip
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import measures

# --- sizes -----------------------------------------------------------------

PARAMS = {
    "W": jax.random.normal(jax.random.key(0), (30, 20)),
    "b": jnp.arange(20.0),
}
RAW = np.asarray(PARAMS["W"]).tobytes() + np.asarray(PARAMS["b"]).tobytes()


def test_raw_sizes_are_those_of_the_compressors():
    assert measures.raw_byte_size(PARAMS) == len(bz2.compress(RAW))
    assert measures.raw_byte_size(PARAMS, "gzip") == len(gzip.compress(RAW, mtime=0))


def test_sizes_work_compiled_and_over_a_batch():
    stacked = jax.tree.map(lambda x: jnp.stack([x, jnp.zeros_like(x)]), PARAMS)
    found = jax.jit(jax.vmap(measures.raw_byte_size))(stacked)
    np.testing.assert_array_equal(found[0], len(bz2.compress(RAW)))
    assert found[1] < 100


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_integers_are_those_of_the_coarse_graining(tau):
    """Rebuilt by hand; at tau = 1 the matrix stays dense."""
    delta = 0.1
    found = jax.jit(measures.integer_byte_size)(PARAMS, tau, delta)
    u, s, vt = np.linalg.svd(np.asarray(PARAMS["W"]), full_matrices=False)
    k = min(20, 1 + np.sum(np.cumsum(s) < tau * s.sum()))
    root = np.sqrt(s[:k])
    parts = [np.asarray(PARAMS["W"])]
    if k * 50 < 600:
        parts = [u[:, :k] * root, root[:, None] * vt[:k]]
    assert (k * 50 < 600) == (tau == 0.5)
    integers = [np.rint(p / delta).astype(np.int8) for p in parts]
    integers.append(np.rint(np.asarray(PARAMS["b"]) / delta).astype(np.int16))
    wanted = len(bz2.compress(b"".join(i.tobytes() for i in integers)))
    # Signs of singular vectors are free, which moves the compressor a little.
    np.testing.assert_allclose(found, wanted, rtol=0.02)


def test_nothing_feasible_is_counted_as_floats():
    found = measures.integer_byte_size(PARAMS, 1.0, 0.0)
    assert found == len(bz2.compress(RAW))


def test_the_norm_is_that_of_all_weights():
    np.testing.assert_allclose(
        measures.l2_norm(PARAMS),
        np.linalg.norm(np.frombuffer(RAW, np.float32)),
        rtol=1e-6,
    )


def test_unknown_compressors_are_refused():
    with pytest.raises(ValueError, match="codec must be one of bz2, gzip, lzma, got"):
        measures.raw_byte_size(PARAMS, "zip")


# --- description length and bound ------------------------------------------


def test_a_uniform_predictor_describes_at_the_naive_length():
    """No network, log p nats per label."""
    found = measures.description_length(0.0, 1392 * math.log(59))
    np.testing.assert_allclose(found, measures.naive_length(1392, 59), rtol=1e-6)
    assert round(measures.naive_length(1392, 59) / 8) == 1024  # bytes
    assert round(measures.naive_length(97**2, 97) / 8) == 7762
    assert round(measures.naive_length(113**2, 113) / 8) == 10886


def test_the_bound_by_hand():
    found = measures.generalisation_bound(0.1, 64.0, 10_000, delta=0.05)
    nats = (64 + 2 * 6) * math.log(2) + math.log(20)
    np.testing.assert_allclose(found.value, 0.1 + math.sqrt(nats / 20_000), rtol=1e-6)
    assert not found.vacuous


def test_the_bound_says_when_it_is_vacuous():
    found = measures.generalisation_bound(0.0, jnp.array([100.0, 23_000.0]), 1392)
    np.testing.assert_array_equal(found.vacuous, [False, True])
    np.testing.assert_allclose(found.value[1], 2.4, atol=0.05)


def test_a_bound_on_nothing_is_refused():
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        measures.generalisation_bound(0.0, 10.0, 0)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\), got 1"):
        measures.generalisation_bound(0.0, 10.0, 10, delta=1.0)
    with pytest.raises(ValueError, match="got 10 and 0"):
        measures.naive_length(10, 0)


# --- prequential code ------------------------------------------------------


def counts(key, labels):
    """A 'network' that learns label frequencies, one pseudo-count each."""
    del key
    num = jnp.bincount(labels, length=3) + 1.0
    return num / num.sum()


def nll(p, labels):
    return -jnp.sum(jnp.log(p[labels]))


def test_blocks_are_coded_by_what_came_before(key):
    labels = jnp.array([0, 0, 0, 1, 0, 0, 2, 0])
    found = measures.prequential_length(
        key, counts, nll, labels, num_classes=3, num_blocks=3
    )
    assert found.sizes == (2, 2, 4)
    second = -math.log2(3 / 5) - math.log2(1 / 5)
    third = -3 * math.log2(4 / 7) - math.log2(1 / 7)
    wanted = [2 * math.log2(3), second, third]
    np.testing.assert_allclose(found.block_bits, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.bits, sum(wanted), rtol=1e-5)


@pytest.mark.slow
def test_what_can_be_learnt_is_shorter_than_naive(key):
    data_key, fit_key = jax.random.split(key)
    labels = jax.random.categorical(
        data_key, jnp.log(jnp.array([0.9, 0.07, 0.03])), shape=(512,)
    )
    found = measures.prequential_length(fit_key, counts, nll, labels, num_classes=3)
    assert sum(found.sizes) == 512
    assert found.sizes[0] == 8
    assert found.bits < 0.6 * measures.naive_length(512, 3)


def test_empty_first_blocks_are_refused(key):
    with pytest.raises(ValueError, match="num_blocks must be at least 1 and at most 3"):
        measures.prequential_length(
            key, counts, nll, jnp.zeros(4, int), num_classes=3, num_blocks=4
        )


# --- local learning coefficient --------------------------------------------

CHAIN = {"num_chains": 8, "num_steps": 4000, "burn_in": 1000}


def test_a_regular_minimum_has_half_its_dimensions(key):
    """Under the pull: sum of n beta h / (2 (n beta h + gamma)) over curvatures h."""
    curvature = jnp.array([1.0, 4.0, 0.5])
    num, pull = 1000, 5.0
    loss = lambda w: 0.5 * jnp.sum(curvature * w**2)
    weight = num / math.log(num)
    wanted = np.sum(weight * curvature / (2 * (weight * curvature + pull)))
    found = jax.jit(
        lambda key: measures.local_learning_coefficient(
            key, jnp.zeros(3), loss, num, pull=pull, step_size=4e-4, **CHAIN
        )
    )(key)
    np.testing.assert_allclose(found.value, wanted, rtol=0.15)
    assert found.is_minimum


def test_a_degenerate_minimum_has_less(key):
    """w^4 has 1/4 instead of 1/2."""
    found = jax.jit(
        lambda key: measures.local_learning_coefficient(
            key,
            {"w": jnp.zeros(())},
            lambda p: p["w"] ** 4,
            100_000,
            pull=1e-3,
            step_size=2e-4,
            **CHAIN,
        )
    )(key)
    np.testing.assert_allclose(found.value, 0.25, atol=0.06)


def test_a_slope_is_flagged_as_no_minimum(key):
    found = jax.jit(
        lambda key: measures.local_learning_coefficient(
            key, jnp.ones(2), lambda w: jnp.sum(w**2), 1000, step_size=1e-4, pull=1.0
        )
    )(key)
    assert found.value < 0
    assert not found.is_minimum


def test_minibatches_move_the_chains(key):
    """A gradient from a minibatch loss; what is measured stays the whole loss."""
    found = measures.local_learning_coefficient(
        key,
        jnp.zeros(2),
        lambda w: jnp.sum(w**2),
        100,
        batch_loss=lambda key, w: jnp.sum(w * (w + jax.random.normal(key, (2,)))),
        num_chains=2,
        num_steps=10,
        burn_in=5,
        step_size=1e-3,
    )
    assert found.losses.shape == (2, 15)
    assert np.isfinite(found.value)
    with pytest.raises(ValueError, match="step_size must be positive, got 0"):
        measures.local_learning_coefficient(
            jax.random.key(1), jnp.zeros(2), jnp.sum, 100, step_size=0.0
        )
