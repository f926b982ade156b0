"""Rows survive torn files, and numbers survive JSON."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.train import sinks
from jaxwm.train.errors import RunError


def row(iteration):
    return {"iteration": iteration, "step": 4 * iteration, "loss": [0.5, None]}


def test_plain_numbers_are_exact_and_short():
    metrics = {
        "a": np.float32([0.1, np.nan, np.inf]),
        "b": jnp.asarray(2, jnp.int32),
        "c": jnp.ones((2, 1), jnp.bfloat16),
    }
    plain = sinks.plain(metrics)
    assert plain == {"a": [0.1, None, None], "b": 2.0, "c": [[1.0], [1.0]]}
    assert np.float32(plain["a"][0]) == np.float32(0.1)
    json.dumps(plain, allow_nan=False)


def test_rows_come_back_and_are_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for first in (1, 3):
        sink = sinks.json_lines(path, resume_at=2)
        sink.write(row(first))
        sink.write(row(first + 1))
        sink.flush()
        sink.close()
    assert sinks.read(path) == [row(i) for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("resume_at", [-1, 0, 2, 9])
def test_resuming_drops_what_will_be_written_again(tmp_path, resume_at):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in (1, 2, 2, 3)))
    sinks.json_lines(path, resume_at=resume_at).close()
    assert [r["iteration"] for r in sinks.read(path)] == [
        i for i in (1, 2, 2, 3) if i <= resume_at
    ]


@pytest.mark.parametrize("torn", ['{"iteration": 3, "lo', '{"iteration": 3}', "\0\0"])
def test_a_torn_last_line_is_repaired(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + torn)
    assert sinks.read(path) == [row(1)]
    sink = sinks.json_lines(path, resume_at=5)
    sink.write(row(2))
    sink.close()
    assert sinks.read(path) == [row(1), row(2)]


def test_no_file_means_no_rows(tmp_path):
    assert sinks.read(tmp_path / "none") == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"none/metrics.jsonl cannot be written"):
        sinks.json_lines(tmp_path / "none" / "metrics.jsonl")


def test_tensorboard_gets_one_curve_per_seed(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = sinks.tensorboard(tmp_path)
    sink.write({"iteration": 3, "step": 6, "loss": [0.5, None, 2.0], "one": [1.0]})
    sink.close()
    data = next(tmp_path.iterdir()).read_bytes()
    assert b"loss/seed0" in data
    assert b"loss/seed2" in data
    assert b"loss/seed1" not in data
    assert b"one/seed0" not in data


def test_without_tensorboardx_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(RunError, match=r"pip install 'jaxwm\[log\]'"):
        sinks.tensorboard(tmp_path)
