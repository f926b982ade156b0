"""How long one waits before anything happens: imports and the command's help.

Each is a process of its own; one that imports jax and then jaxwm says what each took.
"""

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.measure import Settings
from benchmarks.record import Row

IMPORTS = """
import time
start = time.perf_counter()
import jax
between = time.perf_counter()
import jaxwm
print(between - start, time.perf_counter() - between)
"""


def run(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def seconds(*arguments: str) -> float:
    """Wall seconds of a fresh interpreter."""
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def rows(settings: Settings) -> Iterator[Row]:
    repeats = 7 if settings.full else settings.pick(3, 1)
    if not settings.smoke:
        run("-c", IMPORTS)  # its byte code may not be written yet
    pairs = np.array([run("-c", IMPORTS).split() for _ in range(repeats)], float)
    jax_s, own_s = np.median(pairs, 0)
    yield Row("import/jax", "", float(jax_s), "s", higher_is_better=False)
    yield Row(
        "import/jaxwm",
        "beyond import jax",
        float(own_s),
        "s",
        higher_is_better=False,
        target=0.3,
        note=f"{jax_s + own_s:.2f} s together",
    )
    yield Row(
        "import/help",
        "jaxwm --help",
        float(np.median([seconds("-m", "jaxwm", "--help") for _ in range(repeats)])),
        "s",
        higher_is_better=False,
        target=1.0,
    )
