"""Checkpoints come back bit for bit, or say what is wrong."""

import errno
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm.train import checkpoint, durable, manifest, run
from jaxwm.train.errors import CheckpointError, ConfigError, TemplateError


class State(NamedTuple):
    params: dict
    replay: jax.Array
    count: jax.Array
    empty: jax.Array


def make_state(fill=1.0, written=7):
    ring = np.zeros((3, 5000, 4), np.float32)
    ring[:, :written] = fill + np.arange(4)
    return State(
        {"w": jnp.full((4, 3), fill), "half": jnp.ones(5, jnp.bfloat16)},
        jnp.asarray(ring),
        jnp.asarray(9, jnp.int32),
        jnp.zeros((0, 2)),
    )


def same_bits(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).dtype == np.asarray(y).dtype
        and np.asarray(x).shape == np.asarray(y).shape
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in pairs
    )


def state_files(directory, step):
    root = directory / "checkpoints" / str(step)
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """A run with steps 10 and 20; copy it before breaking it."""
    directory = tmp_path_factory.mktemp("two")
    for step in (10, 20):
        checkpoint.save(directory, step, make_state(float(step)), config={"n": step})
    return directory


@pytest.fixture
def copy(two_saved, tmp_path):
    return shutil.copytree(two_saved, tmp_path / "copy")


def test_a_state_comes_back_bit_for_bit_with_its_config(two_saved):
    template = jax.eval_shape(make_state)
    step, state, config = checkpoint.restore(two_saved, template)
    assert (step, config) == (20, {"n": 20})
    assert same_bits(state, make_state(20.0))
    assert (two_saved / "latest").read_text() == "checkpoints/20\n"


def test_a_part_can_be_read_alone(two_saved):
    params = jax.eval_shape(make_state).params
    step, part, _ = checkpoint.restore(two_saved, params, below="params")
    assert step == 20
    assert same_bits(part, make_state(20.0).params)
    with pytest.raises(TemplateError, match="params/none is not in the checkpoint"):
        checkpoint.restore(two_saved, {"none": part["w"]}, below="params")


def test_awkward_numbers_survive(tmp_path):
    big = np.zeros((2, 100_000), np.float32)
    big[0, 3] = -0.0  # only its sign bit is set
    big[1, 1] = np.nan
    state = {
        "zeros": np.zeros((300, 300)),
        "big": big,
        "full": np.random.default_rng(0).normal(size=(40, 50, 60)),
        "scalar": jnp.asarray(True),
        "complex": np.full((3, 9000), 1j, np.complex128),
    }
    checkpoint.save(tmp_path, 0, state, config={})
    assert same_bits(checkpoint.restore(tmp_path, state)[1], state)


def test_the_unwritten_part_of_a_replay_is_not_stored(tmp_path):
    ring = np.zeros((2, 8, 20_000, 4), np.float32)  # 5 MB
    ring[:, :, :50] = 1
    path = checkpoint.save(tmp_path, 1, {"ring": ring}, config={})
    stored = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert stored < 50_000
    assert same_bits(checkpoint.restore(tmp_path, {"ring": ring})[1], {"ring": ring})


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, {"a": jnp.ones(3)}, config={}, keep=2)
    assert checkpoint.steps(tmp_path) == [2, 10]


def test_the_newest_checkpoint_is_the_one_with_the_largest_number(tmp_path):
    """Not the one written last: clocks are set back, files are copied."""
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, step, {"a": np.full(3, step)}, config={}, keep=9)
    for i, step in enumerate((100, 10, 9)):
        path = tmp_path / "checkpoints" / str(step)
        for part in (*path.rglob("*"), path):
            os.utime(part, (1e9 + i, 1e9 + i))
    assert checkpoint.steps(tmp_path) == [9, 10, 100]
    assert checkpoint.restore(tmp_path, {"a": np.zeros(3, int)})[0] == 100
    checkpoint.save(tmp_path, 101, {"a": np.full(3, 101)}, config={}, keep=2)
    assert checkpoint.steps(tmp_path) == [100, 101]


def test_a_step_is_final(copy):
    with pytest.raises(ValueError, match="step 20 is already saved"):
        checkpoint.save(copy, 20, make_state(), config={})


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"a": {"key": jax.random.key(0)}}, r"a/key is a random key"),
        ({"a": 3}, r"a is a int"),
        ({"a": "text"}, r"a is a str"),
        ({"a": np.array([{}], object)}, r"a holds Python objects"),
        ({"a": np.zeros((0, 3))}, r"without a single number"),
        ({}, r"without a single number"),
    ],
)
def test_what_is_not_an_array_is_refused_by_name(tmp_path, state, match):
    with pytest.raises(ValueError, match=match):
        checkpoint.save(tmp_path, 0, state, config={})
    assert checkpoint.steps(tmp_path) == []


def test_a_config_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="plain JSON"):
        checkpoint.save(tmp_path, 0, {"a": jnp.ones(2)}, config={"x": jnp.ones(2)})
    with pytest.raises(ValueError, match="keep must be at least 1"):
        checkpoint.save(tmp_path, 0, {"a": jnp.ones(2)}, config={}, keep=0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s._replace(params={"w": s.params["w"]}), "params/half is only in"),
        (
            lambda s: s._replace(params={**s.params, "b": jnp.ones(2)}),
            "params/b is not in",
        ),
        (lambda s: s._replace(replay=s.replay[:2]), r"replay is float32\[3, 5000, 4\]"),
        (lambda s: s._replace(count=jnp.float32(1)), r"count is int32\[\]"),
        (lambda s: s._replace(empty=jnp.zeros((0, 3))), r"empty is float32\[0, 2\]"),
    ],
)
def test_another_state_is_refused_naming_the_leaf(two_saved, change, match):
    template = jax.eval_shape(lambda: change(make_state()))
    with pytest.raises(TemplateError, match=match):
        checkpoint.restore(two_saved, template)


def learner_state(*, optimiser=None, size=3, seeds=2):
    """What a learner's state looks like, all seeds in axis 0."""
    params = {"w": jnp.ones((seeds, size, 4)), "b": jnp.zeros((seeds, 4))}
    return {
        "params": params,
        "opt": (optimiser or optax.adam(1e-3)).init(params),
        "env": {"obs": jnp.zeros((seeds, size))},
        "replay": np.ones((seeds, 1000, 1000), np.float32),  # 8 MB
    }


@pytest.fixture(scope="module")
def learner_saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("learner")
    checkpoint.save(directory, 1, learner_state(), config={})
    return directory


OTHERS = {
    "another optimiser": (
        {"optimiser": optax.sgd(1e-3, momentum=0.9)},
        ("opt/0/mu/w is only in", "opt/0/trace/w is not in"),
    ),
    "a schedule more": (
        {"optimiser": optax.adam(optax.constant_schedule(1.0))},
        ("opt/1/count is not in the checkpoint",),
    ),
    "another task": (
        {"size": 5},
        ("env/obs is float32[2, 3] in the checkpoint, float32[2, 5] is expected",),
    ),
    "other seeds": ({"seeds": 3}, ("params/b is float32[2, 4]", "number of seeds")),
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_state_of_another_run_is_refused_at_once_by_path(learner_saved, what):
    changes, words = OTHERS[what]
    template = jax.eval_shape(lambda: learner_state(**changes))
    before = time.process_time()
    with pytest.raises(TemplateError) as caught:
        checkpoint.restore(learner_saved, template)
    assert time.process_time() - before < 1
    assert all(word in str(caught.value) for word in words), caught.value


def test_no_checkpoint_at_all_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="none was saved"):
        checkpoint.restore(tmp_path, make_state())


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.filterwarnings("ignore:.*fell back")
def test_a_hundred_bit_flips_are_detected_or_harmless(two_saved, copy):
    """Each flip falls back to the older step, or the newest comes back unchanged."""
    rng = random.Random(5)
    template = jax.eval_shape(make_state)
    good = {step: make_state(float(step)) for step in (10, 20)}
    files = [path for path in state_files(copy, 20) if path.stat().st_size]
    fell_back = 0
    for trial in range(100):
        path = files[trial % len(files)]
        original = path.read_bytes()
        flip(path, rng)
        step, state, _ = checkpoint.restore(copy, template)
        assert same_bits(state, good[step]), path
        fell_back += step == 10
        path.write_bytes(original)
    assert fell_back > 90


def test_falling_back_warns_and_names_file_and_step(copy):
    flip(state_files(copy, 20)[3], random.Random(1))
    with pytest.warns(UserWarning, match=r"fell back to step 10; step 20: .*digest"):
        step, _, config = checkpoint.restore(copy, jax.eval_shape(make_state))
    assert (step, config) == (10, {"n": 10})


def test_a_digest_of_arrays_catches_what_orbax_reads_wrongly(copy, monkeypatch):
    """With the files' digests out of the way, the arrays' own still notice."""
    monkeypatch.setattr(manifest, "check_files", lambda *_, **__: None)
    root = copy / "checkpoints" / "20" / "state"
    data = max(root.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    rng = random.Random(2)
    for _ in range(20):
        flip(data, rng)
    with pytest.warns(UserWarning, match="differs from its digest|orbax cannot read"):
        assert checkpoint.restore(copy, jax.eval_shape(make_state))[0] == 10


@pytest.mark.filterwarnings("ignore:.*fell back")
def test_truncated_and_deleted_files_are_detected(copy):
    template = jax.eval_shape(make_state)
    for path in state_files(copy, 20):
        original = path.read_bytes()
        for keep in {0, 1, len(original) // 2, max(0, len(original) - 1)}:
            if keep == len(original):
                continue
            path.write_bytes(original[:keep])
            if path.name == "manifest.json" and keep == len(original) - 1:
                continue  # only its last newline is gone
            assert checkpoint.restore(copy, template)[0] == 10, (path, keep)
        path.unlink()
        assert checkpoint.restore(copy, template)[0] == 10, path
        path.write_bytes(original)
    assert checkpoint.restore(copy, template)[0] == 20


def test_when_nothing_is_sound_the_error_lists_each_step(copy):
    (copy / "checkpoints" / "20" / "manifest.json").unlink()
    flip(state_files(copy, 10)[0], random.Random(3))
    (copy / "checkpoints" / "30").mkdir()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(copy, jax.eval_shape(make_state))
    text = str(caught.value)
    assert all(part in text for part in ("step 30: manifest", "step 20:", "step 10:"))


def links(root):
    target = root / "state" / "_METADATA"
    target.rename(root.parents[1] / "elsewhere")
    target.symlink_to(root.parents[1] / "elsewhere")


def forge(change):
    """Changes a manifest and seals it again."""

    def forged(root):
        body = manifest.read(root)
        change(body)
        text = json.dumps({**body, "seal": manifest._seal(body)})
        (root / "manifest.json").write_text(text)

    return forged


HOSTILE = {
    "a link": (links, "state/_METADATA is a link, which is not followed"),
    "a path that leads out": (
        forge(lambda body: body["files"][0].update(path="../../latest")),
        "lies outside of it",
    ),
    "a huge array": (
        forge(
            lambda body: body["arrays"][-2].update(  # count
                shape=[10**12], stored_shape=[10**12]
            )
        ),
        "bytes of files cannot hold",
    ),
    "an array of objects": (
        forge(lambda body: body["arrays"][0].update(dtype="O")),
        "malformed",
    ),
    "no list": (forge(lambda body: body.update(files=3)), "malformed"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_forged_checkpoints_are_passed_over(copy, what):
    """More of these, with their cost, are in tests/commands/test_hostile_files.py."""
    change, message = HOSTILE[what]
    change(copy / "checkpoints" / "20")
    part = {} if what != "a huge array" else jax.eval_shape(make_state).params
    template = part or jax.eval_shape(make_state)
    with pytest.warns(UserWarning, match=message):
        step = checkpoint.restore(copy, template, below="params" if part else "")[0]
    assert step == 10
    checkpoint.tidy(copy)
    assert part or checkpoint.restore(copy, jax.eval_shape(make_state))[0] == 10


def test_small_arrays_share_one_file_and_large_ones_have_their_own(tmp_path):
    small = {f"small_{i:03}": np.full(7, i, np.int16) for i in range(200)}
    state = {**small, "large": np.random.default_rng(1).normal(size=(2, 100_000))}
    root = checkpoint.save(tmp_path, 1, state, config={})
    entries = manifest.read(root)["arrays"]
    assert len({entry["key"] for entry in entries}) == 2
    assert same_bits(checkpoint.restore(tmp_path, state)[1], state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fell back")
def test_four_hundred_flips_in_large_and_small_arrays_are_detected_or_harmless(
    tmp_path,
):
    """Large files are not compared with their digests before they are read."""
    for step in (10, 20):
        large = np.random.default_rng(step).normal(size=300_000)
        state = {"large": large, "other": large[:200_000], "small": large[:9]}
        checkpoint.save(tmp_path, step, state, config={})
    rng, fell_back = random.Random(8), 0
    files = [path for path in state_files(tmp_path, 20) if path.stat().st_size]
    for trial in range(400):
        path = files[trial % len(files)]
        place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << bit]))
        step, found, _ = checkpoint.restore(tmp_path, state)
        assert step == 10 or same_bits(found, state), (path, place, bit)
        fell_back += step == 10
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([byte]))
    print(f"{fell_back} of 400 fell back, the others are harmless")
    assert checkpoint.restore(tmp_path, state)[0] == 20
    assert fell_back > 380


def test_a_newer_format_is_not_read_nor_skipped(copy, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 3)
    checkpoint.save(copy, 30, make_state(), config={})
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"format 3.*update jaxwm"):
        checkpoint.restore(copy, jax.eval_shape(make_state))


def test_tidy_sweeps_leftovers_and_sets_broken_steps_aside(copy):
    folder = copy / "checkpoints"
    (folder / ".tmp-30" / "state").mkdir(parents=True)
    (copy / ".tmp-latest-1").write_text("x")
    (folder / "40").mkdir()
    (folder / "notes").mkdir()
    flip(state_files(copy, 20)[2], random.Random(4))
    done = checkpoint.tidy(copy)
    assert sorted(path.name for path in folder.iterdir()) == [
        "10", "20.broken", "40.broken", "notes",
    ]  # fmt: skip
    assert not (copy / ".tmp-latest-1").exists()
    assert len(done) == 4
    assert checkpoint.restore(copy, jax.eval_shape(make_state))[0] == 10


def test_a_broken_directory_does_not_count_as_kept(copy):
    (copy / "checkpoints" / "99").mkdir()
    checkpoint.save(copy, 30, make_state(), config={}, keep=2)
    assert checkpoint.steps(copy) == [20, 30, 99]


def test_a_broken_step_is_written_anew(copy):
    (copy / "checkpoints" / "20" / "manifest.json").unlink()
    checkpoint.save(copy, 20, make_state(5.0), config={"n": 5})
    assert checkpoint.restore(copy, jax.eval_shape(make_state))[2] == {"n": 5}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["mkdir", "sync_tree", "write_text", "rename"])
def test_a_full_or_broken_or_read_only_disk_gives_one_clear_message(
    copy, monkeypatch, call, code
):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if call in ("mkdir", "rename"):
            patch.setattr("pathlib.Path." + call, fail)
        else:
            patch.setattr(durable, call, fail)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.save(copy, 30, make_state(), config={})
    text = str(caught.value)
    assert os.strerror(code) in text
    assert str(copy / "checkpoints") in text
    assert "the last good one is step 20" in text
    assert checkpoint.restore(copy, jax.eval_shape(make_state))[0] == 20
    assert not list((copy / "checkpoints").glob(".tmp*"))


LIMITED = """
import resource, sys
import numpy as np
from jaxwm.train import checkpoint
from jaxwm.train.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
state = {"a": np.random.default_rng(0).normal(size=(300, 300))}
try:
    checkpoint.save(sys.argv[1], 2, state, config={})
except CheckpointError as error:
    print(error)
    sys.exit(7)
"""


def test_a_file_size_limit_stops_the_write_and_spares_the_last_good_one(tmp_path):
    checkpoint.save(tmp_path, 1, {"a": jnp.ones(3)}, config={})
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    assert "could not be written" in done.stdout
    assert "the last good one is step 1" in done.stdout
    assert checkpoint.restore(tmp_path, {"a": jnp.ones(3)})[0] == 1
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


def test_the_manifest_lists_every_file_and_array(two_saved):
    root = two_saved / "checkpoints" / "20"
    body = json.loads((root / "manifest.json").read_text())
    listed = {entry["path"] for entry in body["files"]}
    on_disk = {p.relative_to(root).as_posix() for p in state_files(two_saved, 20)}
    assert listed == on_disk - {"manifest.json"}
    assert {entry["path"] for entry in body["arrays"]} == {
        "params/w", "params/half", "replay", "count", "empty",
    }  # fmt: skip


def test_a_run_of_release_0_1_can_still_be_read():
    """`golden_run` was written by 0.1.0; later versions must read it."""
    golden = pathlib.Path(__file__).with_name("golden_run")
    replay = np.zeros((2, 5003, 4), np.float32)
    replay[:, :3] = 0.5
    state = {
        "params": {
            "w": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
            "half": np.asarray(jnp.ones(3, jnp.bfloat16)),
        },
        "replay": replay,
        "count": np.int32(17),
        "empty": np.zeros((0, 2), np.float32),
    }
    step, found, config = checkpoint.restore(golden, state)
    assert (step, config) == (17, {"seeds": [3], "seconds": 1.5})
    assert same_bits(found, state)
    document = run.read(golden)
    assert document["schema"] == run.SCHEMA
    assert document["recipe"] == "polygrad"
