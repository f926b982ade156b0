"""A run that is stopped and resumed ends with the bits of one that was not."""

import subprocess
import sys

import pytest

from tests.train import test_together as runs

NUM = {"ppo": 12, "diffusion": 30, "grokking": 30, "polygrad": 10}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("double", [False, True], ids=["x32", "x64"])
@pytest.mark.parametrize("system", NUM)
def test_every_leaf_is_the_same_wherever_it_was_resumed(tmp_path, system, double):
    """After the first iteration, in the middle and before the last one."""
    num = NUM[system]
    command = [sys.executable, "-m", "tests.train.resumed", system, tmp_path, num]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=runs.ROOT,
        env=runs.environment(JAX_ENABLE_X64=str(int(double))),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    equal = [line for line in lines if line[0] == "equal"]
    assert [int(line[1]) for line in equal] == [1, num // 2, num - 1]
    print(f"{equal[0][2]} leaves, {equal[0][3]} bytes", *lines[-1])
