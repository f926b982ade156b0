"""Candidates chosen by cost, inside the reverse process and behind it."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import diffusion

STEPS = diffusion.ancestral(diffusion.stride(diffusion.cosine_schedule(32), 8))


def cost(x):
    return jnp.sum((x - 2.0) ** 2)


def run(key, *terms):
    sample = lambda key: diffusion.sample(
        key, gaussian.denoise, STEPS, (2,), terms=terms
    )
    return jax.jit(jax.vmap(sample))(jax.random.split(key, 64))


def test_searching_lowers_the_cost_and_stays_on_the_data(key):
    plain = run(key)
    found = run(jax.random.clone(key), diffusion.search(cost, 16))
    costs = jax.vmap(cost)
    assert costs(found.x).mean() < 0.5 * costs(plain.x).mean()
    assert jnp.abs(found.x - gaussian.MEAN).max() < 6 * gaussian.STD
    np.testing.assert_allclose(
        found.info["best_cost"], costs(found.info["best"]), rtol=1e-5
    )
    assert np.all(found.info["best_cost"] <= costs(found.x) + 1e-5)


def test_rows_without_search_draw_once(key):
    never = diffusion.search(cost, 4, when=lambda step: jnp.array(False))
    result = run(key, never)
    assert np.all(np.isinf(result.info["best_cost"]))
    np.testing.assert_allclose(result.x.mean(), gaussian.MEAN, atol=0.15)


def test_candidates_may_be_judged_as_they_are(key):
    term = diffusion.search(cost, 16, on_estimate=False, reduce=diffusion.elite(4))
    result = run(key, term)
    assert (
        jax.vmap(cost)(result.x).mean()
        < jax.vmap(cost)(run(jax.random.clone(key)).x).mean()
    )


def test_a_cost_that_is_nan_is_never_chosen(key):
    broken = lambda x: jnp.where(x[0] > 0.7, jnp.nan, cost(x))
    result = run(key, diffusion.search(broken, 16, on_estimate=False))
    assert np.all(np.isfinite(result.info["best_cost"]))
    assert np.all(result.info["best"][:, 0] <= 0.7)


def test_reductions_agree_where_they_should(key):
    costs = jnp.array([3.0, 1.0, 2.0])
    candidates = {"x": jnp.array([[3.0], [1.0], [2.0]])}
    for reduce in (diffusion.argmin, diffusion.elite(1), diffusion.softmax(1e-3)):
        np.testing.assert_allclose(reduce(key, costs, candidates)["x"], [1.0])
        key = jax.random.fold_in(jax.random.clone(key), 0)
    np.testing.assert_allclose(diffusion.elite(2)(key, costs, candidates)["x"], [1.5])


def test_best_of_k_keeps_the_best_and_never_nan(key):
    draw = lambda key: jax.random.normal(key)
    score = lambda x: jnp.where(x > 1.0, jnp.nan, x)
    best, scores = diffusion.best_of_k(key, draw, score, 256)
    assert best == scores.max()
    assert best <= 1.0
    assert jnp.isneginf(scores).any()


def test_best_of_k_at_high_temperature_is_plain_sampling(key):
    draw = lambda key: jax.random.normal(key)
    pick = lambda key: diffusion.best_of_k(key, draw, lambda x: x, 4, temperature=1e6)[
        0
    ]
    x = jax.vmap(pick)(jax.random.split(key, 2000))
    np.testing.assert_allclose([x.mean(), x.std()], [0.0, 1.0], atol=0.08)


def test_no_candidates_are_refused(key):
    with pytest.raises(ValueError, match="num must be at least 1 candidate, got 0"):
        diffusion.search(cost, 0)
    with pytest.raises(ValueError, match="num must be at least 1 sample, got 0"):
        diffusion.best_of_k(key, jax.random.normal, cost, 0)
