"""Minari datasets: round trips, the installed minari package, and damaged files."""

import json
import random
import shutil
import sys
from typing import NamedTuple

import chex
import jax
import numpy as np
import pytest

from jaxwm import data
from jaxwm.data import minari
from jaxwm.types import Box, Discrete, EnvSpec, Transition
from tests.data.episodes import episode

h5py = pytest.importorskip("h5py")


class Body(NamedTuple):
    """A simulator state of three parts, one of them empty as in MuJoCo."""

    q: np.ndarray
    act: np.ndarray
    v: np.ndarray


def rich_episode(name, num, **ends):
    """With a named tuple as physics, parameters, and images beside the vector."""
    e = episode(name, num, **ends)
    images = np.random.default_rng(name).integers(0, 255, (num + 1, 4, 4, 3), np.uint8)
    body = Body(e.obs + 0.5, np.zeros((num, 0), np.float32), -e.obs)
    return e._replace(
        obs={"vector": e.obs, "camera": images[:-1]},
        next_obs={"vector": e.next_obs, "camera": images[1:]},
        extras={"physics": body, "params": {"mass": e.reward * 0 + name}},
    )


def spec(action=None):
    box = action or Box((-1.0,), (2.0,))
    return EnvSpec("toy", jax.ShapeDtypeStruct((2,), np.float32), box, 0.1, 50)


@pytest.fixture
def saved(tmp_path):
    """Three small episodes on disk, and their rows."""
    rows = data.concatenate(
        [episode(0, 4), episode(1, 3, False, True), episode(2, 6, True, True)]
    )
    return minari.save(tmp_path / "toy", rows, spec=spec()), rows


def damage(path, change, *, manifest=False):
    """Changes main_data.hdf5 by hand, and drops the manifest that would notice."""
    folder = path / "data"
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        change(file)
    if not manifest:
        (folder / "manifest.json").unlink()


def test_what_is_saved_is_loaded(saved):
    path, rows = saved
    chex.assert_trees_all_equal(minari.load(path), rows)
    for place in (path / "data", path / "data" / "main_data.hdf5", str(path)):
        chex.assert_trees_all_equal(minari.load(place), rows)


def test_nested_observations_and_simulator_states_come_back(tmp_path):
    rows = data.concatenate([rich_episode(0, 3), rich_episode(1, 5)])
    path = minari.save(tmp_path / "toy", rows, spec=spec())
    chex.assert_trees_all_equal(minari.load(path, like=rows.extras), rows)
    plain = minari.load(path)
    np.testing.assert_array_equal(
        plain.extras["physics"]["q"], rows.extras["physics"].q
    )
    assert minari.load(path, extras=()).extras == {}


def test_episodes_are_written_and_read_one_at_a_time(tmp_path):
    """Neither side runs ahead: at most one episode is alive between both."""
    alive = []

    def episodes():
        for i in range(4):
            assert len(alive) == i  # the one before has been written
            alive.append(i)
            yield episode(i, 3)

    path = minari.save(tmp_path / "toy", episodes(), spec=spec())
    reader = minari.read(path)
    assert iter(reader) is reader
    for i, got in enumerate(reader):
        chex.assert_trees_all_equal(got, episode(i, 3))


def test_a_dataset_that_is_too_large_for_memory_is_refused(saved):
    path, rows = saved
    size = sum(x.nbytes for x in jax.tree.leaves(rows))
    minari.load(path, max_bytes=size)
    with pytest.raises(ValueError, match=r"max_bytes allows .* minari\.read"):
        minari.load(path, max_bytes=size - 1)
    with pytest.raises(ValueError, match=r"episode 0 holds .* max_bytes"):
        next(minari.read(path, max_bytes=10))


def test_a_huge_array_is_refused_before_memory_is_taken(saved):
    path, _ = saved

    def change(file):
        del file["episode_1/actions"]
        file["episode_1"].create_dataset(
            "actions", (10**9, 10**3), "f8", compression="gzip", chunks=(100, 100)
        )

    damage(path, change)
    with pytest.raises(ValueError, match=r"episode 1 holds 7450\.58 GiB"):
        minari.load(path)


def test_an_array_that_unpacks_to_far_more_than_it_is_is_refused(saved):
    path, _ = saved

    def change(file):
        del file["episode_1/observations"]
        file["episode_1"].create_dataset(
            "observations", (4, 10**8), "u1", chunks=(1, 10**6), compression="gzip"
        )

    damage(path, change)
    with pytest.raises(ValueError, match=r"episode 1 unpacks from 0\.0 to 381 MiB"):
        minari.load(path)


def test_inspection_says_what_a_dataset_holds(saved):
    path, _ = saved
    got = minari.inspect(path)
    assert json.loads(json.dumps(got)) == got
    assert got["name"] == "toy-v0"
    assert (got["episodes"], got["steps"]) == (3, 13)
    assert (got["terminated"], got["truncated"]) == (2, 1)
    assert got["length"] == {"min": 3, "mean": 13 / 3, "max": 6}
    assert got["return"] == {"min": 6.0, "mean": (10 + 6 + 21) / 3, "max": 21.0}
    assert got["observation_space"]["shape"] == [2]
    assert (got["action_space"]["low"], got["action_space"]["high"]) == ([-1], [2])
    assert got["infos"] == ["physics"]
    assert got["verified"] is True
    assert minari.inspect(path, verify=False)["verified"] is None


def test_a_world_model_can_train_from_a_file_alone(saved, key):
    path, _ = saved
    source = data.windows(3)
    sample = jax.jit(source.sample, static_argnums=2)
    got = sample(key, source.init(minari.load(path)), 8)
    assert got.obs.shape == (8, 3, 2)
    assert got.physics["q"].shape == (8, 2)


@pytest.mark.filterwarnings("ignore")  # minari asks for authors and permalinks
def test_minari_reads_what_is_saved(tmp_path, monkeypatch):
    package = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rows = data.concatenate([rich_episode(0, 3), rich_episode(1, 5, terminal=False)])
    minari.save(
        tmp_path / "toy" / "mixed-v3", rows, spec=spec(), dataset_id="toy/mixed-v3"
    )
    assert "toy/mixed-v3" in package.list_local_datasets()
    got = package.load_dataset("toy/mixed-v3")
    assert (got.total_episodes, got.total_steps) == (2, 8)
    np.testing.assert_array_equal(got.action_space.low, [-1])
    np.testing.assert_array_equal(got.action_space.high, [2])
    for theirs, ours in zip(
        got.iterate_episodes(), data.split_episodes(rows), strict=True
    ):
        for name in ("vector", "camera"):
            assert got.observation_space[name].contains(theirs.observations[name][0])
            np.testing.assert_array_equal(
                theirs.observations[name][:-1], ours.obs[name]
            )
            np.testing.assert_array_equal(
                theirs.observations[name][1:], ours.next_obs[name]
            )
        np.testing.assert_array_equal(theirs.actions, ours.action)
        np.testing.assert_array_equal(theirs.rewards, ours.reward)
        np.testing.assert_array_equal(theirs.terminations, ours.discount == 0)
        np.testing.assert_array_equal(theirs.truncations, ours.truncated)
        np.testing.assert_array_equal(
            theirs.infos["physics"]["q"], ours.extras["physics"].q
        )


@pytest.mark.filterwarnings("ignore")
def test_what_minari_writes_is_loaded(tmp_path, monkeypatch):
    """Doubles, JPEG images, tuples, discrete actions, T + 1 infos, no manifest."""
    package = pytest.importorskip("minari")
    import gymnasium as gym

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    # Smooth images, which JPEG keeps to within a few grey levels.
    image = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (4, 32, 1))
    position = rng.normal(size=(4, 2))
    buffer = package.data_collector.EpisodeBuffer(
        observations=(position, image),
        actions=np.array([2, 0, 1]),
        rewards=[0.5, 1.0, -2.0],
        terminations=[False, False, False],
        truncations=[False, False, True],
        infos={"qpos": rng.normal(size=(4, 3)), "note": {"x": np.arange(4)}},
    )
    space = gym.spaces.Tuple(
        (
            gym.spaces.Box(-9, 9, (2,), np.float64),
            gym.spaces.Box(0, 255, (32, 32), np.uint8),
        )
    )
    package.create_dataset_from_buffers(
        "other-v1",
        [buffer],
        observation_space=space,
        action_space=gym.spaces.Discrete(3),
    )
    got = minari.load(tmp_path / "other-v1", extras=("qpos",))
    np.testing.assert_allclose(got.obs[0], position[:-1], rtol=1e-6)
    np.testing.assert_allclose(got.next_obs[0], position[1:], rtol=1e-6)
    assert got.obs[0].dtype == np.float32
    assert np.abs(got.obs[1].astype(int) - image[:-1]).max() < 8
    assert got.obs[1].dtype == np.uint8
    np.testing.assert_array_equal(got.action, [2, 0, 1])
    np.testing.assert_array_equal(got.reward, np.float32([0.5, 1, -2]))
    np.testing.assert_array_equal(got.truncated, [False, False, True])
    np.testing.assert_array_equal(got.discount, [1, 1, 1])
    np.testing.assert_allclose(got.extras["qpos"], buffer.infos["qpos"][:3], rtol=1e-6)
    assert minari.inspect(tmp_path / "other-v1")["verified"] is None
    # A dataset with discrete actions is saved with the number of them.
    again = minari.save(tmp_path / "again-v0", got, spec=spec(Discrete(3)))
    assert package.load_dataset("again-v0").action_space == gym.spaces.Discrete(3)
    chex.assert_trees_all_equal(minari.load(again, extras=("qpos",)), got)


def flip(path, rng):
    """Flips one bit of a file; returns its place."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return place


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json", "manifest.json"])
def test_every_flipped_bit_is_found_or_harmless(saved, tmp_path, name):
    path, rows = saved
    rng, found = random.Random(3), 0
    for i in range(25):
        copy = tmp_path / f"copy{i}"
        shutil.copytree(path, copy)
        place = flip(copy / "data" / name, rng)
        try:
            got = minari.load(copy)
        except ValueError as error:
            assert name in str(error), (place, error)
            found += 1
        else:
            assert name == "manifest.json", place  # a bit nobody reads
            chex.assert_trees_all_equal(got, rows)
    assert found >= 15


def test_damage_names_file_episode_and_rows(saved):
    path, _ = saved

    def change(file):
        file["episode_1/observations"][2, 1] += 1

    damage(path, change, manifest=True)
    with pytest.raises(
        ValueError, match=r"main_data\.hdf5.* episode 1 \(rows 4 to 6\) differs.*verify"
    ) as error:
        minari.load(path)
    assert "episode 0" not in str(error.value)
    with pytest.raises(ValueError, match="episode 1"):
        minari.inspect(path)
    minari.load(path, verify=False)


@pytest.mark.parametrize("num", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_data_is_found_and_its_rows_are_named(tmp_path, num):
    lengths = [5, 9, 2, 14]
    rows = data.concatenate([episode(i, n) for i, n in enumerate(lengths)])
    path = minari.save(tmp_path / "toy", rows, spec=spec())
    file, rng = path / "data" / "main_data.hdf5", random.Random(14)
    with h5py.File(file, "r") as opened:
        nodes = [(i, v) for i in range(4) for v in opened[f"episode_{i}"].values()]
        parts = [
            (i, v.id.get_offset(), v.nbytes)
            for i, v in nodes
            if isinstance(v, h5py.Dataset)
        ]
    good = file.read_bytes()
    for _ in range(num):
        index, start, size = rng.choice(parts)
        bad = bytearray(good)
        bad[start + rng.randrange(size)] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        first = sum(lengths[:index])
        last = first + lengths[index] - 1
        with pytest.raises(ValueError) as error:
            minari.load(path)
        text = str(error.value)
        assert f"episode {index} (rows {first} to {last}) differs" in text
        assert text.count("differs") == 1
        assert str(file) in text
    file.write_bytes(good)
    chex.assert_trees_all_equal(minari.load(path), rows)


def test_a_file_that_was_cut_off_is_refused_with_and_without_manifest(saved):
    path, _ = saved
    file = path / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"main_data\.hdf5: \d+ bytes instead of \d+"):
        minari.load(path)
    (path / "data" / "manifest.json").unlink()
    with pytest.raises(
        ValueError, match=r"main_data\.hdf5 cannot be read .*incomplete"
    ):
        minari.load(path)


def put(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def link(file):
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = h5py.ExternalLink("/etc/hostname", "/")


def bad_entry(name, row, value):
    def change(file):
        array = file[name][()]
        array[row] = value
        put(name, array)(file)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bad_entry("episode_1/observations", 2, np.nan), "episode 1, row 2: obs"),
        (bad_entry("episode_1/observations", 3, np.nan), "episode 1, row 2: next_obs"),
        (bad_entry("episode_0/observations", 0, np.nan), "episode 0, row 0: obs"),
        (bad_entry("episode_2/actions", 5, np.inf), "episode 2, row 5: action"),
        (bad_entry("episode_2/rewards", 3, np.nan), "episode 2, row 3: reward"),
        (
            put("episode_1/observations", np.zeros((3, 2))),
            "episode 1: observations must",
        ),
        (put("episode_1/observations", np.zeros((4, 3))), r"rows of shape \[2\]"),
        (put("episode_1/actions", np.zeros((2, 1))), "episode 1: action must have"),
        (put("episode_1/terminations", np.zeros(9)), "episode 1: discount must have"),
        (put("episode_1/rewards", np.zeros(2)), "episode 1: total_steps says 3 rows"),
        (put("episode_1/rewards", np.zeros((3, 1))), r"rewards must be \[T\]"),
        (put("episode_1/rewards", [b"a", b"b", b"c"]), "must hold numbers"),
        (put("episode_1/actions", np.full((3, 1), 2**40)), "integers beyond 32 bits"),
        (put("episode_1/infos/physics/q", np.zeros(7)), "infos/physics/q must have 3"),
        (lambda file: file.pop("episode_1"), "has 2 episodes.*says 3.*1 is missing"),
        (
            lambda file: file["episode_1"].pop("actions"),
            "episode 1: actions is missing",
        ),
        (link, "episode 1: rewards is a link"),
    ],
)
def test_bad_files_are_refused_by_name(saved, change, message):
    path, _ = saved
    damage(path, change)
    with pytest.raises(ValueError, match=message) as error:
        minari.load(path)
    assert "main_data.hdf5" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "metadata.json is missing or damaged"),
        (b"[" * 100_000, "metadata.json is missing or damaged"),
        (b'{"total_episodes": 3}', "total_steps"),
        (b'{"total_episodes": 1000000000000, "total_steps": 1}', "3 is missing"),
        (
            b'{"total_episodes": 3, "total_steps": 13, "action_space": "[1]"}',
            "action_space is",
        ),
        (b'{"total_episodes": -1, "total_steps": 2}', "metadata.json is missing or"),
        (b'{"total_episodes": 3, "total_steps": 12}', "has 13 rows, .* says 12"),
        (
            b'{"total_episodes": 3, "total_steps": 13, "data_format": "arrow"}',
            "data_format must be hdf5, got arrow",
        ),
    ],
)
def test_bad_metadata_is_refused(saved, content, message):
    path, _ = saved
    (path / "data" / "metadata.json").write_bytes(content)
    (path / "data" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=message):
        minari.load(path)


def test_a_missing_dataset_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*data/main_data\.hdf5"):
        minari.load(tmp_path / "nothing")


def test_nothing_is_left_behind_where_saving_fails(tmp_path):
    def episodes():
        yield episode(0, 3)
        yield episode(1, 3)._replace(reward=np.full(3, np.nan, np.float32))

    with pytest.raises(ValueError, match="episode 1, row 0: reward"):
        minari.save(tmp_path / "toy", episodes(), spec=spec())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (episode(0, 3), {"dataset_id": "no version"}, "dataset_id must look like"),
        (episode(0, 3), {"dataset_id": "../up-v0"}, "dataset_id must look like"),
        ([], {}, "at least one episode"),
        (
            episode(0, 3)._replace(next_obs=np.zeros((3, 2), np.float32)),
            {},
            "episode 0, row 0: next_obs must equal obs",
        ),
        (
            episode(0, 3)._replace(action=np.zeros(3, np.int32)),
            {"spec": None},
            "spec must be given for integer actions",
        ),
    ],
)
def test_bad_requests_to_save_are_refused(tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        minari.save(tmp_path / "toy", rows, **{"spec": spec(), **options})
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_never_overwritten(saved):
    path, rows = saved
    with pytest.raises(ValueError, match="must not exist yet"):
        minari.save(path, rows)


def test_states_that_like_asks_for_must_be_there(saved):
    path, rows = saved
    like = {"physics": {"q": 0, "v": 0}}
    with pytest.raises(ValueError, match=r"physics/v is missing.*physics/q"):
        minari.load(path, like=like)
    assert isinstance(rows, Transition)


def test_a_missing_h5py_names_the_extra(saved, monkeypatch):
    path, _ = saved
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"jaxwm\[data\]"):
        minari.load(path, verify=False)
