"""Weights move on training data, hyperparameters on validation data, by the gates."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.recipes import self_tuning_networks as recipe
from jaxwm.recipes.self_tuning_networks import (
    TINY,
    Config,
    HyperSpec,
    Split,
    from_value,
    perturb,
    perturb_entropy,
    ridge,
    self_tuning_networks,
    to_value,
)

SPECS = (
    HyperSpec(name="rate", initial=0.05, low=0.0, high=0.95),
    HyperSpec(name="noise", initial=40.0, low=0.0),
    HyperSpec(name="holes", initial=3.5, low=1.0, high=8.0, discrete=True),
    HyperSpec(name="log_penalty", initial=-4.0),
)


@functools.cache
def model(**options):
    config = dataclasses.replace(TINY, **options)
    tuner = ridge(config, 0.0, 5)
    return tuner, jax.jit(tuner.init), jax.jit(tuner.step)


def data(num=30):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2 * num, 5)), jnp.float32)
    y = x.sum(1) + jnp.asarray(rng.normal(size=2 * num), jnp.float32)
    return Split(x[:num], y[:num], x[num:], y[num:])


def test_initial_values_come_back_and_counts_are_floored():
    values = to_value(from_value(SPECS), SPECS)
    np.testing.assert_allclose(values, [0.05, 40.0, 3.0, -4.0], rtol=1e-5)
    wild = to_value(jnp.array([-60.0, -60.0, 60.0, 7.0]), SPECS)
    np.testing.assert_allclose(wild, [0.0, 0.0, 8.0, 7.0], atol=1e-6)


def test_counts_carry_no_gradient_and_others_do():
    slopes = jax.jacobian(lambda u: to_value(u, SPECS))(from_value(SPECS))
    np.testing.assert_array_equal(np.diag(slopes) != 0, [True, True, False, True])


def test_the_perturbation_has_its_width_and_its_entropy():
    s = jnp.array([-1.0, 0.5])
    rows = perturb(jax.random.key(0), jnp.array([3.0, -2.0]), s, 50_000)
    std = np.log1p(np.exp(s))
    np.testing.assert_allclose(rows.mean(0), [3.0, -2.0], atol=0.02)
    np.testing.assert_allclose(rows.std(0), std, rtol=0.02)
    exact = np.sum(np.log(std * np.sqrt(2 * np.pi * np.e)))
    np.testing.assert_allclose(perturb_entropy(s), exact, rtol=1e-5)
    np.testing.assert_allclose(
        recipe.perturbation_std(jnp.array([-30.0, 30.0])), [1e-3, 3.0]
    )


@pytest.mark.slow
def test_a_width_stays_in_its_range_and_can_leave_its_ends():
    for s in (-30.0, 30.0):
        assert jax.grad(lambda s: jnp.sum(recipe.perturbation_std(s)))(jnp.array([s]))
    slope = jax.grad(recipe.perturb_entropy)(jnp.array([4.0]))
    np.testing.assert_allclose(slope, jax.nn.sigmoid(4.0) / 3.0, rtol=1e-5)
    _, init, step = model(warm_up=0, tau=100.0, scale_rate=1.0)
    state = init(jax.random.key(0))
    for i in range(5):
        state, _ = step(jax.random.fold_in(jax.random.key(1), i), state, data())
    np.testing.assert_allclose(jax.nn.softplus(state.s), 3.0, rtol=1e-5)


@pytest.mark.slow
def test_rates_have_fallen_to_zero_at_the_end_of_the_decay():
    _, init, step = model(warm_up=1, decay_by=4)
    state, rows = init(jax.random.key(0)), data()
    history = [state]
    for i in range(6):
        state, _ = step(jax.random.fold_in(jax.random.key(1), i), state, rows)
        history.append(state)
    assert history[4].u != history[3].u
    assert history[4].s != history[3].s
    for name in ("params", "u", "s"):
        late, last = (jax.tree.leaves(getattr(history[i], name)) for i in (4, 6))
        for a, b in zip(late, last, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_exact_response_is_stationary():
    rows = data()
    w = recipe.exact_ridge_response(rows.train_x, rows.train_y, jnp.float32(0.3))

    def loss(w):
        error = rows.train_x @ w - rows.train_y
        return jnp.mean(error**2) + 0.3 * jnp.sum(w**2)

    np.testing.assert_allclose(jax.grad(loss)(w), 0, atol=1e-5)


@pytest.mark.slow
def test_only_weights_move_while_warming_up_and_hyperparameters_after():
    _, init, step = model(warm_up=2)
    state, rows = init(jax.random.key(0)), data()
    history = [state]
    for i in range(3):
        state, metrics = step(jax.random.fold_in(jax.random.key(1), i), state, rows)
        history.append(state)
        assert all(np.all(np.isfinite(value)) for value in metrics.values())
    for before, after in itertools.pairwise(history[:3]):
        np.testing.assert_array_equal(before.u, after.u)
        np.testing.assert_array_equal(before.s, after.s)
        kernel = lambda state: state.params["params"]["kernel"]
        assert not np.array_equal(kernel(before), kernel(after))
    assert history[3].u != history[2].u
    assert history[3].s != history[2].s


def test_hyperparameters_get_gradients_through_the_gates_alone():
    """Without gates the validation loss does not see them; training never moves u."""
    _, init, step = model(warm_up=0)
    state = init(jax.random.key(0))
    params = {**state.params["params"]}
    params["gate"] = jnp.zeros_like(params["gate"])
    params["response_kernel"] = jnp.zeros_like(params["response_kernel"])
    closed = state._replace(params={"params": params})
    _, metrics = step(jax.random.key(1), closed, data())
    np.testing.assert_array_equal(metrics["slope"], 0)
    _, metrics = step(jax.random.key(1), state, data())
    assert np.all(metrics["slope"] != 0)


def test_validation_rows_do_not_train_the_weights():
    _, init, step = model(warm_up=0)
    state, rows = init(jax.random.key(0)), data()
    other = rows._replace(valid_y=rows.valid_y + 5.0)
    one, _ = step(jax.random.key(1), state, rows)
    two, _ = step(jax.random.key(1), state, other)
    for a, b in zip(
        jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_fitted_response_gives_the_exact_hypergradient():
    """One input, y = x w: the response of w to log λ is known."""
    rows = data(200)
    tuner, init, _ = model(batch=100, ridge_cycles=0, warm_up=10_000)
    state = jax.jit(
        lambda key, state: jax.lax.scan(
            lambda state, i: tuner.step(jax.random.fold_in(key, i), state, rows),
            state,
            jnp.arange(1500),
        )
    )
    _, metrics = state(jax.random.key(1), init(jax.random.key(0)))

    def exact(log_penalty):
        w = recipe.exact_ridge_response(
            rows.train_x, rows.train_y, jnp.exp(log_penalty)
        )
        return jnp.mean((rows.valid_x @ w - rows.valid_y) ** 2)

    slope = metrics["slope"][-300:].mean()
    np.testing.assert_allclose(slope, jax.grad(exact)(0.0), rtol=0.3)


@pytest.mark.slow
def test_the_experiment_measures_what_its_claim_reads(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["ridge/valid_grid"] < metrics["ridge/valid_large"]


def test_what_cannot_be_tuned_is_refused():
    with pytest.raises(ValueError, match="specs must name at least one"):
        self_tuning_networks(TINY, (), min, min, min)
    with pytest.raises(ValueError, match="initial of rate must lie strictly between"):
        HyperSpec(name="rate", initial=1.0, low=0.0, high=0.95)
    with pytest.raises(ValueError, match="low of bound must be finite"):
        HyperSpec(name="bound", initial=0.0, low=-math.inf, high=1.0)
    with pytest.raises(ValueError, match=r"u must have shape \(4,\), .* got \(3,\)"):
        to_value(jnp.zeros(3), SPECS)
    tuner, init, _ = model()
    empty = data()._replace(valid_x=jnp.zeros((0, 5)), valid_y=jnp.zeros(0))
    with pytest.raises(ValueError, match="must hold training and validation rows"):
        tuner.step(jax.random.key(1), init(jax.random.key(0)), empty)
    with pytest.raises(ValueError, match="std must be in"):
        Config(std=5.0)
    with pytest.raises(ValueError, match="decay_by must be at least 1, got 0"):
        Config(decay_by=0)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        Config(batch=0)
