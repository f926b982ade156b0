"""The penalties are what the solver saw; wrong settings are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.recipes import nde_solver_regularisation as recipe
from jaxwm.recipes.nde_solver_regularisation import TINY


def test_weights_decay_exponentially():
    decay = recipe.exp_decay(2.5, 1.0, 100)
    np.testing.assert_allclose(decay(0), 2.5)
    np.testing.assert_allclose(decay(50), np.sqrt(2.5), rtol=1e-6)
    np.testing.assert_allclose(decay(200), 1.0, rtol=1e-6)
    assert recipe.exp_decay(0.0, 0.0, 10)(3) == 0
    with pytest.raises(ValueError, match="weights must be positive to decay"):
        recipe.exp_decay(1.0, 0.0, 10)


# Each compiles the gradient of an adaptive solve: seconds.
OTHERS = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("error_sq", "stiffness", "taylor", "kinetic")
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["error", *OTHERS])
def test_a_penalty_adds_to_the_loss_with_its_weight(kind, key):
    data_key, init_key, step_key = jax.random.split(key, 3)
    data = recipe.two_rings(data_key, 8)
    config = dataclasses.replace(TINY, regulariser=kind, weight=2.0, final_weight=2.0)
    model = recipe.nde_solver_regularisation(config)
    state, metrics = jax.jit(model.step)(step_key, model.init(init_key), data)
    assert metrics["loss"] > metrics["task"]
    assert metrics["finite"] == 1
    assert state.buffers == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "random_end"])
def test_without_a_penalty_the_loss_is_the_task(kind, key):
    data_key, init_key, step_key = jax.random.split(key, 3)
    data = recipe.two_rings(data_key, 8)
    config = dataclasses.replace(TINY, regulariser=kind)
    model = recipe.nde_solver_regularisation(config)
    _, metrics = jax.jit(model.step)(step_key, model.init(init_key), data)
    assert metrics["loss"] == metrics["task"]


def test_the_third_derivative_of_a_linear_flow_is_its_cube():
    rate = recipe._integrand("taylor", lambda t, y, p: p * y, None)
    y = jnp.array([[1.0, 2.0]])
    np.testing.assert_allclose(rate(jnp.array(0.0), y, 2.0), 64 * 5, rtol=1e-5)
    probe = jnp.array([[1.0, -1.0]])
    rate = recipe._integrand("kinetic", lambda t, y, p: p * y, probe)
    np.testing.assert_allclose(rate(0.0, y, 2.0), 4 * 5 + 4 * 2, rtol=1e-5)


def test_rings_lie_where_they_should(key):
    x, label = recipe.two_rings(key, 2000)
    radius = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(radius[label == 1].mean(), 1.5, atol=0.02)
    np.testing.assert_allclose(radius[label == 0].mean(), 0.7, atol=0.03)


@pytest.mark.slow
def test_the_experiment_gives_finite_numbers_from_a_tiny_setting(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert {"steps/none", "steps/error", "accuracy/stiffness"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regulariser": "jerk"}, "regulariser must be one of none, .* got 'jerk'"),
        ({"weight": -1.0}, "weight and final_weight must be at least 0, got -1"),
        ({"end_spread": 1.0}, "end_spread must be in .* got 1"),
        ({"size": 1}, "size must be at least 2"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
