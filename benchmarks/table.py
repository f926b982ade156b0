"""Rows as a person reads them."""

from rich import box
from rich.table import Table

from benchmarks.record import Row

BUSY = 0.5  # load per core from which other work disturbs


def number(value: float) -> str:
    """Three digits and a prefix: 1234567 is "1.23 M"."""
    for bound, unit, suffix in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(value) >= bound:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def seconds(value: float) -> str:
    """A duration with its unit: 0.00123 is "1.23 ms"."""
    for bound, factor, unit in ((1.0, 1, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "us")):
        if value >= bound:
            return f"{value * factor:.3g} {unit}"
    raise ValueError(f"a duration must not be negative, got {value}")


def heading(where: dict) -> str:
    """Machine, versions and flags; and a warning where the machine is busy."""
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    flags = " ".join(f"{k}={v}" for k, v in where["flags"].items())
    lines = [f"{where['device']}, {where['cores']} cores of {where['cpu']}", versions]
    lines += [flags] if flags else []
    load = where["load_before"]
    if load is not None and load > BUSY * where["cores"]:
        lines.append(
            f"The machine is busy (load {load:.1f}): no number below is to be trusted."
        )
    return "\n".join(lines)


def result(row: Row) -> str:
    if row.value is None:
        return "-"
    return f"{number(row.value)} {row.unit}".strip()


def call(row: Row) -> str:
    """Median of one call, and half the distance from p10 to p90."""
    if row.timing is None:
        return ""
    timing = row.timing
    half = (timing.p90_s - timing.p10_s) / (2 * timing.median_s)
    return f"{seconds(timing.median_s)} ±{half:.0%}"


def start(row: Row) -> str:
    """Seconds until the first result: tracing, lowering, compiling."""
    if row.timing is None:
        return ""
    timing = row.timing
    return seconds(timing.trace_s + timing.lower_s + timing.compile_s)


def peak(row: Row) -> str:
    return f"{row.timing.peak_bytes / 1e6:.3g}" if row.timing is not None else ""


def against(row: Row) -> str:
    """How many times faster than the peer, with the interval of the ratio."""
    if row.ratio is None:
        return ""
    ratio = row.ratio
    return f"{ratio.median:.2f} x {ratio.peer} [{ratio.low:.2f}, {ratio.high:.2f}]"


def target(row: Row) -> str:
    if row.target is None:
        return ""
    sign = ">=" if row.ratio is not None or row.higher_is_better else "<="
    word = {True: " met", False: " MISSED", None: ""}[row.met]
    return f"{sign} {row.target:g}{word}"


def line(row: Row) -> str:
    """One row while the others still run."""
    parts = [row.name, row.size, result(row), against(row), target(row)]
    parts += [row.status * (row.status != "ok"), row.note]
    return "  ".join(part for part in parts if part)


def sentence(row: Row) -> str:
    """The row, its size, and how it stands beside its peer, a line each."""
    judged = ", ".join(part for part in (against(row), target(row)) if part)
    return "\n".join(part for part in (row.name, row.size, judged) if part)


def glance(rows: list[Row]) -> Table:
    """All rows in one table; columns without an entry are left out."""
    columns = {
        "row": sentence,
        "result": result,
        "a call": call,
        "compile": start,
        "peak MB": peak,
        "of peak": lambda row: f"{row.roofline:.0%}" if row.roofline else "",
        "status": lambda row: row.status * (row.status != "ok"),
    }
    cells = {name: [read(row) for row in rows] for name, read in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    table = Table(box=box.SIMPLE_HEAD, leading=1)
    for name in cells:
        table.add_column(name, no_wrap=name != "row")
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def notes(rows: list[Row]) -> str:
    """What rows have to say, peers that were skipped among it."""
    return "\n".join(f"{row.name}: {row.note}" for row in rows if row.note)
