"""Where and when a run takes place does not matter."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxwm import train
from jaxwm.train import checkpoint, sinks
from tests.train import child, test_faults, tiny
from tests.train import test_together as runs

NAMES = ("HOME", "DISPLAY", "LANG", "LC_CTYPE", "PYTHONUTF8", "XDG_CACHE_HOME")
BACK = """
import os, runpy, sys, time
plain, mark = time.time, os.path.join(sys.argv[1], "latest")
def earlier():  # by an hour, once there is a checkpoint
    return plain() - 3600 * os.path.exists(mark)
time.time, time.time_ns = earlier, lambda: int(1e9 * earlier())
runpy.run_module("tests.train.child", run_name="__main__")
"""


def strange():
    """The environment of a process far from home."""
    found = {
        **os.environ,  # with the number of devices of this process, as the reference
        "JAX_COMPILATION_CACHE_DIR": str(runs.ROOT / ".cache" / "jax"),
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "TZ": "Pacific/Kiritimati",
    }
    return {name: value for name, value in found.items() if name not in NAMES}


def run(*command, **options):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=runs.ROOT,
        env=strange(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        umask=0o077,
        **options,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_ends_with_the_same_bits_far_from_home(tmp_path):
    """Path with spaces and accents, other locale and zone, clock set back, no HOME."""
    directory = tmp_path / "one run" / "räksmörgås 東京"
    first = run("-c", BACK, directory, "--iterations", 400)
    assert first.returncode == 0, first.stdout + first.stderr
    # The clock says that the older checkpoint is the newer one.
    now, steps = time.time(), checkpoint.steps(directory)
    for i, step in enumerate(steps):
        path = directory / "checkpoints" / str(step)
        for part in (*path.rglob("*"), path):
            os.utime(part, (now - 3600 * i, now - 3600 * i))
    second = run("-m", "tests.train.child", directory)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"at iteration {steps[-1]}" in second.stdout
    assert (directory / "latest").read_text() == "checkpoints/1000\n"
    whole = train.fit(tiny.make(), seeds=child.SEEDS, num_iterations=1000)
    got = jax.tree.leaves(test_faults.final_state(directory))
    for a, b in zip(jax.tree.leaves(whole.state), got, strict=True):
        assert np.asarray(a).tobytes() == b.tobytes()
    rows = sinks.read(directory / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(10, 1001, 10))
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(p.stat().st_mode & 0o077 == 0 for p in directory.rglob("*.json"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_line_trains_reports_and_resumes_far_from_home(tmp_path):
    out = tmp_path / "ein Lauf é"
    common = ["--env", "pendulum", "--engine", "jax", "--preset", "tiny"]
    done = run("-m", "jaxwm", "train", "polygrad", *common, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "report.html").is_file()
    for verb in ("resume", "report"):
        done = run("-m", "jaxwm", verb, out)
        assert done.returncode == 0, done.stdout + done.stderr
    assert pathlib.Path(out / "report.html").read_text("utf-8").startswith("<!")
