"""Figures of a report: learning curves, errors by horizon, trajectories, frames.

Shapes: K points of a curve, S seeds, H steps, O observation entries, N starts, F
frames. Every function takes numbers and returns a figure's bytes: SVG by default
(sharp at every zoom), PNG on request. Colours are close to Okabe and Ito's, told apart
by every common form of colour blindness; line style and marker repeat what colour says.
matplotlib is imported when first used; its global state is left as it was, and no
display is needed.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxwm.core import stats
from jaxwm.train.evaluate import Numbers

INK, GREY, PAPER = "#1f2933", "#6b7785", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, SKY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#a2457f",
    "#3f9bcb",
)
# Colour, marker and dash of the model reported on and of the others after it.
_SERIES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "D", (0, (4, 1, 1, 1, 1, 1))),
    (SKY, "v", (0, (2, 1))),
)
_STYLE: Any = {
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#a9b4c0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e9ee",
    "text.color": INK,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",  # looks the same where our font is not installed
    "svg.hashsalt": "jaxwm",  # equal data give equal bytes
}
_WIDTH = 6.6  # inches; text then reads at widths of 340 to 640 pixels
_MAX_ENTRIES, _MAX_STARTS = 8, 3
_MAX_EDGES, _MAX_GRAPHS = 20, 4


def learning_curves(
    steps: Numbers,
    values: Numbers,
    *,
    random: float | None = None,
    best: float | None = None,
    xlabel: str = "environment steps",
    ylabel: str = "return of an episode",
    format: str = "svg",
) -> bytes:
    """Every seed thin, their interquartile mean bold with its 95 % interval.

    Args:
        steps: `[K]`.
        values: `[S, K]`; NaN where a seed has no evaluation.
        random: return of the random policy, a dotted line.
        best: best known return, a dashed line.
        xlabel: what `steps` counts.
        ylabel: what `values` measure.
        format: "svg" or "png".
    """
    at, rows = np.asarray(steps, float), np.atleast_2d(np.asarray(values, float))
    if rows.shape != (len(rows), len(at)):
        raise ValueError(f"values must be [S, {len(at)}] like steps, got {rows.shape}.")

    def draw(figure):
        axes = figure.subplots()
        for seed in rows:
            axes.plot(at, seed, color=BLUE, alpha=0.35, linewidth=1)
        handles, names = [], []
        full = np.isfinite(rows).all(0)
        if full.any():
            x, y = at[full], rows[:, full]
            handles = axes.plot(
                x,
                stats.interquartile_mean(y),
                color=BLUE,
                marker="o" if len(x) < 20 else None,
                markersize=4,
            )
            names = ["one seed"]
            if len(rows) > 1:
                low, high = stats.bootstrap_interval(y, resamples=1000)
                band = axes.fill_between(
                    x, low, high, color=BLUE, alpha=0.18, linewidth=0
                )
                handles = [(band, handles[0])]
                names = [f"IQM of {len(rows)} seeds, 95 %"]
        for level, name, colour, dash in (
            (best, "best known", GREEN, "--"),
            (random, "random policy", GREY, ":"),
        ):
            if level is not None:
                handles.append(axes.axhline(level, color=colour, linestyle=dash))
                names.append(name)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        figure.legend(handles, names, loc="outside upper left", ncols=3)

    return _render(draw, _WIDTH, 3.7, format)


def error_by_horizon(
    errors: Mapping[str, Any],
    *,
    persistence: Numbers | None = None,
    ylabel: str = "squared error / variance",
    format: str = "svg",
) -> bytes:
    """Error by imagined step on a logarithmic axis, the first model in front.

    Args:
        errors: by model's name, `[H]` for k = 0 ... H - 1. Zeros (a start that is
            given, up to rounding) and NaN (no trajectory left) are not drawn.
        persistence: the error of repeating the first observation, `[H]`.
        ylabel: unit of the errors.
        format: "svg" or "png".

    Raises:
        ValueError: if no model is given.
    """
    if not errors:
        raise ValueError("errors must hold at least one model, got an empty mapping.")

    def draw(figure):
        axes = figure.subplots()
        drawn = False
        for i, (name, row) in enumerate(errors.items()):
            colour, marker, dash = _SERIES[i % len(_SERIES)]
            y = _positive(row)
            drawn |= bool(np.isfinite(y).any())
            axes.plot(
                y,
                color=colour,
                linestyle=dash,
                marker=marker if len(y) < 40 else None,
                markersize=5,
                label=_plain(name),
                zorder=3 if i == 0 else 2,
            )
        if persistence is not None:
            y = _positive(persistence)
            drawn |= bool(np.isfinite(y).any())
            axes.plot(
                y, color=GREY, linestyle=":", marker="x", label="repeat the first obs."
            )
        if drawn:
            axes.set_yscale("log")
        else:
            _say(axes, "all errors are exactly zero")
        axes.set(xlabel="imagined step k", ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside upper left", ncols=2)

    return _render(draw, _WIDTH, 3.9, format)


def real_beside_imagined(
    real: Numbers,
    imagined: Numbers,
    *,
    mask: Numbers | None = None,
    names: Sequence[str] | None = None,
    control_dt: float | None = None,
    format: str = "svg",
) -> bytes:
    """One row per observation entry, one column per start: what happened, what was
    imagined from the same start under the same actions.

    Args:
        real: the simulator's replay, `[N, H, O]`; the first 3 starts and 8 entries are
            drawn; the figure says how many entries it leaves out.
        imagined: the model's, `[N, H, O]`.
        mask: `[N, H]`, 0 behind a true termination: the real line ends there.
        names: of the O entries.
        control_dt: seconds per step; None labels the axis in steps.
        format: "svg" or "png".

    Raises:
        ValueError: for arrays that are not both `[N, H, O]`, or too few or many names.
    """
    real, imagined = np.asarray(real, float), np.asarray(imagined, float)
    if real.ndim != 3 or real.shape != imagined.shape:
        raise ValueError(
            "real and imagined must both be [N, H, O], got "
            f"{real.shape} and {imagined.shape}."
        )
    num, horizon, size = real.shape
    names = [f"obs[{i}]" for i in range(size)] if names is None else list(names)
    if len(names) != size:
        raise ValueError(f"names must have {size} entries like obs, got {len(names)}.")
    if mask is not None:
        real = np.where(np.asarray(mask)[..., None] > 0, real, np.nan)
    columns, rows = min(num, _MAX_STARTS), min(size, _MAX_ENTRIES)
    time = np.arange(horizon) * (control_dt or 1)
    marker = "o" if horizon <= 30 else None

    def draw(figure):
        grid = figure.subplots(rows, columns, sharex=True, sharey="row", squeeze=False)
        for j in range(columns):
            grid[0, j].set_title(f"start {j + 1}")
            grid[-1, j].set_xlabel("steps" if control_dt is None else "seconds")
            for i in range(rows):
                axes = grid[i, j]
                (true,) = axes.plot(
                    time, real[j, :, i], color=INK, linewidth=2.6, alpha=0.75
                )
                (dream,) = axes.plot(
                    time,
                    imagined[j, :, i],
                    color=ORANGE,
                    linestyle="--",
                    linewidth=1.4,
                    marker=marker,
                    markersize=3.2,
                )
        for i in range(rows):
            grid[i, 0].set_ylabel(_plain(names[i]))
            # A constant entry would otherwise be magnified until rounding fills it.
            low, high = grid[i, 0].get_ylim()
            if high - low < 1e-3 * max(abs(low), abs(high), 1e-6):
                middle, half = (low + high) / 2, 0.5 * max(abs(low), abs(high), 1e-3)
                grid[i, 0].set_ylim(middle - half, middle + half)
        figure.align_ylabels(grid[:, 0])
        figure.legend(
            [true, dream], ["simulator", "imagined"], loc="outside upper left", ncols=2
        )
        if size > rows:
            figure.supxlabel(
                f"{size - rows} of {size} entries are not drawn", fontsize=9, color=GREY
            )

    return _render(draw, max(2.4 * columns, 4.5), 1.25 * rows + 0.9, format)


def film_strip(
    frames: np.ndarray,
    *,
    control_dt: float | None = None,
    every: int = 1,
    columns: int = 5,
    rows: int = 2,
    format: str = "png",
) -> bytes:
    """A contact sheet: frames picked evenly from first to last, with their times.

    Args:
        frames: `[F, height, width, 3]`, uint8.
        control_dt: seconds per environment step; None numbers the steps.
        every: environment steps between two frames.
        columns: pictures side by side.
        rows: rows of pictures.
        format: "png" or "svg".

    Raises:
        ValueError: for another shape or no frame.
    """
    frames = _checked_frames(frames)
    num = min(columns * rows, len(frames))
    picked = np.linspace(0, len(frames) - 1, num).round().astype(int)
    columns = min(columns, num)
    rows = -(-num // columns)
    aspect = frames.shape[1] / frames.shape[2]

    def draw(figure):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, i in zip(grid, picked, strict=False):
            axes.imshow(frames[i], interpolation="lanczos")
            step = i * every
            text = (
                f"step {step}" if control_dt is None else f"{step * control_dt:.2f} s"
            )
            axes.set_title(text, fontsize=10, fontweight="normal", color=GREY)

    return _render(draw, _WIDTH, (_WIDTH / columns * aspect + 0.26) * rows, format)


def seen_and_imagined(
    real: np.ndarray,
    decoded: np.ndarray,
    imagined: np.ndarray,
    *,
    control_dt: float | None = None,
    columns: int = 8,
    format: str = "png",
) -> bytes:
    """Frames of one episode in three rows: real, decoded, imagined.

    Args:
        real: what the environment shows, `[H, height, width, 3]`, uint8.
        decoded: what a model paints when it has seen every frame up to this one.
        imagined: what it paints when it has seen the first frame and what came before
            it, but of the others only the actions.
        control_dt: seconds per environment step; None numbers the steps.
        columns: frames shown at most, picked evenly from first to last.
        format: "png" or "svg".

    Raises:
        ValueError: for another shape, no frame, or rows of different shapes.
    """
    rows = {"real": real, "decoded": decoded, "imagined": imagined}
    frames = {name: _checked_frames(row) for name, row in rows.items()}
    shapes = {name: row.shape for name, row in frames.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"real, decoded and imagined must have one shape, got {shapes}; cut them "
            "to the same steps."
        )
    total, height, width, _ = frames["real"].shape
    picked = np.linspace(0, total - 1, min(columns, total)).round().astype(int)

    def draw(figure):
        grid = figure.subplots(3, len(picked), squeeze=False)
        for line, (name, row) in zip(grid, frames.items(), strict=True):
            for axes, i in zip(line, picked, strict=True):
                axes.imshow(row[i], interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(name, color=INK)
        for axes, i in zip(grid[0], picked, strict=True):
            text = f"step {i}" if control_dt is None else f"{i * control_dt:.2f} s"
            axes.set_title(text, fontsize=10, fontweight="normal", color=GREY)

    side = _WIDTH / (len(picked) + 0.4)
    return _render(draw, _WIDTH, 3 * side * height / width + 0.4, format)


def causal_graph(
    graph: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    positions: Numbers | None = None,
    control_dt: float | None = None,
    format: str = "svg",
) -> bytes:
    """Who influences whom over time: pictures of some steps, and a row per edge.

    Args:
        graph: `[H, N, M]` bool, [k, i, j] true where j acts on i in step k; of the M
            tokens the first N are predicted, the others (an action, an environment)
            are only read. Self edges are not drawn.
        names: of the M tokens.
        positions: of the N predicted ones, `[H, N, 2]`, y upwards; None: on a circle.
        control_dt: seconds per step; None numbers the steps.
        format: "svg" or "png".

    Raises:
        ValueError: for another shape or type, or too few or many names.
    """
    graph = np.asarray(graph)
    sound = graph.ndim == 3 and graph.dtype == bool
    if not sound or not 1 <= graph.shape[1] <= graph.shape[2]:
        raise ValueError(
            "graph must be [H, N, M] bool with M >= N >= 1, got "
            f"{graph.shape} {graph.dtype}."
        )
    steps, num, width = graph.shape
    names = [str(j) for j in range(width)] if names is None else list(names)
    if len(names) != width:
        raise ValueError(f"names must have {width} entries like M, got {len(names)}.")
    nodes = _node_positions(steps, num, width, positions)
    drawn = graph & ~np.eye(num, width, dtype=bool)
    share = drawn.mean(0)
    order = np.argsort(-share, axis=None, kind="stable")
    edges = [np.unravel_index(flat, share.shape) for flat in order]
    edges = [(i, j) for i, j in edges if share[i, j] > 0][:_MAX_EDGES]
    left_out = int((share > 0).sum()) - len(edges)
    picked = np.linspace(0, steps - 1, min(_MAX_GRAPHS, steps)).round().astype(int)
    rows = max(len(edges), 1)
    unit = control_dt or 1

    def time(k):
        return f"step {k}" if control_dt is None else f"{k * unit:.2f} s"

    def draw(figure):
        upper, lower = figure.subfigures(2, 1, height_ratios=(2.3, 0.2 * rows + 0.7))
        grid = upper.subplots(1, len(picked), squeeze=False)[0]
        for axes, k in zip(grid, picked, strict=True):
            _draw_graph(axes, drawn[k], nodes[k], names)
            axes.set_title(time(k), fontsize=10, fontweight="normal", color=GREY)
        axes = lower.subplots()
        axes.grid(False)
        for row, (i, j) in enumerate(edges):
            on = np.flatnonzero(drawn[:, i, j])
            colour = BLUE if j < num else ORANGE
            cells = [(k * unit, unit) for k in on]
            axes.broken_barh(cells, (row + 0.14, 0.72), color=colour, linewidth=0)
        label = "imagined step k" if control_dt is None else "imagined seconds"
        axes.set(xlim=(0, steps * unit), ylim=(rows, 0), xlabel=label)
        axes.set_yticks(
            np.arange(len(edges)) + 0.5,
            [f"{_plain(names[j])} → {_plain(names[i])}" for i, j in edges],
            fontsize=9,
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        lines = [axes.plot([], [], color=colour)[0] for colour in (BLUE, ORANGE)]
        whose = ["from a predicted token", "from one that is only read"]
        if width > num:
            upper.legend(lines, whose, loc="outside upper left", ncols=2)
        if not edges:
            _say(axes, "no token acts on another")
        if left_out:
            lower.supxlabel(f"{left_out} rarer edges are not drawn", fontsize=9)

    return _render(draw, _WIDTH, 2.3 + 0.2 * rows + 0.7, format)


def _node_positions(steps: int, num: int, width: int, positions) -> np.ndarray:
    """Where to draw the tokens, `[H, M, 2]`; those only read stand in a row above."""
    angle = np.pi / 2 - 2 * np.pi * np.arange(num) / num
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    if positions is None:
        placed = np.broadcast_to(circle, (steps, num, 2))
    else:
        placed = np.asarray(positions, float)
        if placed.shape != (steps, num, 2):
            raise ValueError(
                f"positions must be {(steps, num, 2)} like the graph, got "
                f"{placed.shape}."
            )
        low, high = placed.min((0, 1)), placed.max((0, 1))
        placed = 2 * (placed - low) / np.maximum(high - low, 1e-9).max() - 1
    others = np.linspace(-1, 1, width - num + 2)[1:-1]
    above = np.stack([others, np.full(width - num, 1.7)], -1)
    above = np.broadcast_to(above, (steps, width - num, 2))
    return np.concatenate([placed, above], 1)


def _draw_graph(axes, graph, nodes, names) -> None:
    """One graph as arrows between numbered dots; read-only tokens are orange."""
    num, width = graph.shape
    axes.set_axis_off()
    top = 2.1 if width > num else 1.4  # room for what is only read
    axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, top), aspect="equal")
    for i, j in np.argwhere(graph):
        axes.annotate(
            "",
            nodes[i],
            nodes[j],
            arrowprops={
                "arrowstyle": "-|>",
                "color": BLUE if j < num else ORANGE,
                "linewidth": 1.0,
                "shrinkA": 5,
                "shrinkB": 6,
                "connectionstyle": "arc3,rad=0.12",
            },
        )
    for j in range(width):
        if j >= num and not graph[:, j].any():
            continue
        axes.plot(
            *nodes[j],
            marker="o" if j < num else "s",
            markersize=10,
            color=PAPER,
            markeredgecolor=INK if j < num else ORANGE,
        )
        text = _plain(names[j])[:3]
        size = 6.5 if len(text) < 3 else 5.0
        axes.text(*nodes[j], text, fontsize=size, ha="center", va="center")


def mechanism_usage(
    mechanism: np.ndarray,
    context: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    control_dt: float | None = None,
    format: str = "svg",
) -> bytes:
    """Which mechanism moved each object over time, and with which context.

    A row per object, a cell per step: the colour is the mechanism, the text the other
    object that it looked at, none where an object looked at itself alone.

    Args:
        mechanism: number of the mechanism, `[H, N]`.
        context: number of the object that it looked at, `[H, N]`.
        names: of the N objects.
        control_dt: seconds per step; None numbers the steps.
        format: "svg" or "png".

    Raises:
        ValueError: for arrays that are not both `[H, N]`, or too few or many names.
    """
    mechanism, context = np.asarray(mechanism), np.asarray(context)
    if mechanism.ndim != 2 or mechanism.shape != context.shape:
        raise ValueError(
            "mechanism and context must both be [H, N], got "
            f"{mechanism.shape} and {context.shape}."
        )
    steps, num = mechanism.shape
    names = [f"object {i}" for i in range(num)] if names is None else list(names)
    if len(names) != num:
        raise ValueError(f"names must have {num} entries like N, got {len(names)}.")
    unit = control_dt or 1
    colours = [colour for colour, _, _ in _SERIES]

    def draw(figure):
        axes = figure.subplots()
        axes.grid(False)
        handles = {}
        for m in np.unique(mechanism):
            # Beyond the fifth mechanism colours come again, paler.
            colour, alpha = colours[m % len(colours)], 0.85 / (1 + m // len(colours))
            for i in range(num):
                cells = [(k * unit, unit) for k in np.flatnonzero(mechanism[:, i] == m)]
                bar = axes.broken_barh(
                    cells, (i + 0.1, 0.8), color=colour, alpha=alpha, linewidth=0
                )
                if cells:
                    handles.setdefault(str(m), bar)
        for k, i in np.argwhere(context != np.arange(num)):
            at = ((k + 0.5) * unit, i + 0.5)
            axes.text(*at, context[k, i], color=PAPER, ha="center", va="center")
        label = "imagined step k" if control_dt is None else "imagined seconds"
        axes.set(xlim=(0, steps * unit), ylim=(num, 0), xlabel=label)
        axes.set_yticks(np.arange(num) + 0.5, [_plain(name) for name in names])
        figure.legend(
            list(handles.values()),
            [f"mechanism {name}" if i == 0 else name for i, name in enumerate(handles)],
            loc="outside upper left",
            ncols=8,
        )

    return _render(draw, _WIDTH, 0.36 * num + 1.1, format)


def rate_distortion(
    epsilons: Numbers,
    sizes: Mapping[str, Any],
    *,
    points: Mapping[str, Any] | None = None,
    ylabel: str = "bytes",
    format: str = "svg",
) -> bytes:
    """Size against the rise of the loss that is allowed, both on logarithmic axes.

    Args:
        epsilons: `[E]`, nats.
        sizes: by name, `[E]`; NaN where nothing keeps the loss.
        points: single measurements by name, (epsilon, size).
        ylabel: unit of the sizes.
        format: "svg" or "png".

    Raises:
        ValueError: for sizes of another length than `epsilons`.
    """
    at = np.asarray(epsilons, float)
    for name, row in sizes.items():
        if np.shape(row) != at.shape:
            raise ValueError(
                f"sizes[{name}] must be {at.shape} like epsilons, got {np.shape(row)}."
            )

    def draw(figure):
        axes = figure.subplots()
        for i, (name, row) in enumerate(sizes.items()):
            colour, marker, dash = _SERIES[i % len(_SERIES)]
            axes.plot(
                at,
                _positive(row),
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=5,
                label=_plain(name),
            )
        for i, (name, (epsilon, size)) in enumerate((points or {}).items()):
            colour, marker, _ = _SERIES[(len(sizes) + i) % len(_SERIES)]
            axes.plot(
                [epsilon],
                [size],
                color=colour,
                linestyle="none",
                marker=marker,
                markersize=8,
                label=_plain(name),
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda x, _: f"{x:,g}")
            axis.set_minor_formatter(lambda x, _: f"{x:,g}")
            axis.get_minor_locator().set_params(subs=(2, 5))
        axes.set(xlabel="rise of the loss allowed, ε (nats)", ylabel=ylabel)
        figure.legend(loc="outside upper left", ncols=2)

    return _render(draw, _WIDTH, 3.9, format)


def _render(draw: Callable, width: float, height: float, format: str) -> bytes:
    """Lets `draw` fill a new figure of this size in inches; the bytes of its file."""
    if format not in ("svg", "png"):
        raise ValueError(f'format must be "svg" or "png", got {format!r}.')
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without a date and a program's name, equal figures are equal files.
    meta = {"Date": None} if format == "svg" else {"Software": None}
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(file, format=format, dpi=160, metadata=meta)
    return file.getvalue()


def _positive(row) -> np.ndarray:
    row = np.asarray(row, float)
    # Below the square of float32's rounding an error is that of a given start.
    return np.where(np.isfinite(row) & (row > 1e-12), row, np.nan)


def _plain(name: str) -> str:
    """A name that is not read as a formula."""
    return str(name).replace("$", r"\$")


def _say(axes, text: str):
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)


def _checked_frames(frames) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(
            f"frames must be [F, height, width, 3] with F >= 1, got {frames.shape}."
        )
    return frames.astype(np.uint8)
