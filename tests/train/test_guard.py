"""Dumps of runs that went wrong can be walked into again."""

import json
import shutil

import pytest

from jaxwm import train
from jaxwm.train import checkpoint, guard
from jaxwm.train.errors import CheckpointError
from tests.train import tiny

SEEDS = [1, 2]


@pytest.fixture(scope="module")
def learner():
    return tiny.make(bad_iteration=9, bad_seed_above=-1.0)  # both seeds


@pytest.fixture(scope="module")
def failed(learner, tmp_path_factory):
    path = tmp_path_factory.mktemp("failed")
    with (
        train.open_run(path, {}) as run,
        pytest.raises(FloatingPointError, match=r"of seed 1.*\n.*of seed 2"),
    ):
        train.fit(
            learner,
            seeds=SEEDS,
            num_iterations=20,
            run=run,
            save_every=0,
            chunk_size=3,
            log_every=100,
        )
    return path


def test_a_retrace_reproduces_the_failure_bit_for_bit(failed, learner):
    found = guard.retrace(learner, SEEDS, failed / "dumps" / "9-seed2")
    assert 0 < found.start <= 9
    assert found.reproduced
    assert found.same_bits
    assert found.before == {}
    assert found.after["params/w"] == "8 of 8"


def test_without_checkpoints_it_starts_from_the_beginning(failed, learner, tmp_path):
    copy = shutil.copytree(failed, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    found = guard.retrace(learner, SEEDS, copy / "dumps" / "9-seed1")
    assert found.start == 0
    assert found.same_bits


def test_a_broken_checkpoint_is_passed_over(failed, learner, tmp_path):
    copy = shutil.copytree(failed, tmp_path / "copy")
    newest = max(checkpoint.steps(copy))
    (copy / "checkpoints" / str(newest) / "manifest.json").write_text("{")
    found = guard.retrace(learner, SEEDS, copy / "dumps" / "9-seed1")
    assert found.start < newest
    assert found.reproduced


def test_another_program_does_not_reproduce_it(failed):
    found = guard.retrace(tiny.make(), SEEDS, failed / "dumps" / "9-seed1")
    assert not found.reproduced
    assert not found.same_bits


def test_a_dump_says_what_happened(failed):
    text = json.loads((failed / "dumps" / "9-seed1" / "dump.json").read_text())
    assert text["metrics"] == ["model/finite"]
    assert (text["iteration"], text["seed"], text["index"]) == (9, 1, 0)


def test_what_is_no_dump_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is no dump"):
        guard.read(tmp_path)
