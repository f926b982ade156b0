"""Where rows of metrics go. A sink is two functions; a row is a dict of plain numbers.

    {"iteration": 40, "step": 4000, "seconds": 12.5, "model/loss": [0.1, 0.2, 0.1]}

`step` counts environment steps of one seed, `seconds` wall time since the first start
without compiling. Values have one entry per seed, in the run's order of seeds, null
where there is no number.
"""

import errno
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxwm.train.errors import RunError

Row = dict[str, Any]
_CLOCKS = ("iteration", "step", "seconds")


class Sink(NamedTuple):
    """`write(row)` takes a row; `flush()` returns once all rows are safe."""

    write: Callable[[Row], None]
    flush: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


def plain(metrics: dict[str, Any]) -> Row:
    """Arrays as lists of Python floats; what is not finite becomes None.

    Float32 values keep their shortest exact decimal form.
    """

    def number(x):
        return float(str(x)) if math.isfinite(x) else None

    def nested(x):
        return [nested(part) for part in x] if x.ndim else number(x[()])

    return {name: nested(np.asarray(value)) for name, value in metrics.items()}


def rows(into: list[Row]) -> Sink:
    """Appends rows to a list."""
    return Sink(into.append)


def json_lines(path: str | pathlib.Path, *, resume_at: int = -1) -> Sink:
    """Appends rows to a file, one JSON object per line.

    Args:
        path: of the file; made if missing.
        resume_at: rows after this iteration are dropped first, with a torn last line:
            they are about to be written again.

    Raises:
        RunError: where the file cannot be written.
    """
    path = pathlib.Path(path)
    try:
        _cut(path, resume_at)
        file = path.open("ab", buffering=0)  # a row is written at once or raises
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}.") from error

    def write(row):
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error}.") from error

    def flush():
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error}.") from error

    return Sink(write, flush, file.close)


def read(path: str | pathlib.Path) -> list[Row]:
    """The rows of a JSON-lines file; a torn last line is left out."""
    path = pathlib.Path(path)
    if not path.is_file():
        return []
    return [row for row, _ in _parse(path.read_bytes())]


def tensorboard(directory: str | pathlib.Path, *, resume_at: int = -1) -> Sink:
    """Writes scalars for TensorBoard, per seed (`name/seed0` ...) where there are many.

    Raises:
        RunError: without tensorboardX, saying how to get it.
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise RunError(
            "TensorBoard files need tensorboardX: pip install 'jaxwm[log]'."
        ) from error
    purge = resume_at + 1 if resume_at >= 0 else None
    writer = tensorboardX.SummaryWriter(str(directory), purge_step=purge)

    def write(row):
        for name, values in row.items():
            if name in _CLOCKS:
                continue
            values = values if isinstance(values, list) else [values]
            for i, value in enumerate(values):
                if isinstance(value, float | int):
                    tag = f"{name}/seed{i}" if len(values) > 1 else name
                    writer.add_scalar(tag, value, row["iteration"])

    return Sink(write, writer.flush, writer.close)


def _parse(data: bytes) -> list[tuple[Row, int]]:
    """Rows with the offset behind each, up to the first line that is not whole."""
    found, offset = [], 0
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not line.endswith(b"\n") or not isinstance(row, dict):
            break
        offset += len(line)
        found.append((row, offset))
    return found


def _cut(path: pathlib.Path, iteration: int) -> None:
    """Ends the file behind the last row that is not after `iteration`."""
    if not path.is_file():
        return
    ends = [
        end
        for row, end in _parse(path.read_bytes())
        if row.get("iteration", math.inf) <= iteration
    ]
    with path.open("rb+") as file:
        file.truncate(max(ends, default=0))
