"""One row per system: where it lives, where it comes from, and what it claims.

Light: nothing is imported until a row's `load` is called. A claim is checked by
`jaxwm run NAME` and by `tests/test_claims.py` on the row's seeds.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """Whether a claim held, and the numbers that decided."""

    holds: bool
    text: str


class Below(NamedTuple):
    """`metric` lies below `limit`, or below `limit` times the metric `of`."""

    metric: str
    limit: float
    of: str | None = None

    def check(self, metrics: Mapping[str, float]) -> Verdict:
        """Looks at one seed's metrics."""
        return _compare(self, "below", metrics, lambda value, limit: value < limit)


class Above(NamedTuple):
    """`metric` lies above `limit`, or above `limit` times the metric `of`."""

    metric: str
    limit: float
    of: str | None = None

    def check(self, metrics: Mapping[str, float]) -> Verdict:
        """Looks at one seed's metrics."""
        return _compare(self, "above", metrics, lambda value, limit: value > limit)


class Between(NamedTuple):
    """`metric` lies strictly between two numbers."""

    metric: str
    low: float
    high: float

    def check(self, metrics: Mapping[str, float]) -> Verdict:
        """Looks at one seed's metrics."""
        value = _number(metrics, self.metric)
        return Verdict(
            self.low < value < self.high,
            f"{self.metric} {value:.4g}, between {self.low:g} and {self.high:g}",
        )


class All(NamedTuple):
    """Every one of several claims."""

    claims: tuple["Claim", ...]

    def check(self, metrics: Mapping[str, float]) -> Verdict:
        """Looks at one seed's metrics."""
        verdicts = [claim.check(metrics) for claim in self.claims]
        return Verdict(
            all(v.holds for v in verdicts), "; ".join(v.text for v in verdicts)
        )


Claim = Below | Above | Between | All


class Entry(NamedTuple):
    """A system: a module with `Config`, a builder called like the row, `experiment`."""

    name: str
    family: str
    source: str
    bundle: str | None  # of jaxwm.types: "WorldModel", "Agent" ...; None for functions
    claim: Claim | None = None
    seeds: int = 3  # on which every claim must hold
    room: str = "recipes"
    summary: str = ""  # one line for `jaxwm list`

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return f"jaxwm.{self.room}.{self.name}"

    def load(self) -> Any:
        """Imports the module."""
        return importlib.import_module(self.module)

    def builder(self) -> Any:
        """The function that makes the bundle."""
        return getattr(self.load(), self.name)


_WHERE = (
    'Rigter et al., "World Models via Policy-Guided Trajectory Diffusion", TMLR 2024'
)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "autoregressive_diffusion",
        family="world models",
        source=f"{_WHERE}, baseline",
        bundle="WorldModel",
        room="dynamics",
        summary="a diffusion model of one step, rolled out step by step",
    ),
    Entry(
        "ensemble",
        family="world models",
        source='Chua et al., "Deep Reinforcement Learning in a Handful of Trials using '
        'Probabilistic Dynamics Models", NeurIPS 2018',
        bundle="WorldModel",
        room="dynamics",
        summary="probabilistic networks, a random elite per step",
    ),
    Entry(
        "polygrad",
        family="world models",
        source=_WHERE,
        bundle="WorldModel",
        claim=All(
            (
                Below("error", 0.1, of="error/persistence"),
                Below("error", 1.1, of="error/autoregressive"),
                Between("z/mean", -0.15, 0.15),
                Between("z/std", 0.8, 1.25),
                Above("z/std_unguided", 1.8),
            )
        ),
        summary="whole on-policy trajectories in one policy-guided diffusion pass",
    ),
    Entry(
        "transformer",
        family="world models",
        source=f"{_WHERE}, baseline",
        bundle="WorldModel",
        room="dynamics",
        summary="a causal transformer that predicts the next step",
    ),
)


def find(name: str) -> Entry:
    """The row of a system.

    Raises:
        KeyError: for an unknown name; the caller knows how to suggest one.
    """
    return {entry.name: entry for entry in ENTRIES}[name]


def judge(entry: Entry, results: Sequence[Mapping[str, float]]) -> list[Verdict]:
    """A verdict per seed.

    Raises:
        ValueError: if the row claims nothing, or a metric is missing.
    """
    if entry.claim is None:
        raise ValueError(f"{entry.name} claims nothing that could be checked.")
    return [entry.claim.check(metrics) for metrics in results]


def _compare(claim, word, metrics, holds) -> Verdict:
    value, limit = _number(metrics, claim.metric), claim.limit
    text = f"{claim.metric} {value:.4g}, {word} {limit:g}"
    if claim.of is not None:
        base = _number(metrics, claim.of)
        limit = limit * base
        text += f" of {claim.of} {base:.4g}"
    # NaN is below and above nothing.
    return Verdict(bool(holds(value, limit)) and math.isfinite(value), text)


def _number(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise ValueError(f"the experiment returns no {name!r}, only {sorted(metrics)}.")
    return float(metrics[name])
