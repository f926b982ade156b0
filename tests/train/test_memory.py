"""What a run will need is known before it runs."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("task", "engine"), [("pendulum", "jax"), ("cartpole_balance", "mjx")]
)
def test_the_peak_at_16384_environments_is_predicted(task, engine):
    command = [sys.executable, "-m", "tests.train.memory", task, engine, "16384"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["took"] == pytest.approx(found["said"], rel=0.1)
