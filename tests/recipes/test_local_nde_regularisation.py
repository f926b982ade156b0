"""The extra step changes nothing else, and measures what it should."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm.physics import ode
from jaxwm.recipes import local_nde_regularisation as recipe
from jaxwm.recipes.local_nde_regularisation import TINY

TIMES = np.array([0.0, 0.7, 2.0], np.float32)
LOOSE = {"rtol": 1e-3, "atol": 1e-3, "max_steps": 24}


def pendulum(t, y, rate):
    del t
    return jnp.stack([y[1], -rate * jnp.sin(y[0])])


def solve(key, train=True, rate=2.0, y0=(2.0, 0.0), **options):
    return recipe.odeint_locreg(
        pendulum, rate, jnp.array(y0), TIMES, key, train=train, **LOOSE, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
def test_the_states_are_those_of_the_plain_solve(sampling, key):
    expected, _ = ode.odeint(pendulum, 2.0, jnp.array([2.0, 0.0]), TIMES, **LOOSE)
    ys, penalty, _ = jax.jit(lambda key: solve(key, sampling=sampling))(key)
    np.testing.assert_allclose(ys, expected, atol=1e-5)
    assert penalty > 0


def test_in_evaluation_there_is_no_extra_step():
    plain = jax.make_jaxpr(
        lambda: ode.odeint(pendulum, 2.0, jnp.array([2.0, 0.0]), TIMES, **LOOSE)
    )()
    evaluated = jax.make_jaxpr(lambda: solve(None, train=False))()
    count = lambda jaxpr: str(jaxpr).count(" sin ")
    assert count(evaluated) == count(plain)
    trained = jax.make_jaxpr(lambda: solve(jax.random.key(0)))()
    assert count(trained) > count(plain)


@pytest.mark.parametrize("kind", ["error", "stiffness"])
def test_the_gradient_of_one_step_is_that_of_differences(kind):
    with jax.enable_x64(True):
        loss = lambda rate, y: recipe.local_error(
            pendulum, rate, y, 0.0, 0.3, rtol=1e-4, atol=1e-4, kind=kind
        )
        args = (jnp.array(2.0), jnp.array([1.0, 0.4]))
        check_grads(jax.jit(loss), args, 1, ("rev",), rtol=1e-4)


@pytest.mark.slow
def test_the_mean_over_random_times_is_the_average_over_a_grid(key):
    draws = 1000
    _, mean, _ = jax.jit(lambda key: solve(key, num_samples=draws, length="initial"))(
        key
    )
    grid = np.linspace(0.0, 2.0, 2001, dtype=np.float32)
    middle = jnp.asarray((grid[:-1] + grid[1:]) / 2)
    times = jnp.concatenate([jnp.zeros(1), middle, jnp.full(1, 2.0)])
    ys, _ = ode.odeint(pendulum, 2.0, jnp.array([2.0, 0.0]), np.asarray(times), **LOOSE)

    def one(t, y):
        h = ode.starting_step(pendulum, 2.0, t, y, 5, rtol=1e-3, atol=1e-3)
        h = jnp.minimum(h, 2.0 - t)
        return recipe.local_error(pendulum, 2.0, y, t, h, rtol=1e-3, atol=1e-3)

    dense = jax.vmap(one)(times[1:-1], ys[1:-1])
    error = jnp.std(dense) / np.sqrt(draws)
    assert abs(mean - jnp.mean(dense)) < 3 * error


@pytest.mark.slow
def test_the_biased_sampler_takes_only_the_solvers_own_times(key, monkeypatch):
    _, steps, stats = ode.odeint_steps(
        pendulum, 2.0, jnp.array([2.0, 0.0]), TIMES, **LOOSE
    )
    seen = []

    def spy(vf, params, y, t, h, **options):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return jnp.zeros(())

    monkeypatch.setattr(recipe, "local_error", spy)
    solve(key, sampling="biased", num_samples=40)
    jax.effects_barrier()
    accepted = np.asarray(steps.t[: int(stats.num_accepted)])
    assert len(seen) == 40
    assert set(np.float32(seen)) <= set(accepted)
    assert len(set(seen)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["local", "none", "global"])
def test_each_method_takes_its_step(method, key):
    data_key, init_key, step_key = jax.random.split(key, 3)
    data = recipe.two_rings(data_key, 8)
    model = recipe.local_nde_regularisation(TINY, method)
    state, metrics = jax.jit(model.step)(step_key, model.init(init_key), data)
    assert (metrics["penalty"] > 0) == (method != "none")
    assert metrics["finite"] == 1
    assert state.buffers == 1


@pytest.mark.slow
def test_the_experiment_gives_finite_numbers_from_a_tiny_setting(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert {"steps/none", "steps/local", "accuracy/global"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "even"}, 'sampling must be "unbiased" or "biased", got \'even\''),
        ({"kind": "norm"}, 'kind must be "error" or "stiffness", got \'norm\''),
        ({"length": "max"}, 'length must be "mean" or "initial", got \'max\''),
        ({"weight": -1.0}, "must be at least 0, got -1"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_wrong_solves_are_refused(key):
    with pytest.raises(ValueError, match="key must be given in training"):
        solve(None)
    with pytest.raises(ValueError, match="stores the steps and needs"):
        solve(key, sampling="biased", adjoint="backsolve")
    with pytest.raises(ValueError, match='method must be "local"'):
        recipe.local_nde_regularisation(TINY, "both")
