"""A run whose disk fails says so, keeps its last checkpoint, and goes on from it."""

import errno
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxwm import train
from jaxwm.train import checkpoint, durable
from jaxwm.train.errors import RunError
from tests.train import test_together as runs
from tests.train import tiny

NUM = 12


def fit(path=None):
    def go(run):
        return train.fit(
            tiny.make(),
            seeds=[5],
            num_iterations=NUM,
            run=run,
            save_every=0,
            chunk_size=3,
            log_every=3,
        )

    if path is None:
        return go(None)
    with train.open_run(path, {}) as run:
        return go(run)


@pytest.mark.slow
def test_a_run_whose_disk_fails_stops_clearly_and_goes_on_later(tmp_path, monkeypatch):
    code, calls, plain = errno.EIO, [], durable.sync_tree

    def failing(root):
        calls.append(root)
        if len(calls) > 2:
            raise OSError(code, os.strerror(code))
        plain(root)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_tree", failing)
        with pytest.raises(RunError, match=os.strerror(code)) as caught:
            fit(tmp_path)
    assert str(tmp_path) in str(caught.value)
    good = checkpoint.steps(tmp_path)
    assert len(good) == 2
    assert f"the last good one is step {good[-1]}." in str(caught.value)
    assert not list(tmp_path.rglob(f"{durable.PREFIX}*"))
    again, whole = fit(tmp_path), fit()
    assert again.iteration == NUM
    for a, b in zip(
        jax.tree.leaves(again.state), jax.tree.leaves(whole.state), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_a_run_that_may_write_no_large_file_stops_and_goes_on_when_it_may(tmp_path):
    """The replay grows until a checkpoint no longer fits."""
    command = [sys.executable, "-m", "tests.train.child", str(tmp_path)]
    command += ["--iterations", "1000"]

    def run(*before):
        return subprocess.run(
            [*before, *command],
            cwd=runs.ROOT,
            env=runs.environment(JAX_ENABLE_COMPILATION_CACHE="false"),
            capture_output=True,
            text=True,
        )

    full = run("prlimit", "--fsize=100000")
    assert full.returncode == 1, full.stderr
    assert "could not be written" in full.stdout
    assert "the last good one is step" in full.stdout
    steps = checkpoint.steps(tmp_path)
    assert 0 < steps[-1] < 1000
    assert not list(tmp_path.rglob(f"{durable.PREFIX}*"))
    assert "finished 1000" in run().stdout
