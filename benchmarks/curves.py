"""Rows that sweep the number of environments, as one picture."""

import pathlib
import re

from benchmarks.record import Row

_COUNT = re.compile(r"^([\d,]+) environments")
LEAST = 3  # points of a curve


def of(rows: list[Row]) -> dict[str, list[tuple[int, float]]]:
    """Steps a second by number of environments, of every row that has enough points."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        size = _COUNT.match(row.size)
        if size and row.unit == "steps/s" and row.value:
            point = int(size.group(1).replace(",", "")), row.value
            found.setdefault(row.name, []).append(point)
    return {name: sorted(p) for name, p in found.items() if len(p) >= LEAST}


def draw(rows: list[Row], path: pathlib.Path) -> bool:
    """Writes the curves; returns whether there were any."""
    curves = of(rows)
    if not curves:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, points in curves.items():
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xlabel("environments")
    axes.set_ylabel("environment steps a second")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True
