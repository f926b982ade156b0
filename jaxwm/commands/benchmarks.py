"""`jaxwm bench`: the benchmarks of a source checkout."""

import pathlib
import subprocess
import sys

from jaxwm.train.errors import RunError


def bench(arguments: list[str]) -> int:
    """Runs `python -m benchmarks.runner` with the same arguments."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / "benchmarks" / "runner.py").is_file():
        raise RunError(
            "benchmarks come with the source, not with the installed package; run "
            "this from a clone of the repository."
        )
    command = [sys.executable, "-m", "benchmarks.runner", *arguments]
    return subprocess.run(command, cwd=root).returncode
