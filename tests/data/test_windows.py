"""Windows of a fixed dataset stay within its episodes."""

import jax
import numpy as np
import pytest

from jaxwm import data
from tests.data.episodes import episode

LENGTHS = (5, 1, 2, 7, 3)


def rows():
    """Even episodes end by termination, odd ones by the time limit."""
    return data.concatenate(
        [episode(i, n, i % 2 == 0, i % 2 == 1) for i, n in enumerate(LENGTHS)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3, 30])
def test_windows_lie_in_one_episode_and_pad_as_the_replay_does(key, window):
    source = data.windows(window)
    buffer = source.init(rows())
    got = jax.device_get(jax.jit(source.sample, static_argnums=2)(key, buffer, 400))
    seen = set()
    for i in range(400):
        name, start = got.obs[i, 0].astype(int)
        length, over = LENGTHS[name], name % 2 == 0
        num = int(got.mask[i].sum())
        seen.add((name, start))
        assert np.all(got.mask[i, :num] == 1)
        assert np.all(got.obs[i, :, 0] == name)
        steps = np.minimum(start + np.arange(window), length)
        np.testing.assert_array_equal(got.obs[i, :, 1], steps)
        assert num == min(window, length - start)
        if not over:  # moved back as far as possible
            assert start == 0 or num == window
        assert np.all(got.reward[i, num:] == 0)
        assert np.all(got.discount[i, num:] == (0 if over else 1))
        np.testing.assert_array_equal(got.physics["q"][i], [name + 0.5, start + 0.5])
    if window == 1:
        assert len(seen) == sum(LENGTHS)


def test_rows_are_drawn_uniformly(key):
    source = data.windows(1)
    got = jax.jit(source.sample, static_argnums=2)(key, source.init(rows()), 18_000)
    name, step = np.asarray(got.obs[:, 0]).astype(int).T
    counts = np.unique(name * 10 + step, return_counts=True)[1]
    # Mean 1000, standard deviation 31.
    assert len(counts) == 18
    assert np.all(np.abs(counts - 1000) < 155)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        data.windows(0)
    broken = rows()
    broken.obs[6, 0] = np.nan
    with pytest.raises(ValueError, match="episode 2, row 0: obs is not finite"):
        data.windows(3).init(broken)
