"""Search by sampling: known optima, broken costs, coloured noise, bad settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import plan

TARGET = jnp.array([[0.5, -0.3], [0.2, 0.9], [-0.7, 0.1]])


def bowl(x):
    return jnp.sum((x - TARGET) ** 2)


METHODS = {
    "cem": functools.partial(plan.cem, num=200, elites=20, iterations=15),
    "icem": functools.partial(
        plan.cem, num=200, elites=20, iterations=15, colour=1.0, keep=5
    ),
    "mppi": functools.partial(plan.mppi, num=200, iterations=60, temperature=0.1),
    "predictive_sampling": functools.partial(
        plan.predictive_sampling, num=200, iterations=60, knots=3
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_they_find_the_bottom_of_a_bowl(name, key):
    found = jax.jit(lambda key: METHODS[name](key, bowl, jnp.zeros((3, 2)), 0.5))(key)
    # Where the deviation stays, the search ends near the bottom.
    assert found.cost < {"mppi": 2e-2, "predictive_sampling": 0.2}.get(name, 1e-3)
    np.testing.assert_allclose(found.cost, bowl(found.x), rtol=1e-4, atol=1e-9)
    assert (np.diff(found.costs) <= 0).all()
    assert found.calls == METHODS[name].keywords["num"] * len(found.costs)


def test_random_shooting_returns_its_best_sample(key):
    found = plan.random_shooting(key, bowl, jnp.zeros((3, 2)), 1.0, num=64)
    assert found.cost == bowl(found.x)
    more = plan.random_shooting(
        jax.random.fold_in(key, 1), bowl, jnp.zeros((3, 2)), 1.0, num=4096
    )
    assert more.cost < found.cost


@pytest.mark.parametrize("name", METHODS)
def test_bounds_are_kept_and_nan_is_never_chosen(name, key):
    def cost(x):
        # better and better towards the right, where it breaks
        return jnp.where(x[0] > 0.3, jnp.nan, -x[0])

    run = functools.partial(METHODS[name], low=-1.0, high=1.0)
    if name == "predictive_sampling":
        run = functools.partial(run, knots=1)  # a single row has one
    found = jax.jit(lambda key: run(key, cost, jnp.zeros(1), 0.5))(key)
    assert np.isfinite(found.cost) and 0.25 < found.x[0] <= 0.3
    assert np.isfinite(found.mean).all()


def test_predictive_sampling_keeps_a_plan_that_no_change_betters(key):
    found = plan.predictive_sampling(key, bowl, TARGET, 0.5, num=64, knots=2)
    np.testing.assert_array_equal(found.x, TARGET)
    assert found.cost == 0


def test_changes_are_linear_between_knots(key):
    """The best of few knots: a line through time, or the same everywhere."""

    def run(knots):
        seen = lambda x: -jnp.abs(x).sum()  # any change is better than none
        return plan.predictive_sampling(
            key, seen, jnp.zeros((9, 2)), 1.0, num=4, knots=knots
        ).x

    assert np.ptp(run(1), axis=0).max() == 0
    bend = np.abs(np.diff(run(2), n=2, axis=0)).max()
    assert bend < 1e-6 < np.ptp(run(2), axis=0).min()
    corners = np.abs(np.diff(run(3), n=2, axis=0)).max(1) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(corners), [3])  # around row 4


def test_where_every_cost_is_broken_the_proposal_stays(key):
    found = plan.mppi(
        key, lambda x: jnp.nan, jnp.ones(2), 0.5, num=8, iterations=2, temperature=1.0
    )
    np.testing.assert_array_equal(found.mean, 1)
    assert found.cost == jnp.inf


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("length", [32, 33])
def test_noise_has_unit_variance_and_the_asked_colour(exponent, length, key):
    keys = jax.random.split(key, 4000)
    noise = jax.vmap(lambda k: plan.coloured_noise(k, (length, 2), exponent))(keys)
    assert float(jnp.var(noise)) == pytest.approx(1.0, rel=0.05)
    power = np.mean(np.abs(np.fft.rfft(noise, axis=1)) ** 2, (0, 2))
    frequencies = np.fft.rfftfreq(length)
    inner = slice(1, -1)
    slope = np.polyfit(np.log(frequencies[inner]), np.log(power[inner]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.05)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (dict(num=0), "num must be at least 1"),
        (dict(num=4, elites=5), r"elites must be in 1 \.\.\. 4"),
        (dict(iterations=0), "iterations must be at least 1"),
        (dict(keep=3), r"keep must be in 0 \.\.\. 2"),
    ],
)
def test_settings_without_sense_are_refused(call, match, key):
    options = {**dict(num=4, elites=2, iterations=1), **call}
    with pytest.raises(ValueError, match=match):
        plan.cem(key, bowl, jnp.zeros((3, 2)), 1.0, **options)


@pytest.mark.parametrize("knots", [0, 4])
def test_more_knots_than_rows_are_refused(knots, key):
    with pytest.raises(ValueError, match=r"knots must be in 1 \.\.\. 3"):
        plan.predictive_sampling(key, bowl, jnp.zeros((3, 2)), 1.0, num=4, knots=knots)


def test_a_cost_that_is_no_number_and_a_cold_softmax_are_refused(key):
    with pytest.raises(ValueError, match=r"one number per decision, got shape \(2,\)"):
        plan.random_shooting(key, lambda x: x, jnp.zeros(2), 1.0, num=4)
    with pytest.raises(ValueError, match="temperature must be positive"):
        plan.mppi(
            key, bowl, jnp.zeros((3, 2)), 1.0, num=4, iterations=1, temperature=0.0
        )
