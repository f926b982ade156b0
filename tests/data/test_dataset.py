"""Datasets in memory: episodes in, episodes out, and to and from a replay."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import data
from tests.data.episodes import episode


def test_episodes_come_back_one_by_one():
    episodes = [episode(0, 3), episode(1, 1, False, True), episode(2, 5)]
    rows = data.concatenate(episodes)
    assert len(rows.reward) == 9
    for got, want in zip(data.split_episodes(rows), episodes, strict=True):
        chex.assert_trees_all_equal(got, want)


def test_an_episode_that_does_not_end_is_marked_truncated():
    rows = data.concatenate([episode(0, 3, terminal=False), episode(1, 2)])
    np.testing.assert_array_equal(rows.truncated, [0, 0, 1, 0, 0])


@pytest.mark.parametrize("writes", [2, 3, 5])
def test_a_replay_becomes_a_dataset_of_its_stored_rows(writes):
    """With 5 writes of 2 columns the ring of 6 has lost the first 4."""
    ring = data.replay(2, 6, 2)
    streams = [
        data.concatenate([episode(0, 3), episode(1, 7)]),
        data.concatenate([episode(2, 5, False, True), episode(3, 5)]),
    ]
    rows = jax.tree.map(lambda *x: jnp.stack(x), *streams)
    buffer = ring.init(jax.tree.map(lambda x: x[0, 0], rows))
    add = jax.jit(ring.add)
    for i in range(writes):
        piece = jax.tree.map(lambda x, i=i: x[:, 2 * i : 2 * i + 2], rows)
        buffer = add(buffer, jnp.int32(2 * i), piece)
    got = data.from_replay(buffer, 2 * writes)
    kept = slice(max(0, 2 * writes - 6), 2 * writes)
    want = [jax.tree.map(lambda x: x[kept], stream) for stream in streams]
    chex.assert_trees_all_equal(got, data.concatenate(want))


def test_a_dataset_becomes_a_replay_with_the_same_windows(key):
    rows = data.concatenate([episode(i, 3 + i % 4) for i in range(8)])
    buffer, index = data.to_replay(rows, num_envs=2, capacity=40)
    total = len(rows.reward)
    assert index == total // 2
    kept = jax.tree.map(lambda x: x[: total // 2 * 2], data.from_replay(buffer, index))
    # Equal but for the episode that the cut between both streams ended.
    before = jax.tree.map(lambda x: x[: total // 2 * 2], rows)
    cut = total // 2 - 1
    assert kept.truncated[cut] or kept.discount[cut] == 0
    chex.assert_trees_all_equal(
        kept._replace(truncated=None), before._replace(truncated=None)
    )
    ring = data.replay(2, 40, 4)
    got = jax.jit(ring.sample, static_argnums=3)(key, buffer, index, 50)
    assert np.all((np.diff(got.obs[..., 0], axis=1) == 0) | (got.mask[:, 1:] == 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e._replace(obs=np.where(e.obs == 2, np.nan, e.obs)),
            "episode 1, row 2: obs is not finite",
        ),
        (
            lambda e: e._replace(next_obs=np.where(e.next_obs == 1, np.inf, 0)),
            "episode 1, row 0: next_obs",
        ),
        (
            lambda e: e._replace(reward=e.reward * np.nan),
            "episode 1, row 0: reward",
        ),
        (lambda e: e._replace(action=e.action[:2]), "episode 1: action must have .* 3"),
        (
            lambda e: e._replace(extras={"physics": {"q": np.zeros(())}}),
            "episode 1: extras/physics/q",
        ),
        (
            lambda e: jax.tree.map(lambda x: x[:0], e),
            "episode 1 must have at least one",
        ),
    ],
)
def test_bad_rows_are_named(change, message):
    first = episode(0, 3)
    first = first._replace(obs=first.obs + 10)
    with pytest.raises(ValueError, match=message):
        data.concatenate([first, change(episode(1, 3))])


def test_nothing_and_too_much_are_refused():
    with pytest.raises(ValueError, match="at least one episode"):
        data.concatenate([])
    rows = data.concatenate([episode(0, 9)])
    with pytest.raises(ValueError, match=r"capacity = 4 columns .* capacity >= 9"):
        data.to_replay(rows, 1, 4)
    with pytest.raises(ValueError, match="num_envs <= 9"):
        data.to_replay(rows, 10, 4)
    buffer, _ = data.to_replay(rows, 1, 9)
    with pytest.raises(ValueError, match="index must be at least 1"):
        data.from_replay(buffer, 0)
