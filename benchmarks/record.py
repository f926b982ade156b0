"""Rows of results: what one is, how it is written, and how two files compare."""

import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from typing import Any, NamedTuple

import jax

from benchmarks.measure import Ratio, Timing

SCHEMA = 1
SLOWER = 1.1  # a row fails against its baseline from this ratio on
PACKAGES = ("jaxwm", "jax", "jaxlib", "flax", "optax", "numpy", "mujoco", "mujoco-mjx")


class Row(NamedTuple):
    """One measurement. `value` is the headline; a skipped or failed row has none."""

    name: str  # bench/what
    size: str = ""  # "B=256 H=10"
    value: float | None = None
    unit: str = ""
    higher_is_better: bool = True
    timing: Timing | None = None
    ratio: Ratio | None = None
    target: float | None = None  # of the ratio where there is one, else of the value
    flops: float | None = None  # per call, for the fraction of the machine's peak
    bytes_moved: float | None = None  # per call, likewise
    roofline: float | None = None
    status: str = "ok"  # ok | noisy | skipped | failed
    note: str = ""
    load: float | None = None  # of the machine over the last minute, when it was done

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one or without a number."""
        if self.target is None or self.status in ("skipped", "failed"):
            return None
        if self.ratio is not None:
            return self.ratio.median >= self.target
        if self.value is None:
            return None
        if self.higher_is_better:
            return self.value >= self.target
        return self.value <= self.target


def timed_row(
    name: str, size: str, items: float, unit: str, timing: Timing, **more
) -> Row:
    """A row of `items` per call; failed if it compiled again, noisy if it varies."""
    status, note = "ok", more.pop("note", "")
    if timing.retraces:
        status = "failed"
        note = f"compiled {timing.retraces} times in the timed part"
    elif timing.noisy:
        status = "noisy"
    return Row(
        name,
        size,
        value=items / timing.median_s,
        unit=unit,
        timing=timing,
        status=status,
        note=note,
        **more,
    )


def _cpu_model() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def _commit() -> str:
    root = pathlib.Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(git, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """Processes that wanted a core, on average over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def context() -> dict[str, Any]:
    """What the numbers depend on: machine, versions, flags, commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "schema": SCHEMA,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "load_before": load(),
        "versions": versions,
        "flags": {
            name: value
            for name, value in sorted(os.environ.items())
            if name == "XLA_FLAGS" or name.startswith("JAX_")
        },
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
    }


def to_json(row: Row, where: dict[str, Any]) -> str:
    """One line; the nested records become dictionaries."""
    record = row._asdict()
    for part in ("timing", "ratio"):
        if record[part] is not None:
            record[part] = record[part]._asdict()
    return json.dumps({**record, **where})


def read(path: str | os.PathLike) -> list[tuple[Row, dict[str, Any]]]:
    """Rows of a file, each with its context.

    Raises:
        ValueError: naming file and line if a line is not of this schema.
    """
    found = []
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        record = json.loads(line)
        if record.get("schema") != SCHEMA:
            raise ValueError(
                f"{path}:{number}: schema must be {SCHEMA}, got "
                f"{record.get('schema')}; measure the baseline again."
            )
        values = {name: record.pop(name) for name in Row._fields}
        if values["timing"] is not None:
            timing = Timing(**values["timing"])
            work = tuple(timing.work) if timing.work else None
            values["timing"] = timing._replace(work=work)
        if values["ratio"] is not None:
            values["ratio"] = Ratio(**values["ratio"])
        found.append((Row(**values), record))
    return found


class Change(NamedTuple):
    """One row beside its baseline; `ratio` above 1 is slower or larger."""

    name: str
    size: str
    ratio: float
    worse: bool


def changes(new: Iterable[Row], base: Iterable[Row]) -> list[Change]:
    """Rows that both have, worst first.

    A timed row is worse if its median is more than 10 % above the baseline's and the
    medians lie outside each other's p10-p90; another row, if its value is 10 % worse.
    Where one of two timed rows is noisy, other work was in the way: then `Timing.work`
    is compared instead of seconds, if both rows have it.
    """
    before = {(row.name, row.size): row for row in base}
    found = []
    for row in new:
        old = before.get((row.name, row.size))
        if old is None or not row.value or not old.value:
            continue
        if row.timing is not None and old.timing is not None:
            now, then = _gauges(row.timing, old.timing)
            ratio = now[0] / then[0]
            apart = now[0] > then[2] and then[0] < now[1]
        else:
            ratio = row.value / old.value
            ratio = 1 / ratio if row.higher_is_better else ratio
            apart = True
        found.append(Change(row.name, row.size, ratio, ratio > SLOWER and apart))
    return sorted(found, key=lambda change: -change.ratio)


def _gauges(new: Timing, old: Timing):
    """(median, p10, p90) of both: of the work done where seconds are noisy."""
    if (new.noisy or old.noisy) and new.work and old.work:
        return new.work, old.work
    return tuple((t.median_s, t.p10_s, t.p90_s) for t in (new, old))
