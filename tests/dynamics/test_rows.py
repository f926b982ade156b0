"""Windows give the transitions that happened, and statistics of those alone."""

import jax
import numpy as np
import pytest
import quick

from jaxwm.dynamics import rows
from jaxwm.types import Box, Discrete, Trajectory, Transition

BOX = Box((-1.0,), (2.0,))


def window(mask, discount, **extras):
    """A window whose observation at row t is (t, 10 t)."""
    t = np.arange(len(mask), dtype=np.float32)
    obs = np.stack([t, 10 * t], -1)
    action, reward = 100 + t[:, None], 1000 + t
    return Trajectory(
        obs, action, reward, np.array(discount), np.array(mask), dict(extras)
    )


def test_each_row_but_the_last_leads_to_the_next():
    data = rows.transitions_of(window([1.0, 1, 1], [1.0, 1, 1]))
    np.testing.assert_array_equal(data.obs[:, 0], [0, 1])
    np.testing.assert_array_equal(data.next_obs[:, 0], [1, 2])
    np.testing.assert_array_equal(data.action[:, 0], [100, 101])
    np.testing.assert_array_equal(data.reward, [1000, 1001])
    np.testing.assert_array_equal(data.valid, [1, 1])


def test_the_step_into_a_termination_counts_and_padding_does_not():
    data = rows.transitions_of(window([1.0, 1, 0, 0], [1.0, 0, 0, 0]))
    np.testing.assert_array_equal(data.valid, [1, 1, 0])


def test_the_step_across_a_time_limit_does_not_count():
    data = rows.transitions_of(window([1.0, 1, 0, 0], [1.0, 1, 1, 1]))
    np.testing.assert_array_equal(data.valid, [1, 0, 0])


def test_stored_next_observations_make_every_row_a_transition():
    after = np.full((3, 2), 7.0)
    data = rows.transitions_of(window([1.0, 1, 0], [1.0, 0, 0], next_obs=after))
    np.testing.assert_array_equal(data.next_obs, after)
    np.testing.assert_array_equal(data.valid, [1, 1, 0])


def test_one_row_without_a_next_observation_is_refused():
    with pytest.raises(ValueError, match="at least 2 rows"):
        rows.transitions_of(window([1.0], [1.0]))


def test_actions_are_clipped_to_a_box_and_left_alone_when_discrete():
    action = np.array([-3.0, 0.5, 9.0])[:, None]
    np.testing.assert_array_equal(rows.clip_action(BOX, action)[:, 0], [-1, 0.5, 2])
    assert rows.clip_action(Discrete(4), action) is action


@quick.jit
def learn(data):
    return rows.update_statistics(rows.no_statistics(2, 1), data, BOX)


def transitions(num):
    draw = np.random.default_rng(0)
    obs = 100 + 0.01 * draw.normal(size=(num, 2))
    next_obs = obs + 0.001 * draw.normal(size=(num, 2))
    action, ones = draw.normal(size=(num, 1)), np.ones(num)
    data = Transition(obs, action, 5 + action[:, 0], ones, ones < 0, next_obs, ones, {})
    return jax.tree.map(lambda x: x.astype(np.float32), data)


def test_targets_are_normalised_and_decoded_back():
    data = transitions(200)
    steps = rows.Transitions(*data[:4], data.next_obs, data.mask)
    statistics = learn(data)
    y = rows.encode_target(statistics, steps)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-2)
    next_obs, reward = rows.decode_target(statistics, data.obs, y)
    np.testing.assert_allclose(next_obs, data.next_obs, atol=2e-5)
    np.testing.assert_allclose(reward, data.reward, rtol=1e-5)
    x = rows.encode(statistics, data.obs, data.action, BOX)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-2)


def test_padding_does_not_enter_the_statistics():
    data = transitions(50)
    padded = jax.tree.map(lambda x: np.concatenate([x, 9 * x[:10]]), data)
    padded.mask[50:] = 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        learn(data),
        learn(padded),
    )


@pytest.mark.parametrize("lead", [(4, 1), (2, 3, 5)])
def test_recordings_become_one_batch_in_their_order(lead):
    count = np.arange(np.prod(lead), dtype=np.float32).reshape(lead)
    obs, none = np.stack([count, -count], -1), np.zeros((*lead, 0), np.float32)
    extras = {"next_obs": obs + 1, "other": count}
    batch = rows.merged(Trajectory(obs, none, count, 1 - count, count > 1, extras))
    np.testing.assert_array_equal(batch.reward, np.arange(count.size))
    np.testing.assert_array_equal(batch.obs[:, 1], -batch.reward)
    np.testing.assert_array_equal(batch.next_obs[:, 0], batch.reward + 1)
    np.testing.assert_array_equal(batch.discount, 1 - batch.reward)
    np.testing.assert_array_equal(batch.mask, batch.reward > 1)
    assert batch.action.shape == (count.size, 0) and batch.extras == {}
    assert batch.truncated.dtype == bool and not batch.truncated.any()
