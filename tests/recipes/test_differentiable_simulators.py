"""Facts that the recipe's numbers rest on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.recipes import differentiable_simulators as recipe


@pytest.fixture(scope="module")
def env():
    return recipe.differentiable_simulators()


def test_the_task_is_as_described(env, key):
    assert env.spec.control_dt == pytest.approx(1 / 60)
    assert env.spec.time_limit == 240 and env.spec.obs.shape == (5,)
    state = env.reset(key, None)
    assert abs(state.physics.q[1] - np.pi) <= 0.3
    after = jax.jit(env.step)(jax.random.fold_in(key, 1), state, jnp.array([1.0]))
    # 10 N on 1.1 kg, the pole hanging nearly still
    assert float(after.physics.v[0]) == pytest.approx(10 / 1.025 / 60, rel=0.1)
    theta = (after.physics.q[1] + np.pi) % (2 * np.pi) - np.pi
    (x, _), (speed, spin) = after.physics
    expected = theta**2 + 0.01 * spin**2 + 0.45 * np.tanh(x**2 / 9) + 0.01 * speed**2
    np.testing.assert_allclose(after.reward, -expected, rtol=1e-5)


@pytest.mark.slow
def test_a_cart_that_runs_away_still_has_a_gradient(env, key):
    start = env.reset(key, None)
    far = start.physics._replace(q=start.physics.q.at[0].set(10.0))
    reward = lambda action: (
        env.step(jax.random.fold_in(key, 1), env.reset_to(far, None), action).reward
    )
    assert np.abs(jax.grad(reward)(jnp.zeros(1))).max() > 0
    assert np.abs(env.reset_to(far, None).obs).max() <= 1


@pytest.mark.slow
def test_every_number_of_the_experiment_is_finite():
    metrics = jax.jit(lambda key: recipe.experiment(key, recipe.TINY))(
        jax.random.key(0)
    )
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics["slope/time_of_impact"] == pytest.approx(-1, abs=1e-3)
    assert metrics["slope/impulse"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"starts": 0}, "starts must be at least 1, got 0"),
        ({"calls": 79}, "calls must be at least 80, two rounds of search"),
        ({"evaluations": 7}, "evaluations must divide iterations = 600, got 7"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(recipe.Config(), **change)
