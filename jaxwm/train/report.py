"""One page about one run: `report(Run(...)) -> html`.

The page is self-contained: figures and film are embedded, nothing is loaded from
anywhere (its content policy forbids it), no script runs, and it reads on a phone.
Everything that comes from outside is escaped. What is missing is named with its reason
instead of being left out silently. Nothing here touches files; `jaxwm report` reads
them and writes the page.

Shapes: S seeds, E episodes, K evaluations, H imagined steps, N starts, O observation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxwm.train import evaluate, page, sections
from jaxwm.train.sections import Run
from jaxwm.types import EnvSpec

__all__ = ["Run", "curve", "of_run", "report"]

# Sections in the order of the page: heading, its short form for the navigation, and why
# it may be missing.
_REPLAYED = "imagined trajectories were not replayed in the simulator"
_SECTIONS = {
    "results": (
        "Results",
        "Results",
        "the policy was not evaluated; `jaxwm eval` does it",
    ),
    "curves": (
        "Learning curves",
        "Curves",
        "the run holds no evaluation during training",
    ),
    "film": ("The policy at work", "Film", "no film was recorded for this run"),
    "error": ("World model: error by horizon", "Error", _REPLAYED),
    "beside": ("World model: real beside imagined", "Imagined", _REPLAYED),
    "frames": (
        "World model: what it sees",
        "Frames",
        "the world model does not see images, or does not paint them",
    ),
    "on_policy": (
        "World model: are imagined actions on-policy?",
        "Actions",
        "the statistics of imagined actions were not recorded",
    ),
    "noise": (
        "World model: does it keep the process noise?",
        "Noise",
        "the environment is deterministic, or no stochastic check was asked for",
    ),
    "structure": (
        "World model: who acts on whom",
        "Structure",
        "the world model says nothing of who acts on whom",
    ),
    "environment": (
        "Environment",
        "Environment",
        "the environment names no factors of variation",
    ),
    "ran": ("What ran", "What ran", "the run holds no configuration"),
    "reproduce": ("How to reproduce", "Reproduce", "the command was not recorded"),
}
_SOLVED = 0.8  # share of the gap that counts as reached


def report(run: Run, *, max_media: int = 8_000_000) -> str:
    """The page as HTML text.

    Args:
        run: what to show.
        max_media: bytes above which film or strip is not embedded but named in the
            notes, so the page can be mailed.

    Raises:
        ValueError: for a name in `run.missing` that is no section.
    """
    unknown = set(run.missing) - set(_SECTIONS)
    if unknown:
        raise ValueError(
            f"missing names unknown sections {sorted(unknown)}; sections are "
            f"{list(_SECTIONS)}."
        )
    bodies = {
        "results": sections.results(run),
        "curves": sections.curves(run),
        "film": sections.film(run, max_media),
        "error": sections.error(run),
        "beside": sections.beside(run),
        "frames": sections.frames(run),
        "on_policy": sections.on_policy(run),
        "noise": sections.noise(run),
        "structure": sections.structure(run),
        "environment": sections.environment(run),
        "ran": sections.ran(run),
        "reproduce": sections.reproduce(run),
    }
    shown = {name: body for name, body in bodies.items() if body}
    parts = [page.section(name, _SECTIONS[name][0], shown[name]) for name in shown]
    parts.append(page.section("notes", "Notes", _notes(run, shown, max_media)))
    links = [(name, _SECTIONS[name][1]) for name in shown] + [("notes", "Notes")]
    return page.document(
        run.title, page.header(run.title, run.summary, _tiles(run)), links, parts
    )


def of_run(
    document: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    spec: EnvSpec | None = None,
    *,
    metric: str = "eval/return",
) -> Run:
    """What a run's own files say; the rest is added with `_replace`.

    Args:
        document: config.json (see `run.document`); missing keys stay missing.
        rows: metrics.jsonl, from `sinks.read`.
        spec: of the run's environment: its factors, clock and ends of the score.
        metric: the rows' name of the evaluation's return.
    """
    settings = document.get("run") or {}
    env = settings.get("env") or (spec.name if spec is not None else "")
    steps, values = curve(rows, metric)
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    run = Run(
        title=" on ".join(filter(None, (document.get("recipe", "a run"), env))),
        env=env,
        steps=steps if len(steps) else None,
        curves=values if len(steps) else None,
        config={k: document[k] for k in ("run", "config") if document.get(k)},
        versions=document.get("versions") or {},
        device=document.get("device") or "",
        seeds=document.get("seeds") or (),
        seconds=max(seconds, default=None),
        command=document.get("command") or "",
    )
    if spec is None:
        return run
    return run._replace(
        random_return=spec.random_return,
        best_return=spec.best_return,
        control_dt=spec.control_dt,
        factors=spec.factors,
    )


def curve(
    rows: Sequence[Mapping[str, Any]], name: str, *, step: str = "step"
) -> tuple[np.ndarray, np.ndarray]:
    """One metric of all seeds over training, from the rows of metrics.jsonl.

    Args:
        rows: of `sinks.read`. A value is a number, a list with one number per seed, or
            one list per seed (episodes, averaged); None stands for NaN.
        name: the metric, e.g. "eval/return".
        step: the key of the horizontal axis.

    Returns:
        Steps `[K]`, increasing, and values `[S, K]`, NaN where a seed has none. Rows
        without the metric are skipped; of several for one step the last one counts.

    Raises:
        ValueError: if a row has the metric but no step, or another number of seeds.
    """
    points: dict[float, np.ndarray] = {}
    for number, row in enumerate(rows):
        if row.get(name) is None:
            continue
        if row.get(step) is None:
            raise ValueError(f"row {number} has {name!r} but no {step!r}.")
        values = np.atleast_1d(np.asarray(row[name], float))
        points[float(row[step])] = values.reshape(len(values), -1).mean(1)
    sizes = {len(values) for values in points.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"{name!r} has {sorted(sizes)} seeds in different rows; report one run at "
            "a time."
        )
    steps = sorted(points)
    values = np.array([points[at] for at in steps]).reshape(len(steps), *sizes or [0])
    return np.array(steps), values.T


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """Facts of the head: (label, value, small print)."""
    tiles = []
    over, scores = sections.scores(run)
    if over is not None:
        num = len(over.per_seed)
        small = f"interquartile mean of {num} seeds" if num > 1 else "one seed"
        tiles.append(("trained return", page.number(over.iqm), small))
        if scores is not None:
            iqm = evaluate.score(over.iqm, run.random_return, run.best_return)
            tiles.append(("score", page.percent(iqm), "of the gap random to best"))
            reached = int((scores >= _SOLVED).sum())
            tiles.append(("seeds", f"{reached} of {num}", "reach a score of 0.8"))
    ratio = sections.ratio_to_persistence(run)
    if ratio is not None:
        tiles.append(
            (
                "imagination error",
                page.percent(ratio, 2),
                "of that of repeating the start, mean over steps",
            )
        )
    if run.seconds is not None:
        small = f"{len(run.seeds)} seeds together" if len(run.seeds) > 1 else ""
        tiles.append(("wall time", page.duration(float(run.seconds)), small))
    return tiles


def _notes(run: Run, shown: Mapping[str, str], max_media: int) -> str:
    notes = [page.text(note) for note in run.notes]
    over, scores = sections.scores(run)
    if over is not None and len(over.per_seed) < 5:
        notes.append(
            f"{len(over.per_seed)} seed{'s' * (len(over.per_seed) > 1)} only: read "
            "differences of returns with care."
        )
    if over is not None and scores is None:
        notes.append(
            "No score: the environment's random or best known return is not known "
            f"(random {page.number(run.random_return)}, best "
            f"{page.number(run.best_return)})."
        )
    for data, what in ((run.film, "film"), (run.strip, "film strip")):
        if data is not None and len(data) > max_media:
            notes.append(
                f"The {what} has {len(data):,} bytes, more than the {max_media:,} that "
                "this page takes in; see the run's media folder."
            )
    too_large = run.film is not None or run.strip is not None
    for name, (heading, _, reason) in _SECTIONS.items():
        if name not in shown and not (name == "film" and too_large):
            why = page.text(run.missing.get(name, reason))
            notes.append(f"Not shown: <em>{page.text(heading)}</em>. Reason: {why}.")
    if not notes:
        return "<p>Every section of the report is present.</p>"
    return "<ul>" + "".join(f"<li>{note}</li>" for note in notes) + "</ul>"
