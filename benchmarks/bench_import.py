"""How long one waits before anything happens: imports and the command's help.

Each is a process of its own; the two sides alternate, and the difference to
`import jax` is formed pair by pair.
"""

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.measure import Settings
from benchmarks.record import Row


def run(*arguments: str) -> float:
    """Wall seconds of a fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def rows(settings: Settings) -> Iterator[Row]:
    repeats = 7 if settings.full else settings.pick(3, 1)
    if not settings.smoke:
        run("-c", "import jax, jaxwm")  # its byte code may not be written yet
    pairs = np.array(
        [
            (run("-c", "import jax"), run("-c", "import jax, jaxwm"))
            for _ in range(repeats)
        ]
    )
    jax_s, both_s = np.median(pairs, 0)
    yield Row("import/jax", "", float(jax_s), "s", higher_is_better=False)
    yield Row(
        "import/jaxwm",
        "beyond import jax",
        float(np.median(pairs[:, 1] - pairs[:, 0])),
        "s",
        higher_is_better=False,
        target=0.3,
        note=f"{both_s:.2f} s together",
    )
    yield Row(
        "import/help",
        "jaxwm --help",
        float(np.median([run("-m", "jaxwm", "--help") for _ in range(repeats)])),
        "s",
        higher_is_better=False,
        target=1.0,
    )
