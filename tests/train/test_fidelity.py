"""Trajectory error against hand values, and z statistics of known samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.core import dists
from jaxwm.train import fidelity
from tests.train import walk

# --- trajectory error


def judge(key, env, *data, **options):
    """`trajectory_error` as it is used: compiled."""
    program = lambda key, *data: fidelity.trajectory_error(key, env, *data, **options)
    return jax.jit(program)(key, *data)


def test_a_perfect_model_has_no_error_and_persistence_its_hand_value(key):
    # x = 0, .5, 1 and x = 1, 1.5, 2: after k steps the entries x and 2 x have moved by
    # k / 2 and k, so persistence is (k^2 / 4 + k^2) / 2.
    start = jnp.array([0.0, 1.0])
    x = start[:, None] + 0.5 * jnp.arange(3)
    obs = jnp.stack([x, 2 * x], -1)
    imagined = walk.rollouts(obs, jnp.full((2, 3, 1), 0.5), 10 + x)
    error = judge(key, walk.make(), imagined, start)
    np.testing.assert_allclose(error.mse, 0, atol=1e-12)
    np.testing.assert_allclose(error.normalised, 0, atol=1e-12)
    np.testing.assert_allclose(error.reward_mse, 0, atol=1e-12)
    np.testing.assert_allclose(error.persistence, [0, 0.625, 2.5], rtol=1e-6)
    np.testing.assert_array_equal(error.count, [2, 2, 2])
    metrics = error.metrics()
    assert metrics["error/ratio"] == 0
    np.testing.assert_allclose(metrics["error/persistence"], error_ratio(x), rtol=1e-5)


def error_ratio(x):
    """Mean over k of persistence, both entries in units of their own variance."""
    return float((((x - x[:, :1]) ** 2).mean(0) / x.var())[1:].mean())


def test_errors_are_means_over_entries_and_spread_over_trajectories(key):
    start = jnp.array([0.0, 1.0])
    x = start[:, None] + jnp.zeros(3)
    off = jnp.array([[0, 1.0, 2.0], [0, 3.0, 4.0]])
    obs = jnp.stack([x + off, 2 * x], -1)  # only the first entry is wrong
    imagined = walk.rollouts(
        obs, jnp.zeros((2, 3, 1)), 10 + x + jnp.array([1.0, 0, 3.0])
    )
    error = judge(key, walk.make(), imagined, start, variance=jnp.array([4.0, 1.0]))
    np.testing.assert_allclose(error.mse, [0, (0.5 + 4.5) / 2, (2 + 8) / 2])
    np.testing.assert_allclose(error.std, [0, 2, 3])
    np.testing.assert_allclose(error.normalised, error.mse / 4)
    np.testing.assert_allclose(error.normalised_std, error.std / 4)
    np.testing.assert_allclose(error.reward_mse, [1, 0, 9])


def test_imagined_actions_are_clipped_before_the_replay(key):
    x = jnp.array([[0.0, 1.0, 2.0]])
    imagined = walk.rollouts(jnp.stack([x, 2 * x], -1), jnp.full((1, 3, 1), 7.0))
    error = judge(key, walk.make(), imagined, jnp.zeros(1))
    np.testing.assert_allclose(error.mse, 0, atol=1e-12)


def test_rows_behind_a_true_termination_do_not_count(key):
    # The second start reaches the end at its first step; what was imagined behind it,
    # however wrong, is left out.
    start = jnp.array([0.0, 2.5])
    x = start[:, None] + 0.5 * jnp.arange(4)
    x = x.at[1, 1:].set(jnp.nan)
    imagined = walk.rollouts(jnp.stack([x, 2 * x], -1), jnp.full((2, 4, 1), 0.5))
    error = judge(key, walk.make(), imagined, start)
    np.testing.assert_array_equal(error.count, [2, 1, 1, 1])
    np.testing.assert_allclose(error.mse, 0, atol=1e-12)
    np.testing.assert_allclose(error.std, 0, atol=1e-12)
    alone = judge(
        key,
        walk.make(),
        jax.tree.map(lambda leaf: leaf[1:], imagined),
        start[1:],
    )
    np.testing.assert_array_equal(alone.count, [1, 0, 0, 0])
    assert np.isnan(alone.mse[1:]).all()
    assert all(np.isfinite(v) for v in alone.metrics().values())


def test_the_replay_ignores_the_clock_and_uses_stored_factors(key):
    row = fidelity.replay(
        key,
        walk.make(end=99.0),
        jnp.float32(1.0),
        {"gain": jnp.float32(2.0)},
        jnp.full((6, 1), 0.5),
    )
    np.testing.assert_array_equal(row.obs[:, 0], [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(row.reward, [11, 12, 13, 14, 15, 16])
    np.testing.assert_array_equal(row.mask, np.ones(6))


def test_a_constant_entry_stays_in_raw_units(key):
    x = jnp.zeros((1, 3))
    imagined = walk.rollouts(jnp.stack([x + 2, 2 * x], -1), jnp.zeros((1, 3, 1)))
    error = judge(key, walk.make(), imagined, jnp.zeros(1))
    np.testing.assert_allclose(error.normalised, [2, 2, 2])


def test_images_and_nested_observations_are_compared_entry_by_entry(key):
    flat = walk.make()

    def nest(state):
        image = jnp.full((2, 2), 10 * state.physics).astype(jnp.uint8)
        return state._replace(obs={"image": image, "x": state.obs})

    env = flat._replace(
        reset_to=lambda physics, params: nest(flat.reset_to(physics, params)),
        step=lambda key, state, action: nest(flat.step(key, state, action)),
    )
    x = jnp.array([[0.0, 1.0]])
    obs = {
        "image": jnp.zeros((1, 2, 2, 2), jnp.uint8),
        "x": jnp.stack([x, 2 * x], -1),
    }
    imagined = walk.rollouts(obs["x"], jnp.ones((1, 2, 1)))._replace(obs=obs)
    error = judge(key, env, imagined, jnp.zeros(1))
    np.testing.assert_allclose(error.mse, [0, 4 * 100 / 6], rtol=1e-6)


def test_trajectory_error_refuses_what_it_cannot_compare(key):
    imagined = walk.rollouts(jnp.zeros((2, 3, 2)), jnp.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match=r"one row for each of 2 rollouts.*\(3,\)"):
        fidelity.trajectory_error(key, walk.make(), imagined, jnp.zeros(3))
    with pytest.raises(ValueError, match="imagines features only"):
        fidelity.trajectory_error(
            key, walk.make(), imagined._replace(obs=None), jnp.zeros(2)
        )


def test_trajectory_error_is_the_same_without_jit(key):
    imagined = walk.rollouts(jnp.ones((2, 3, 2)), jnp.full((2, 3, 1), 0.3))
    start = jnp.zeros(2)
    plain = fidelity.trajectory_error(key, walk.make(), imagined, start)
    for a, b in zip(plain, judge(key, walk.make(), imagined, start), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# --- on-policy statistics


def policy(feature):
    return dists.Normal(feature[:2] * 3, jnp.array([0.5, 2.0]))


def sampled(key, num, horizon, scale=1.0):
    feature_key, noise_key = jax.random.split(key)
    feature = jax.random.normal(feature_key, (num, horizon, 4))
    dist = jax.vmap(jax.vmap(policy))(feature)
    noise = jax.random.normal(noise_key, dist.mean.shape)
    return walk.rollouts(feature, dist.mean + scale * dist.stddev * noise)


def test_samples_of_the_policy_have_standard_z(key):
    z = fidelity.on_policy(sampled(key, 2000, 6), policy)
    # 10,000 draws a dimension: 0.01 is one standard error.
    np.testing.assert_allclose(z.mean, [0, 0], atol=0.05)
    np.testing.assert_allclose(z.std, [1, 1], atol=0.04)


def test_z_shows_wide_and_shifted_actions(key):
    wide_key, shifted_key = jax.random.split(key)
    z = fidelity.on_policy(sampled(wide_key, 500, 6, scale=3.0), policy)
    np.testing.assert_allclose(z.std, [3, 3], rtol=0.06)
    imagined = sampled(shifted_key, 500, 6)
    imagined = imagined._replace(action=imagined.action + jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(
        fidelity.on_policy(imagined, policy).mean, [1, 1], atol=0.1
    )


def test_the_last_step_is_left_out(key):
    imagined = sampled(key, 8, 3)
    spoilt = imagined._replace(action=imagined.action.at[:, -1].set(1e6))
    for a, b in zip(
        fidelity.on_policy(imagined, policy),
        fidelity.on_policy(spoilt, policy),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_on_policy_refuses_one_step(key):
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        fidelity.on_policy(sampled(key, 2, 1), policy)


def test_on_policy_refuses_discrete_actions(key):
    with pytest.raises(ValueError, match="Categorical without `stddev`"):
        fidelity.on_policy(sampled(key, 2, 3), dists.Categorical)
