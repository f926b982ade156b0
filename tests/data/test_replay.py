"""The ring gives back what was written, in windows of one episode."""

import functools
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm.data import replay, windows_at
from jaxwm.types import Transition

at = jax.jit(windows_at, static_argnums=4)

END = {"t": (0.0, False), "l": (1.0, True), ".": (1.0, False), "b": (0.0, True)}


def stream(ends, env=0):
    """Rows of one environment from a string of ends: t terminal, l time limit, b both.

    Every number names its environment and row, so a mixed window cannot hide.
    """
    row = np.arange(len(ends), dtype=np.float32)
    discount, truncated = np.array([END[c] for c in ends]).T
    obs = np.stack([np.full_like(row, env), row], -1)
    return Transition(
        obs={
            "x": obs,
            "image": np.broadcast_to(row[:, None, None], (row.size, 2, 2)).astype(
                np.uint8
            ),
        },
        action=obs + 0.25,
        reward=row + 1,
        discount=discount.astype(np.float32),
        truncated=truncated.astype(bool),
        next_obs={
            "x": obs + 0.5,
            "image": np.broadcast_to(row[:, None, None] + 1, (row.size, 2, 2)).astype(
                np.uint8
            ),
        },
        mask=np.ones_like(row),
        extras={
            "physics": {"q": obs + 0.75},
            "params": {"mass": row * 0 + env},
            "log_prob": -row,
        },
    )


def streams(ends):
    return jax.tree.map(
        lambda *x: np.stack(x), *[stream(e, n) for n, e in enumerate(ends)]
    )


def columns(rows, start, stop):
    return jax.tree.map(lambda x: jnp.asarray(x[:, start:stop]), rows)


def fill(ring, rows, writes, add=None):
    """Adds `writes` columns after one another; returns the buffer and the index."""
    add = add or jax.jit(ring.add)
    buffer = ring.init(jax.tree.map(lambda x: x[0, 0], rows))
    index = 0
    for num in writes:
        buffer = add(buffer, jnp.int32(index), columns(rows, index, index + num))
        index += num
    return buffer, index


def oracle(ends, index, capacity, row, window):
    """(first row, real rows, over) of the window at `row`, by walking the episode."""
    first, last = max(0, index - capacity), index - 1
    begin = row
    while begin > first and ends[begin - 1] == ".":
        begin -= 1
    end = row
    while end < last and ends[end] == ".":
        end += 1
    over = ends[end] in "tb"
    start = row if over else max(begin, min(row, end - window + 1))
    return start, min(window, end - start + 1), over


def check_window(got, ends, env, index, capacity, row, window):
    start, num, over = oracle(ends[env], index, capacity, row, window)
    rows = jax.tree.map(lambda x: x[start : start + num], stream(ends[env], env))
    np.testing.assert_array_equal(got.mask, np.arange(window) < num)
    real = jax.tree.map(lambda x: x[:num], got._replace(physics=None, extras={}))
    chex.assert_trees_all_equal(real.obs, rows.obs)
    chex.assert_trees_all_equal(real.action, rows.action)
    chex.assert_trees_all_equal(real.reward, rows.reward)
    chex.assert_trees_all_equal(real.discount, rows.discount)
    chex.assert_trees_all_equal(got.physics["q"], rows.extras["physics"]["q"][0])
    chex.assert_trees_all_equal(got.extras["params"]["mass"], np.float32(env))
    chex.assert_trees_all_equal(got.extras["next_obs"]["x"][:num], rows.next_obs["x"])
    chex.assert_trees_all_equal(got.extras["log_prob"][:num], rows.extras["log_prob"])
    assert got.obs["image"].dtype == np.uint8
    for j in range(num, window):  # padding
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x, j=j: x[j], got.obs),
            jax.tree.map(lambda x: x[-1], rows.next_obs),
        )
        chex.assert_trees_all_equal(got.extras["next_obs"]["x"][j], got.obs["x"][j])
        np.testing.assert_array_equal(got.action[j], rows.action[-1])
        assert got.reward[j] == 0
    # Whole windows never carry padding unless the episode really ended there.
    padding = got.discount[num:]
    assert np.all(padding == 0) if over else np.all(padding == 1)


CAPACITY = 7


@functools.cache
def jitted_ring():
    """The ring of the property test; writing does not depend on the window."""
    ring = replay(2, CAPACITY, 1)
    return ring, jax.jit(ring.add)


@functools.cache
def jitted(num_envs, window):
    """All windows of a buffer in one call: rows past the stored ones are ignored."""

    def all_windows(buffer, index):
        env, age = jnp.divmod(jnp.arange(num_envs * CAPACITY), CAPACITY)
        age = jnp.minimum(age, jnp.minimum(index, CAPACITY) - 1)
        return (
            env,
            index - 1 - age,
            windows_at(buffer, index, env, index - 1 - age, window),
        )

    return jax.jit(all_windows)


@st.composite
def histories(draw):
    """Two environments' ends, and how many columns each write brings."""
    writes = draw(
        st.lists(st.sampled_from([1, 2, 3, CAPACITY]), min_size=1, max_size=5)
    )
    total = sum(writes)
    ends = [
        "".join(
            draw(st.lists(st.sampled_from("....tlb"), min_size=total, max_size=total))
        )
        for _ in range(2)
    ]
    return ends, writes


@settings(max_examples=60, deadline=None)
@given(histories(), st.sampled_from([1, 3, 7]))
def test_every_window_is_one_episode_as_it_was_written(history, window):
    ends, writes = history
    ring, add = jitted_ring()
    buffer, index = fill(ring, streams(ends), writes, add)
    env, row, got = jax.device_get(jitted(2, window)(buffer, jnp.int32(index)))
    for i in range(env.size):
        one = jax.tree.map(lambda x, i=i: x[i], got)
        check_window(one, ends, env[i], index, CAPACITY, row[i], window)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "row", "real", "padding_discount"),
    [
        ("......", 1, [1, 2, 3], None),  # inside an episode
        (".t....", 0, [0, 1], 0),  # termination: padding
        ("t.....", 0, [0], 0),
        ("..l...", 2, [0, 1, 2], None),  # time limit: moved back
        (".l....", 1, [0, 1], 1),  # episode shorter than the window
        (".l.l..", 3, [2, 3], 1),  # moved back no further than its start
        ("..b...", 2, [2], 0),  # termination wins over the time limit
        ("......", 5, [3, 4, 5], None),  # the write head: moved back
        ("....t.", 5, [5], 1),  # the newest column begins an episode
        (".....t", 5, [5], 0),  # the newest column ends one
        ("l", 0, [0], 1),
    ],
)  # fmt: skip
def test_windows_by_hand(ends, row, real, padding_discount):
    rows = streams([ends])
    buffer, index = fill(replay(1, 6, 3), rows, [len(ends)])
    got = at(buffer, jnp.int32(index), jnp.array([0]), jnp.array([row]), 3)
    assert got.obs["x"][0, : len(real), 1].tolist() == real
    assert got.mask[0].tolist() == [1.0] * len(real) + [0.0] * (3 - len(real))
    if padding_discount is not None:
        assert set(got.discount[0, len(real) :].tolist()) == {padding_discount}


def test_overwritten_rows_are_gone_even_in_the_middle_of_their_episode():
    rows = streams(["." * 10])
    buffer, index = fill(replay(1, 6, 4), rows, [3, 3, 3, 1])
    # Rows 4 ... 9 are stored; a window at the newest row is moved back among them only.
    got = at(buffer, jnp.int32(index), jnp.array([0, 0]), jnp.array([4, 9]), 4)
    assert got.obs["x"][..., 1].tolist() == [[4, 5, 6, 7], [6, 7, 8, 9]]


def test_samples_are_uniform_over_environments_and_rows(key):
    ring = replay(3, 8, 1)
    buffer, index = fill(ring, streams(["." * 12] * 3), [4, 4, 4])
    got = jax.jit(ring.sample, static_argnums=3)(key, buffer, index, 24_000).obs["x"]
    env, row = np.asarray(got[:, 0]).astype(int).T
    counts = np.zeros((3, 12))
    np.add.at(counts, (env, row), 1)
    assert np.all(counts[:, :4] == 0)
    # Binomial with p = 1/24: mean 1000, standard deviation 31; five of them.
    assert np.all(np.abs(counts[:, 4:] - 1000) < 155)


def test_recency_favours_recent_rows_as_a_power_of_the_age(key):
    ring = replay(1, 100, 1)
    buffer, index = fill(ring, streams(["." * 100]), [100])
    sample = jax.jit(ring.sample, static_argnums=3)
    got = sample(key, buffer, index, 20_000, jnp.float32(2.0)).obs["x"][:, 0, 1]
    age = (99 - np.asarray(got)) / 100
    # P(u^2 < a) = sqrt(a); the standard error of each is below 0.004.
    for a in (0.04, 0.25, 0.81):
        assert abs(np.mean(age < a - 1e-6) - np.sqrt(a)) < 0.02


def test_an_empty_replay_returns_rows_that_are_masked(key):
    ring = replay(2, 6, 3)
    buffer = ring.init(jax.tree.map(lambda x: x[0], stream("...")))
    got = jax.jit(ring.sample, static_argnums=3)(key, buffer, jnp.int32(0), 5)
    assert not got.mask.any()
    assert not got.reward.any()


def test_seeds_share_the_index_under_vmap(key):
    """Batched buffers with one index equal a loop over seeds, inside a scan too."""
    ring = replay(2, 6, 3)
    rows = streams(["..t..l....t.", ".....t.....l"])
    both = jax.tree.map(lambda x: jnp.stack([x, x]), columns(rows, 0, 12))
    both = both._replace(reward=both.reward.at[1].add(100.0))
    example = jax.tree.map(lambda x: x[0], stream("."))

    def add_all(rows):
        def body(carry, i):
            buffer, index = carry
            piece = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, 4 * i, 4, 1), rows
            )
            return (ring.add(buffer, index, piece), index + 4), None

        return jax.lax.scan(body, (ring.init(example), jnp.int32(0)), jnp.arange(3))[0]

    batched = jax.jit(jax.vmap(add_all, out_axes=(0, None)))(both)
    for seed in range(2):
        one = jax.jit(add_all)(jax.tree.map(lambda x, seed=seed: x[seed], both))
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x, seed=seed: x[seed], batched[0]), one[0]
        )
    sample = jax.jit(jax.vmap(lambda k, b, i: ring.sample(k, b, i, 4), (0, 0, None)))
    got = sample(jax.random.split(key), *batched)
    assert got.reward.shape == (2, 4, 3)
    assert np.all(np.asarray(got.reward[1])[np.asarray(got.mask[1]) > 0] > 100)


def writes_of(capacity):
    """Twenty writes of two seeds in a compiled scan, and the rings to begin with."""
    ring = replay(4, capacity, 4)
    example = jax.tree.map(lambda x: x[0], stream("."))
    piece = columns(streams(["." * 8] * 4), 0, 8)

    def run(buffers):
        def body(carry, _):
            buffers, index = carry
            add = jax.vmap(ring.add, (0, None, None))
            return (add(buffers, index, piece), index + 8), None

        return jax.lax.scan(body, (buffers, jnp.int32(4)), length=20)[0][0]

    buffers = jax.vmap(lambda _: ring.init(example))(jnp.arange(2))
    return jax.jit(run, donate_argnums=0).lower(buffers).compile(), buffers


def test_writing_needs_neither_memory_nor_time_of_the_rings_size():
    run, buffers = writes_of(2048)
    stats = run.memory_analysis()
    size = sum(x.nbytes for x in jax.tree.leaves(buffers))
    assert stats.temp_size_in_bytes < size / 10
    assert stats.alias_size_in_bytes >= size

    def fastest(run, buffers):
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            buffers = jax.block_until_ready(run(buffers))
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    # 64 times the columns. One pass over the larger ring per write would take 64
    # times as long; in place both take about the same.
    assert fastest(*writes_of(2048 * 64)) < 8 * fastest(run, buffers)


def test_empty_leaves_are_kept_empty(key):
    """MuJoCo models without actuator states have an empty leaf in their physics."""
    ring = replay(1, 4, 2)
    rows = streams(["...."])
    rows = rows._replace(extras={"physics": {"act": np.zeros((1, 4, 0), np.float32)}})
    buffer, index = fill(ring, rows, [4])
    got = jax.jit(ring.sample, static_argnums=3)(key, buffer, jnp.int32(index), 3)
    assert got.physics["act"].shape == (3, 0)


def test_a_halfcheetah_step_takes_277_bytes():
    f = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    physics = (f(9), f(9), f(0), f(9))
    example = Transition(
        f(17),
        f(6),
        f(),
        f(),
        jax.ShapeDtypeStruct((), bool),
        f(17),
        f(),
        {"physics": physics},
    )
    buffer = jax.eval_shape(replay(8, 125_000, 10).init, example)
    stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(buffer))
    assert stored == 277 * 1_000_000


@pytest.mark.filterwarnings("ignore")  # flashbax and what it imports
@pytest.mark.parametrize("writes", [2, 6])
def test_windows_without_episode_ends_are_those_of_flashbax(key, writes):
    """Same rows in, same set of windows out, before and after the ring wraps."""
    flashbax = pytest.importorskip("flashbax")
    rows = streams(["." * 18] * 2)
    ring = replay(2, 12, 4)
    buffer, index = fill(ring, rows, [3] * writes)
    theirs = flashbax.make_trajectory_buffer(
        add_batch_size=2,
        sample_batch_size=1000,
        sample_sequence_length=4,
        period=1,
        min_length_time_axis=4,
        max_length_time_axis=12,
    )
    state = theirs.init({"obs": jnp.zeros(2)})
    for i in range(writes):
        piece = columns(rows, 3 * i, 3 * i + 3)
        state = theirs.add(state, {"obs": piece.obs["x"]})
    with jax.debug_key_reuse(False):  # its sampling reuses a key
        want = jax.jit(theirs.sample)(state, key).experience["obs"]
    got = jax.jit(ring.sample, static_argnums=3)(key, buffer, jnp.int32(index), 1000)
    windows = lambda obs: {tuple(w.ravel()) for w in np.asarray(obs)}
    assert windows(got.obs["x"]) == windows(want)
    assert got.mask.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 8, 2), "num_envs"), ((1, 8, 0), "window"), ((1, 3, 4), "capacity")],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        replay(*arguments)


def test_rows_that_do_not_fit_are_refused(key):
    ring = replay(1, 6, 2)
    rows = streams(["." * 8])
    buffer, index = fill(ring, rows, [2])
    piece = columns(rows, 0, 2)
    with pytest.raises(
        ValueError, match=r"transitions\.reward must be float32\[1, 2\]"
    ):
        ring.add(buffer, index, piece._replace(reward=jnp.zeros((2, 2))))
    with pytest.raises(ValueError, match=r"transitions\.action .* got int32"):
        ring.add(buffer, index, piece._replace(action=piece.action.astype(jnp.int32)))
    with pytest.raises(ValueError, match="tree"):
        ring.add(buffer, index, piece._replace(extras={}))
    with pytest.raises(ValueError, match="capacity = 6 steps, got 8"):
        ring.add(buffer, index, columns(rows, 0, 8))
    with pytest.raises(ValueError, match="recency"):
        ring.sample(key, buffer, index, 2, recency=0)
