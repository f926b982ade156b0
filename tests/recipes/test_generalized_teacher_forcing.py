"""Forcing: its limits, the bound on gradients, and what adapts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.core import optimise
from jaxwm.recipes import generalized_teacher_forcing as recipe
from jaxwm.recipes.generalized_teacher_forcing import (
    TINY,
    Config,
    alpha_star,
    generalized_teacher_forcing,
    gtf_rollout,
    spectral_norm,
    windows,
)


@functools.cache
def series():
    with jax.ensure_compile_time_eval():  # also where the first call is traced
        x = recipe.chaos.lorenz63(jax.random.key(5), 300)
        return (x - x.mean(0)) / x.std(0)


def cell(w, z):
    return jnp.tanh(w @ z)


@pytest.mark.slow
def test_full_forcing_gives_the_gradient_of_one_step_regression():
    x, w = series()[:30], jax.random.normal(jax.random.key(0), (3, 3))

    def forced(w):
        return jnp.mean((gtf_rollout(lambda z: cell(w, z), x, 1.0) - x[1:]) ** 2)

    def regression(w):
        return jnp.mean((jax.vmap(cell, (None, 0))(w, x[:-1]) - x[1:]) ** 2)

    np.testing.assert_allclose(jax.grad(forced)(w), jax.grad(regression)(w), rtol=1e-5)


@pytest.mark.slow
def test_no_forcing_is_a_free_run_from_the_first_state():
    x, w = series()[:10], jax.random.normal(jax.random.key(0), (3, 3))
    z = gtf_rollout(lambda z: cell(w, z), x, 0.0)
    free = recipe.chaos.orbit(lambda z: cell(w, z), cell(w, x[0]), 9)
    np.testing.assert_allclose(z, free, rtol=1e-6)


def test_forcing_scales_the_jacobian_of_t_steps_by_its_power():
    matrix, forcing, num = jnp.array([[1.1, 0.3], [-0.2, 1.2]]), 0.25, 6
    x = jax.random.normal(jax.random.key(1), (num, 2))

    def last(first):
        return gtf_rollout(lambda z: matrix @ z, x.at[0].set(first), forcing)[-1]

    # The first state is data: it is forced onto itself.
    steps = num - 2
    expected = (1 - forcing) ** steps * jnp.linalg.matrix_power(matrix, steps + 1)
    np.testing.assert_allclose(jax.jacobian(last)(x[0]), expected, rtol=1e-4)


def test_the_least_forcing_stops_growth_exactly():
    grows = lambda z: 2.5 * jnp.eye(3)
    np.testing.assert_allclose(alpha_star(grows, series()[:5]), 1 - 1 / 2.5, rtol=0.01)
    shrinks = lambda z: 0.5 * jnp.eye(3)
    assert alpha_star(shrinks, series()[:5]) == 0


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_spectral_norm_is_bounded_from_above_within_a_hundredth(scale):
    matrix = scale * jax.random.normal(jax.random.key(2), (20, 5, 5))
    ratio = jax.vmap(spectral_norm)(matrix) / jnp.linalg.norm(matrix, 2, (1, 2))
    assert (ratio > 1 - 1e-5).all()
    assert (ratio < 5 ** (1 / 128) + 1e-5).all()
    assert np.isfinite(spectral_norm(jnp.zeros((3, 3))))


@pytest.mark.slow
def test_the_forcing_jumps_up_to_the_bound_and_sinks_slowly():
    model = generalized_teacher_forcing(TINY)
    step = jax.jit(model.step)
    state = model.init(jax.random.key(0), 3)
    start = state.buffers["forcing"]
    state, first = step(jax.random.key(1), state, series())
    assert 0.999 - 1e-6 <= first["forcing"] < start
    state, second = step(jax.random.key(2), state, series())
    assert second["forcing"] == first["forcing"]  # looks every fifth update only
    cell = {"params": {**state.params["cell"]["params"], "A": jnp.full(3, 4.0)}}
    wild = state._replace(
        params={"cell": cell},
        buffers={"forcing": jnp.float32(0.1), "updates": jnp.int32(5)},
    )
    _, jumped = step(jax.random.key(3), wild, series())
    assert jumped["forcing"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"adapt_every": 0}, {"latent": 5}, {"affine": True, "latent": 2}]
)
def test_training_lowers_the_loss_for_every_observation(options):
    rates = {"learning_rate": 0.02, "last_learning_rate": 0.01}
    config = dataclasses.replace(TINY, num_updates=500, **rates, **options)
    model = generalized_teacher_forcing(config)
    fit = jax.jit(
        lambda state, key: optimise.repeat(model.step, state, key, series(), 500)
    )
    state, metrics = fit(model.init(jax.random.key(0), 3), jax.random.key(1))
    assert metrics["finite"].all()
    assert metrics["loss"][-50:].mean() < 0.5 * metrics["loss"][:50].mean()
    forecast = model.predict(state.params, series()[0], 4)
    assert forecast.shape == (4, 3)
    assert np.isfinite(forecast).all()
    np.testing.assert_allclose(
        forecast[:1], model.predict(state.params, series()[0], 1), rtol=1e-5
    )


def test_a_forecast_is_the_model_applied_again_and_again():
    model = generalized_teacher_forcing(TINY)
    params = model.init(jax.random.key(0), 3).params
    once = lambda x: model.predict(params, x, 1)[0]
    x = series()[0]
    np.testing.assert_allclose(
        model.predict(params, x, 3)[-1], once(once(once(x))), rtol=1e-5
    )


def test_the_model_keeps_the_form_of_its_state_and_vmaps_over_seeds():
    model = generalized_teacher_forcing(TINY)
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.jit(jax.vmap(lambda key: model.init(key, 3)))(keys)
    steps = jax.random.split(jax.random.key(1), 2)
    after, _ = jax.jit(jax.vmap(model.step, (0, 0, None)))(steps, states, series())
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(after) == shapes(states)


def test_windows_are_stretches_of_the_series():
    x = jnp.arange(12.0)[:, None]
    found = windows(jax.random.key(0), x, 5, 40)[..., 0]
    np.testing.assert_array_equal(np.diff(found), 1)
    assert set(np.asarray(found[:, 0])) == set(range(8))


def test_what_cannot_be_fitted_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="length must be at most the 4 steps"):
        windows(key, jnp.zeros((4, 3)), 5, 2)
    with pytest.raises(ValueError, match="series must be finite"):
        windows(key, jnp.full((9, 3), jnp.nan), 5, 2)
    with pytest.raises(ValueError, match="latent must be at least the 3 observed"):
        generalized_teacher_forcing(Config(latent=2)).init(key, 3)
    with pytest.raises(ValueError, match=r"forcing must be in \[0, 1\], got 1.5"):
        Config(forcing=1.5)
    with pytest.raises(ValueError, match="decay must be in"):
        Config(decay=-0.1)
    with pytest.raises(ValueError, match="length must be at least 2"):
        Config(length=1)


@pytest.mark.slow
def test_the_experiment_measures_what_its_claim_reads(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert all(np.isfinite(value) for value in metrics.values())
