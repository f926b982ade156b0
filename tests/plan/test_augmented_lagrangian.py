"""Constraints around any planner: optima and multipliers that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm import plan

# min |x - (2, 1)|^2 where x_1 + x_2 <= 1 and x_2 >= 0: at (1, 0) both bind, and
# (-2, -2) + l (1, 1) + m (0, -1) = 0 gives the multipliers 2 and 0.
BOTTOM = jnp.array([2.0, 1.0])


def problem(x):
    g = jnp.stack([x[0] + x[1] - 1, -x[1], x[0] - 10])
    return jnp.sum((x - BOTTOM) ** 2), g


def descend(i, cost, x):
    return plan.descent(cost, x, optax.adam(0.05), steps=150).x


def sample(key, i, cost, x):
    key = jax.random.fold_in(key, i)
    return plan.cem(key, cost, x, 0.5, num=128, elites=16, iterations=12).x


def test_around_descent_it_finds_the_optimum_and_its_multipliers():
    run = lambda start: plan.augmented_lagrangian(
        descend, problem, start, rounds=12, penalty=1.0, growth=2.0, tolerance=1e-3
    )
    found = jax.jit(run)(jnp.zeros(2))
    np.testing.assert_allclose(found.x, [1.0, 0.0], atol=5e-3)
    np.testing.assert_allclose(found.multipliers, [2.0, 0.0, 0.0], atol=0.05)
    assert found.violation <= 1e-3
    np.testing.assert_allclose(found.cost, problem(found.x)[0])


def test_around_sampling_it_finds_the_same_point(key):
    run = lambda key: plan.augmented_lagrangian(
        functools.partial(sample, key), problem, jnp.zeros(2), rounds=8, penalty=10.0
    )
    found = jax.jit(run)(key)
    assert found.violation == 0
    np.testing.assert_allclose(found.x, [1.0, 0.0], atol=0.05)


def test_a_start_is_kept_unless_something_better_is_found():
    worse = lambda i, cost, x: x + 1.0
    run = functools.partial(plan.augmented_lagrangian, rounds=2)
    allowed = run(worse, problem, jnp.array([0.4, 0.1]))
    np.testing.assert_allclose(allowed.x, [0.4, 0.1])
    assert allowed.violation == 0 and (allowed.violations > 0).all()
    # cheaper, but not allowed
    bribe = run(lambda i, cost, x: BOTTOM, problem, jnp.zeros(2))
    np.testing.assert_array_equal(bribe.x, 0)
    # nothing is allowed: the least violation counts
    never = lambda x: (x[0], jnp.array([1.0, 0.0]) + jnp.square(x[:1] - 3))
    nearest = run(lambda i, cost, x: x + 1.0, never, jnp.zeros(2))
    np.testing.assert_array_equal(nearest.x, 2.0)
    assert nearest.violation == 3.0


def test_the_penalty_rises_only_where_a_round_did_not_help():
    stay = lambda i, cost, x: x
    halve = lambda i, cost, x: x / 4
    outside = lambda x: (0.0 * x[0], x)
    run = functools.partial(
        plan.augmented_lagrangian, rounds=3, penalty=2.0, growth=3.0
    )
    stuck = run(stay, outside, jnp.ones(1))
    assert stuck.penalty == 2.0 * 3**3
    assert stuck.multipliers[0] == 2.0 + 6.0 + 18.0
    assert run(halve, outside, jnp.ones(1)).penalty == 2.0


def test_constraints_that_are_not_finite_forbid_a_decision(key):
    def broken(x):
        return -x[0], jnp.where(x > 0.5, jnp.nan, -1.0)

    run = lambda key: plan.augmented_lagrangian(
        functools.partial(sample, key), broken, jnp.zeros(1), rounds=2
    )
    found = jax.jit(run)(key)
    assert 0.45 < found.x[0] <= 0.5 and np.isfinite(found.multipliers).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"penalty": 0.0}, "penalty must be positive, got 0.0"),
        ({"growth": 0.5}, "growth must be at least 1, got 0.5"),
        ({"tolerance": -1.0}, "tolerance must not be negative, got -1.0"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        plan.augmented_lagrangian(
            descend, problem, jnp.zeros(2), **{"rounds": 1, **change}
        )


def test_constraints_that_are_no_vector_are_refused():
    with pytest.raises(ValueError, match=r"vector of constraints, got shapes \(\) and"):
        plan.augmented_lagrangian(
            descend, lambda x: (x[0], x[1]), jnp.zeros(2), rounds=1
        )
