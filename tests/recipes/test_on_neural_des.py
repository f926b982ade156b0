"""Each family against what is known of it; what a solver must refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxwm.core import optimise
from jaxwm.data import planar
from jaxwm.physics import ode
from jaxwm.recipes import on_neural_des as recipe
from jaxwm.recipes.on_neural_des import TINY, Config, on_neural_des

TS = jnp.linspace(0.0, 1.0, 5)


def turning(y, network):
    return jnp.array([y[1], -y[0]]) + network(y)


def test_a_hybrid_model_begins_as_what_is_known(key):
    model = on_neural_des(dataclasses.replace(TINY, sub_steps=20), turning)
    params = jax.jit(model.init, static_argnums=1)(key, 2).params
    ys = jax.jit(model.predict)(params, jnp.array([1.0, 0.0]), TS)
    np.testing.assert_allclose(ys, np.stack([np.cos(TS), -np.sin(TS)], 1), atol=1e-3)


def test_an_equilibrium_is_one_and_does_not_depend_on_its_neighbours(key):
    keys = jax.random.split(key)
    model = recipe.equilibrium(TINY)
    params = jax.jit(model.init, static_argnums=1)(keys[0], 2).params
    x = 3 * jax.random.normal(keys[1], (6, 2))
    found = jax.jit(recipe.rest)(params, x)
    assert found.residual < 1e-5
    z = jax.jit(recipe.contraction)(params, x, found.z)
    np.testing.assert_allclose(z, found.z, atol=1e-4)
    alone = jax.jit(recipe.rest)(params, x[:1])
    np.testing.assert_allclose(alone.z, found.z[:1], atol=1e-4)


def test_large_weights_still_contract():
    params = {"W": 50 * jnp.eye(4)[::-1], "U": jnp.zeros((4, 2)), "b": jnp.zeros(4)}
    jacobian = jax.jit(
        jax.jacfwd(lambda z: recipe.contraction(params, jnp.zeros(2), z))
    )
    # W becomes 0.9 times the reversal, over its norm of 2.
    np.testing.assert_allclose(
        jacobian(jnp.zeros(4)), 0.45 * np.eye(4)[::-1], rtol=1e-6
    )


@pytest.mark.slow
def test_a_controlled_equation_is_told_what_is_missing(key):
    model = recipe.neural_cde(TINY)
    keys = jax.random.split(key)
    params = model.init(keys[0], 2).params
    # On a line, so that bridging the gap leaves the path as it was.
    xs = TS[:, None] * jnp.array([1.0, 2.0])
    predict = jax.jit(model.predict)
    whole, hole = predict(params, TS, xs), predict(params, TS, xs.at[2].set(jnp.nan))
    assert np.isfinite(hole)
    assert abs(whole - hole) > 1e-6


@pytest.mark.slow
def test_the_gradient_is_that_of_the_steps_and_the_adjoint_equations_is_not(key):
    with jax.enable_x64(True):
        known = lambda y, network: jnp.sin(3 * network(y)) - 0.1 * y
        model = on_neural_des(dataclasses.replace(Config(), sub_steps=100), known)
        ts = jnp.array([0.0, 5.0])

        def errors(key):
            keys = jax.random.split(key)
            params = model.init(keys[0], 4).params | {"scale": jnp.ones(())}
            params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
            y0 = 2 * jax.random.normal(keys[1], (4,))

            def field(t, y, params):
                network = recipe._network(Config(), 4)
                return known(y, lambda x: network.apply(params["field"], x))

            def gradient(solve):
                grads = jax.grad(lambda params: jnp.sum(solve(params)[-1] ** 2))(params)
                return ravel_pytree(grads["field"])[0]

            def library(**options):
                solve = lambda p: ode.odeint(field, p, y0, ts, max_steps=128, **options)
                return gradient(lambda params: solve(params)[0])

            apart = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
            method = ode.library().ReversibleHeun()
            own = gradient(lambda params: model.predict(params, y0, ts))
            loose = {"rtol": 1e-2, "atol": 1e-2}
            adjoint = library(**loose, adjoint="backsolve")
            return (
                apart(own, library(solver=method, step_size=0.05)),
                apart(adjoint, library(**loose)),
            )

        for seed_key in jax.random.split(key, 3):
            reversible, adjoint = jax.jit(errors)(seed_key)
            assert reversible < 1e-8
            assert adjoint > 1e-3


@pytest.mark.slow
def test_every_family_learns(key):
    spirals_key, moons_key, fit_key = jax.random.split(key, 3)
    config = dataclasses.replace(
        TINY, width=8, batch=16, ode_updates=200, updates=200, cde_step=0.05
    )
    circle = jnp.stack([jnp.cos(TS), -jnp.sin(TS)], 1)[None]
    families = {
        "ode": (on_neural_des(config), (TS, circle)),
        "hybrid": (on_neural_des(config, lambda y, f: f(y) - y), (TS, circle)),
        "cde": (recipe.neural_cde(config), planar.spirals(spirals_key, 16)),
        "equilibrium": (recipe.equilibrium(config), planar.two_moons(moons_key, 32)),
    }
    for i, (name, (model, data)) in enumerate(families.items()):

        @jax.jit
        def fit(key, model=model, data=data):
            init_key, loop_key = jax.random.split(key)
            state = model.init(init_key, 2)
            return optimise.repeat(model.step, state, loop_key, data, 200)

        _, rows = fit(jax.random.fold_in(fit_key, i))
        assert rows["finite"].all(), name
        assert rows["loss"][-10:].mean() < 0.7 * rows["loss"][:10].mean(), name


@pytest.mark.slow
def test_the_experiment_gives_numbers_from_a_tiny_setting(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert {"extrapolate/ratio", "accuracy/gru", "moons/gradient"} <= set(metrics)
    # Formulas of two generations may be anything, also infinite.
    others = [v for k, v in metrics.items() if not k.startswith("formula")]
    assert all(np.isfinite(value) for value in others)


def test_series_that_no_path_goes_through_are_refused():
    model = recipe.neural_cde(TINY)
    xs = jnp.ones((5, 2))
    with pytest.raises(ValueError, match="ts must be at least two increasing times"):
        model.predict(None, TS.at[1].set(TS[2]), xs)
    with pytest.raises(ValueError, match="xs must be whole in its first row, got NaN"):
        model.predict(None, TS, xs.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="ts must be floating point"):
        on_neural_des(TINY).predict(None, jnp.ones(2), jnp.arange(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be positive, got 0"),
        ({"sub_steps": 0}, "sub_steps must be positive, got 0"),
        ({"cde_step": float("nan")}, "cde_step must be finite, got nan"),
        ({"learning_rate": -1.0}, r"learning_rate must be positive, got -1\.0"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
