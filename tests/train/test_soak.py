"""A long run neither grows nor leaves anything behind."""

import os
import pathlib

import numpy as np
import pytest

from jaxwm import train
from tests.train import tiny

CYCLES = 400


def resident() -> int:
    """Bytes of this process that lie in memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def size_of(directory) -> int:
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_hundreds_of_saves_and_evaluations_cost_no_memory(tmp_path):
    rows = []

    def write(row):
        if "eval/return" in row:
            handles = len(os.listdir("/proc/self/fd"))
            rows.append((resident(), handles, size_of(tmp_path / "checkpoints")))

    sink = train.sinks.Sink(write)
    with train.open_run(tmp_path, {}) as run:
        found = train.fit(
            tiny.make(),
            seeds=[3, 4],
            num_iterations=5 * CYCLES,
            run=run,
            evaluate=tiny.evaluate,
            eval_every=5,
            save_every=0,
            chunk_size=5,
            log_every=5,
            sinks=[sink],
        )
    memory, handles, disk = np.array(rows[CYCLES // 4 :]).T
    assert len(rows) == CYCLES
    assert found.late_compiles == 0
    assert memory[-10:].mean() < 1.02 * memory[:10].mean()
    assert len(set(handles)) == 1
    # The replay fills meanwhile from a quarter to all of its columns.
    assert disk.max() < 4.5 * disk[0]
    assert not list(tmp_path.rglob(".tmp*"))
