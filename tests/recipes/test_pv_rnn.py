"""The table's rows, the divergence, the loss, and recognition by descent."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.recipes import pv_rnn as recipe
from jaxwm.recipes.pv_rnn import (
    TINY,
    Config,
    begin,
    elbo,
    error_regression,
    gaussian_kl,
    generate,
    pv_rnn,
    recognise,
    unroll,
)

MODEL = pv_rnn(TINY)
STEP = jax.jit(MODEL.step)
RUN = jax.jit(unroll, static_argnums=(1, 5))
LOSS = jax.jit(lambda *args: elbo(None, TINY, *args)[0])
W = jnp.array([0.1, 0.01])


@functools.cache
def start(config=TINY):
    init = jax.jit(lambda key: pv_rnn(config).init(key, 4, 18, 2))
    return init(jax.random.key(0))


@functools.cache
def curve():
    return recipe.curves.primitive_curves(jax.random.key(3), 4, 18)[0]


def test_the_divergence_is_that_of_two_gaussians():
    args = jnp.array([[0.3, -0.2], [0.1, -0.7], [-0.4, 0.5], [0.2, -0.3]])
    z = args[0] + jnp.exp(args[1]) * jax.random.normal(jax.random.key(0), (40_000, 2))
    log_p = lambda mean, log_std: jnp.sum(
        -0.5 * ((z - mean) / jnp.exp(log_std)) ** 2 - log_std, -1
    )
    sampled = jnp.mean(log_p(*args[:2]) - log_p(*args[2:]))
    np.testing.assert_allclose(gaussian_kl(*args), sampled, rtol=0.02)
    assert gaussian_kl(*args[:2], *args[:2]) == 0


@pytest.mark.parametrize(
    "posterior", ["free", pytest.param("residual", marks=pytest.mark.slow)]
)
def test_a_new_row_of_the_table_says_what_the_prior_says(posterior):
    """So it costs no divergence and changes no step."""
    config = dataclasses.replace(TINY, posterior=posterior)
    weights = start(config).params["weights"]
    carry, free = RUN(None, config, weights, begin(config), None, 6)
    again, steps = RUN(None, config, weights, begin(config), free.a, 6)
    np.testing.assert_allclose(steps.x, free.x, atol=1e-6)
    np.testing.assert_allclose(steps.kl, 0, atol=1e-6)
    chex.assert_trees_all_close(again, carry, atol=1e-6)


def test_one_step_is_the_equation():
    """One layer, by hand, from a state that is not zero."""
    config = dataclasses.replace(TINY, hidden=(3,), tau=(4.0,), latent=1)
    weights = start(config).params["weights"]
    p = weights["params"]
    h, a = jnp.array([0.2, -0.5, 0.9]), jnp.array([0.4, -1.0])
    carry = recipe.Carry((h,), jnp.int32(3))
    after, steps = RUN(None, config, weights, carry, a[None, None], 1)
    d = jnp.tanh(h)
    rows = jnp.concatenate([d, jnp.tanh(a[:1])])
    drive = rows @ p["drive_0"]["kernel"] + p["drive_0"]["bias"]
    expected = 0.75 * h + 0.25 * drive
    np.testing.assert_allclose(after.h[0], expected, rtol=1e-5)
    out = jnp.tanh(expected) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(steps.x[0], out, rtol=1e-5)
    prior = d @ p["prior_0"]["kernel"] + p["prior_0"]["bias"]
    kl = gaussian_kl(jnp.tanh(a[:1]), a[1:], jnp.tanh(prior[:1]), prior[1:])
    np.testing.assert_allclose(steps.kl[0, 0], kl, rtol=1e-5)


@pytest.mark.slow
def test_the_first_step_has_a_standard_prior_and_its_own_weight():
    weights = start().params["weights"]
    a = jnp.full((6, 2, 4), 0.3)
    _, steps = RUN(None, TINY, weights, begin(TINY), a, 6)
    zero, mean = jnp.zeros(2), jnp.tanh(jnp.full(2, 0.3))
    kl = gaussian_kl(mean, jnp.full(2, 0.3), zero, zero) / 2
    np.testing.assert_allclose(steps.kl[0], kl, rtol=1e-5)
    x = curve()[0, :6]
    value = lambda w: LOSS(weights, begin(TINY), a, x, jnp.array(w, jnp.float32))
    base = value([0, 0])
    np.testing.assert_allclose(value([1, 0]) - base, steps.kl[0].sum(), rtol=1e-4)
    np.testing.assert_allclose(value([0, 1]) - base, steps.kl[1:].sum(), rtol=1e-4)


def test_rows_outside_the_batch_rest_with_their_moments():
    """A row's update depends on its own past alone, not on when the others moved."""
    state, x = start(), curve()
    picked = jnp.array([2, 0])
    after, metrics = STEP(jax.random.key(1), state, (picked, x[picked]))
    after, _ = STEP(jax.random.key(2), after, (picked, x[picked]))
    assert metrics["finite"] == 1
    for old, new in (
        (state.params["table"], after.params["table"]),
        *zip(
            jax.tree.leaves(state.opt_state["table"]),
            jax.tree.leaves(after.opt_state["table"]),
            strict=True,
        ),
    ):
        np.testing.assert_array_equal(new[jnp.array([1, 3])], old[jnp.array([1, 3])])
        assert (new[picked] != old[picked]).any()
    counts = after.opt_state["table"][0].count
    np.testing.assert_array_equal(counts, [2, 0, 2, 0])


def test_a_traced_index_outside_the_table_shows_in_finite():
    batch = (jnp.array([0, 9]), curve()[:2])
    _, metrics = STEP(jax.random.key(1), start(), batch)
    assert metrics["finite"] == 0


def test_regression_lowers_the_loss_and_leaves_no_trace_in_the_weights():
    weights, x = start().params["weights"], curve()[0, :6]
    a = RUN(None, TINY, weights, begin(TINY), None, 6)[1].a
    fit = jax.jit(
        lambda a: error_regression(TINY, weights, begin(TINY), a, x, W / 10, 40)
    )
    found, losses = fit(a)
    assert losses[-1] < 0.5 * losses[0]
    value = LOSS(weights, begin(TINY), a, x, W / 10)
    np.testing.assert_allclose(losses[0], value, rtol=1e-5)
    assert not np.allclose(found, a)


def test_forecasts_know_only_what_was_seen():
    weights, x = start().params["weights"], curve()[0, :9]
    online = jax.jit(lambda x: recognise(TINY, weights, x, 3))
    forecasts = online(x)
    assert forecasts.shape == (4, 3, 2)
    changed = online(x.at[8].add(1.0))  # seen by the last window alone
    np.testing.assert_array_equal(changed[:3], forecasts[:3])
    assert not np.allclose(changed[3], forecasts[3])


@pytest.mark.slow
def test_a_prediction_is_the_last_forecast():
    params, x = start().params, curve()[0, :9]
    last = jax.jit(lambda x: MODEL.predict(params, x, 3))
    online = jax.jit(lambda x: recognise(TINY, params["weights"], x, 3))
    np.testing.assert_allclose(last(x), online(x)[-1], rtol=1e-4)


def test_dreams_differ_by_their_noise_alone(key):
    weights = start().params["weights"]
    dream = jax.jit(lambda key: generate(key, TINY, weights, begin(TINY), 5))
    first, second = dream(key), dream(jax.random.key(1))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(dream(jax.random.clone(key)), first)


def test_gradients_stay_finite_at_the_ends_of_the_deviation():
    weights, x = start().params["weights"], curve()[0, :6]
    grad = jax.jit(jax.value_and_grad(LOSS, 2))
    for log_std in (-50.0, 50.0):
        a = jnp.full((6, 2, 4), log_std)
        assert all(np.isfinite(v).all() for v in grad(weights, begin(TINY), a, x, W))


def test_what_cannot_be_recognised_is_refused():
    state, x = start(), curve()
    with pytest.raises(ValueError, match=r"index must name different .* 0 \.\.\. 3"):
        MODEL.step(jax.random.key(0), state, (jnp.array([0, 4]), x[:2]))
    with pytest.raises(ValueError, match="index must name different"):
        MODEL.step(jax.random.key(0), state, (jnp.array([1, 1]), x[:2]))
    with pytest.raises(ValueError, match="window must be at most the 5 steps"):
        MODEL.predict(state.params, x[0, :5], 3)
    with pytest.raises(ValueError, match="tau must be at least 1 step"):
        Config(tau=(0.5, 8.0))
    with pytest.raises(ValueError, match="tau must give one time constant per layer"):
        Config(tau=(2.0,))
    with pytest.raises(ValueError, match='posterior must be "free" or "residual"'):
        Config(posterior="encoder")
    with pytest.raises(ValueError, match="latent must be at least 1, got 0"):
        Config(latent=0)


@pytest.mark.slow
def test_the_experiment_measures_what_its_claim_reads(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert all(np.isfinite(value) for value in metrics.values())
