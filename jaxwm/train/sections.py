"""The parts of a run's page, each from a `Run` to HTML or None where it has no data.

Shapes: S seeds, E episodes, K evaluations, H imagined steps, N starts, O observation.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxwm.train import evaluate, page, plots


class Run(NamedTuple):
    """What a report shows; None or empty where the run does not have it."""

    title: str
    summary: str = ""  # one sentence below the title
    env: str = ""
    # returns of the final policy
    returns: np.ndarray | None = None  # [S, E], or [S] means
    lengths: np.ndarray | None = None  # [S, E] or [S]
    random_return: float | None = None
    best_return: float | None = None
    # evaluations during training
    steps: np.ndarray | None = None  # [K] environment steps
    curves: np.ndarray | None = None  # [S, K]
    # world model; the first name is the model the policy was trained in
    errors: Mapping[str, Mapping[str, Any]] = {}  # name -> fields of TrajectoryError
    beside: Mapping[str, Mapping[str, Any]] = {}  # name -> real, imagined, mask
    obs_names: Sequence[str] | None = None
    control_dt: float | None = None  # seconds per environment step
    # models of images: name -> real, decoded, imagined frames of one window
    frames: Mapping[str, Mapping[str, np.ndarray]] = {}
    on_policy: Mapping[str, Any] | None = None  # mean [A], std [A]
    noise: Mapping[str, Mapping[str, Any]] = {}  # name -> fields of NoiseFidelity
    # name -> what a model says of one imagined trajectory: graph [H, N, M] with names
    # of the M `tokens` and perhaps position [H, N, 2]; mechanism, context [H, N]
    structure: Mapping[str, Mapping[str, Any]] = {}
    # pictures
    film: bytes | None = None  # GIF, PNG, WebP or MP4
    film_text: str = ""  # what it shows
    strip: bytes | None = None  # still pictures of the same
    # circumstances
    factors: Sequence[Any] = ()  # types.Factor or mappings with its fields
    config: Mapping[str, Any] = {}
    versions: Mapping[str, str] = {}
    device: str = ""
    seeds: Sequence[int] = ()
    seconds: float | None = None  # wall time of training, all seeds together
    command: str = ""
    notes: Sequence[str] = ()  # what a reader should know before believing the page
    missing: Mapping[str, str] = {}  # section -> why it is not there


def scores(run: Run) -> tuple[evaluate.OverSeeds | None, np.ndarray | None]:
    """Returns over seeds, and scores per seed where both ends are known."""
    if run.returns is None or np.size(run.returns) == 0:
        return None, None
    over = evaluate.over_seeds(run.returns)
    if not _has_scale(run):
        return over, None
    return over, evaluate.score(over.per_seed, run.random_return, run.best_return)


def _has_scale(run: Run) -> bool:
    low, high = run.random_return, run.best_return
    return low is not None and high is not None and high > low


def results(run: Run) -> str | None:
    over, _ = scores(run)
    if over is None:
        return None
    returns = np.asarray(run.returns, float)
    fits = len(run.seeds) == len(returns)
    names = list(run.seeds) if fits else list(range(len(returns)))

    def row(name, value, spread="", length="", kind=""):
        score = (
            page.meter(float(evaluate.score(value, run.random_return, run.best_return)))
            if _has_scale(run) and value is not None
            else page.DASH
        )
        return kind, [name, page.number(value), score, spread, length]

    rows: list = [
        row("random policy", run.random_return, "uniform actions", kind="end")
    ]
    for i, value in enumerate(over.per_seed):
        several = returns.ndim == 2 and returns.shape[1] > 1
        rows.append(
            row(
                f"trained, seed {page.text(names[i])}",
                value,
                f"± {page.number(returns[i].std(ddof=1))}" if several else "",
                page.number(np.mean(run.lengths[i])) if run.lengths is not None else "",
            )
        )
    interval = (
        f"{page.number(over.low)} to {page.number(over.high)}"
        if math.isfinite(over.low)
        else "needs 2 seeds"
    )
    rows.append(row("trained, interquartile mean", over.iqm, interval, kind="sum"))
    rows.append(row("best known", run.best_return, kind="end"))
    heads = ["policy", "return", "score", "spread", "mean length"]
    if run.lengths is None:
        heads, rows = heads[:-1], [(kind, cells[:-1]) for kind, cells in rows]
    episodes = (
        f"{returns.shape[1]} full episodes a seed, deterministic policy, fresh starts. "
        if returns.ndim == 2
        else ""
    )
    caption = (
        f"{episodes}Spread: standard deviation over a seed's episodes; for the "
        "interquartile mean its 95 % bootstrap interval over seeds. "
        "Score = (R − R<sub>random</sub>) / (R<sub>best</sub> − R<sub>random</sub>)."
    )
    return page.table(heads, rows, caption, numeric=(1, 3, 4))


def curves(run: Run) -> str | None:
    if run.curves is None or run.steps is None or not len(run.steps):
        return None
    values = np.atleast_2d(np.asarray(run.curves, float))
    if not np.isfinite(values).any():
        return None
    picture = plots.learning_curves(
        run.steps, values, random=run.random_return, best=run.best_return
    )
    return page.figure(
        picture,
        f"Return of the deterministic policy over training, {len(values)} seeds",
        "Thin: every seed. Bold: interquartile mean (IQM) and its 95 % bootstrap band."
        if len(values) > 1
        else "One seed; no interval can be given.",
    )


def film(run: Run, max_media: int) -> str | None:
    text = run.film_text or "One episode of the trained policy."
    parts = []
    for data, what in ((run.film, "Film"), (run.strip, "Film strip")):
        if data is not None and len(data) <= max_media:
            small = text if what == "Film" else "The same episode, frame by frame."
            parts.append(page.figure(data, f"{what}: {text}", small, natural=True))
    return f'<div class="film">{"".join(parts)}</div>' if parts else None


def error(run: Run) -> str | None:
    models = {
        name: {field: _row(row) for field, row in fields.items()}
        for name, fields in run.errors.items()
    }
    if not models:
        return None
    first = next(iter(models.values()))
    horizon = len(first["mse"])
    picture = plots.error_by_horizon(
        {name: fields["normalised"] for name, fields in models.items()},
        persistence=first.get("persistence_normalised"),
    )
    steps = sorted({1, *range(5, min(horizon, 21), 5), horizon - 1} & {*range(horizon)})
    heads = ["squared error", *(f"k = {k}" for k in steps)]
    copy = first.get("persistence_normalised", np.full(horizon, np.nan))
    rows = []
    for name, fields in models.items():
        cells = [_error_cell(fields, copy, k) for k in steps]
        rows.append(("", [page.text(name), *cells]))
    if "persistence" in first:
        cells = [page.number(first["persistence"][k], 3) for k in steps]
        rows.append(("end", ["repeat the first observation", *cells]))
    count = first.get("count")
    starts = f"{page.number(count[0])} trajectories. " if count is not None else ""
    reward = first.get("reward_mse")
    reward_text = (
        f" Squared error of the reward at the first step: {page.number(reward[0], 3)}."
        if reward is not None and len(reward)
        else ""
    )
    caption = (
        f"{starts}Raw units, mean over observation entries, ± standard deviation over "
        "trajectories; trajectories that have terminated are left out. Small: share of "
        "the error of repeating the first observation, each entry divided by its "
        f"variance.{reward_text}"
    )
    return page.figure(
        picture,
        "Error of imagined observations by imagined step, logarithmic",
        "The simulator is set to the state each trajectory was imagined from and takes "
        "the imagined actions; squared error, each entry divided by its variance. "
        "Lower is better; the dotted line is what knowing nothing costs.",
    ) + page.table(heads, rows, caption, numeric=range(1, len(heads)))


def _error_cell(fields: Mapping[str, np.ndarray], copy: np.ndarray, k: int) -> str:
    """Error at step k with its spread, and its share of persistence's."""
    if k >= len(fields["mse"]) or k >= len(copy):
        return page.DASH
    spread = f" ± {page.number(fields['std'][k], 2)}" if "std" in fields else ""
    share = fields["normalised"][k] / copy[k] if copy[k] > 0 else math.nan
    return (
        f"{page.number(fields['mse'][k], 3)}{spread}"
        f"<small>{page.percent(share, 2)}</small>"
    )


def beside(run: Run) -> str | None:
    parts = []
    for name, data in run.beside.items():
        picture = plots.real_beside_imagined(
            data["real"],
            data["imagined"],
            mask=data.get("mask"),
            names=run.obs_names,
            control_dt=run.control_dt,
        )
        parts.append(
            page.figure(
                picture,
                f"Real beside imagined trajectories of {name}",
                f"{name}: same start, same actions; solid is the simulator, dashed is "
                "imagined.",
            )
        )
    return "".join(parts) or None


def frames(run: Run) -> str | None:
    """What models of images see and imagine, below what there is to see."""
    parts = []
    for name, rows in run.frames.items():
        picture = plots.seen_and_imagined(
            rows["real"], rows["decoded"], rows["imagined"], control_dt=run.control_dt
        )
        caption = (
            f"{name}: some steps of one recorded window. Real: what the environment "
            "showed. Decoded: what the model paints when it has seen every frame up to "
            "this one. Imagined: what it paints when of the frames behind the first it "
            "is told the actions alone."
        )
        parts.append(page.figure(picture, f"Frames seen by {name}", caption))
    return "".join(parts) or None


def on_policy(run: Run) -> str | None:
    if run.on_policy is None:
        return None
    mean, std = (np.atleast_1d(_row(run.on_policy[name])) for name in ("mean", "std"))
    rows = [
        ("", [f"action[{i}]", page.number(m, 3), page.number(s, 3)])
        for i, (m, s) in enumerate(zip(mean, std, strict=True))
    ]
    caption = (
        "z = (a − μ(s)) / σ(s) of imagined actions under the policy, all but the last "
        "step. Actions drawn from the policy have mean 0 and standard deviation 1."
    )
    return page.table(["dimension", "mean z", "std z"], rows, caption, numeric=(1, 2))


def noise(run: Run) -> str | None:
    if not run.noise:
        return None
    rows = []
    for name, fields in run.noise.items():
        columns = [
            np.atleast_1d(_row(fields[field]))
            for field in (
                "ratio",
                "autocorrelation",
                "true_autocorrelation",
                "crps_ratio",
            )
        ]
        for i in range(len(columns[0])):
            entry = run.obs_names[i] if run.obs_names is not None else f"obs[{i}]"
            rows.append(
                (
                    "",
                    [
                        page.text(name),
                        page.text(entry),
                        *(page.number(column[i], 3) for column in columns),
                        page.number(float(_row(fields["energy_distance"])), 3)
                        if i == 0
                        else "",
                    ],
                )
            )
    heads = [
        "model",
        "entry",
        "residual ratio",
        "autocorrelation",
        "simulator's own",
        "CRPS ratio",
        "energy distance",
    ]
    caption = (
        "One-step residuals of imagined trajectories against the simulator's, at fixed "
        "actions. Right is: ratios 1, autocorrelation like the simulator's own, energy "
        "distance 0. No single column suffices."
    )
    return page.table(heads, rows, caption, numeric=range(2, 7))


def structure(run: Run) -> str | None:
    """Causal graphs and mechanisms over the steps of one imagined trajectory."""
    parts = []
    for name, data in run.structure.items():
        if "graph" in data:
            picture = plots.causal_graph(
                data["graph"],
                names=data.get("tokens") or None,
                positions=data.get("position"),
                control_dt=run.control_dt,
            )
            caption = (
                f"{name}: who acts on whom in one imagined trajectory. Above: some of "
                "its steps. Below: when each edge is there, the most frequent ones "
                "first. Influences of an object on itself are not drawn."
            )
            parts.append(page.figure(picture, f"Causal graphs of {name}", caption))
        if "mechanism" in data:
            picture = plots.mechanism_usage(
                data["mechanism"], data["context"], control_dt=run.control_dt
            )
            caption = (
                f"{name}: the mechanism that moves each object in each imagined step; "
                "the number is the object it looks at."
            )
            parts.append(page.figure(picture, f"Mechanisms of {name}", caption))
    return "".join(parts) or None


def environment(run: Run) -> str | None:
    if not run.factors:
        return None
    rows = []
    for factor in run.factors:
        get = (
            factor.get
            if isinstance(factor, Mapping)
            else lambda name, f=factor: getattr(f, name, None)
        )
        rows.append(
            (
                "",
                [
                    f"<code>{page.text(get('name'))}</code>",
                    page.setting(get("default")),
                    f"{page.setting(get('low'))} to {page.setting(get('high'))}",
                    page.text(get("unit") or ""),
                    page.text(get("doc") or ""),
                ],
            )
        )
    caption = f"Factors of variation of {page.text(run.env or 'the environment')}."
    heads = ["factor", "default", "range", "unit", "what it is"]
    return page.table(heads, rows, caption, numeric=(1, 2))


def ran(run: Run) -> str | None:
    facts = {
        "environment": run.env,
        "device": run.device,
        "seeds": ", ".join(str(seed) for seed in run.seeds),
        "wall time": page.duration(float(run.seconds))
        if run.seconds is not None
        else "",
        **{f"version of {name}": value for name, value in run.versions.items()},
    }
    facts = {name: value for name, value in facts.items() if value}
    parts = []
    if facts:
        parts.append(page.pairs("Circumstances", facts))
    if run.config:
        parts.append(page.pairs("Configuration", page.flatten(run.config), fold=24))
    return "".join(parts) or None


def reproduce(run: Run) -> str | None:
    return f"<pre><code>{page.text(run.command)}</code></pre>" if run.command else None


def ratio_to_persistence(run: Run) -> float | None:
    """Mean over k >= 1 of the first model's error, divided by persistence's."""
    if not run.errors:
        return None
    fields = next(iter(run.errors.values()))
    if "persistence_normalised" not in fields:
        return None
    model = _row(fields["normalised"])[1:]
    copy = _row(fields["persistence_normalised"])[1:]
    alive = np.isfinite(model) & np.isfinite(copy)
    if not alive.any() or not copy[alive].sum() > 0:
        return None
    return float(model[alive].sum() / copy[alive].sum())


def _row(values) -> np.ndarray:
    """Numbers as float64; None, which is how JSON writes NaN, becomes NaN."""
    return np.asarray(values, float)
