"""Settings of a run, and settings read back from JSON.

Nothing here imports jax, so the command line can show them at once.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from jaxwm.train.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What belongs to no recipe. Steps count all environments of one seed."""

    env: str = "pendulum"  # task, see `jaxwm envs`
    engine: str | None = None  # jax, mjx, c or warp; by default the task's first
    images: bool = False  # observe pictures instead of the state, where there are any
    factors: Literal["range"] | None = None  # "range" varies all factors of variation
    seeds: int = 1  # how many runs side by side
    seed: int = 0  # the first one's number; the others count on
    preset: str = "fast"  # what all other defaults follow from
    env_steps: int = 0  # until the run ends; 0: as many as the preset says
    num_envs: int = 0  # stepped together; 0: as many as the preset says
    replay_steps: int = 0  # that are kept; 0: all
    eval_every: int = 0  # steps between evaluations; 0: twenty of them
    eval_episodes: int = 20  # per evaluation and seed
    log_every: int = 0  # steps that a logged row averages; 0: at most 500 rows
    save_every: float = 60.0  # seconds between checkpoints, at least
    keep: int = 2  # checkpoints that stay
    out: str = ""  # directory; empty: runs/<recipe>-<env>
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # None: what jax finds
    # What devices share: seeds, the batch of every seed, or that and large params.
    # None: seeds; the batch where several processes work on the run.
    shard: Literal["seeds", "batch", "params"] | None = None
    distributed: bool = False  # one of several processes, see docs/scale.md
    deterministic: bool = False  # the same bits on any number of cores, slower
    tensorboard: bool = False  # write TensorBoard files too
    report: bool = True  # write report.html at the end

    def __post_init__(self):
        for name, least in (
            ("seeds", 1),
            ("seed", 0),
            ("env_steps", 0),
            ("num_envs", 0),
            ("replay_steps", 0),
            ("eval_every", 0),
            ("eval_episodes", 1),
            ("log_every", 0),
            ("save_every", 0),
            ("keep", 1),
        ):
            value = getattr(self, name)
            if not value >= least:  # neither is NaN
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        for name, known in (
            ("platform", ("cpu", "gpu", "tpu")),
            ("factors", ("range",)),
            ("shard", ("seeds", "batch", "params")),
        ):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(
                    f"{name} must be {' or '.join(known)}, got {value!r}; leave it out "
                    "for the default."
                )


def default_out(recipe: str, env: str) -> str:
    """The directory of a run that names none."""
    return f"runs/{recipe}-{env}"


def closest(name: str, names: Iterable[str]) -> str:
    """A hint behind an unknown name: the nearest known ones, or all of them."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {names}."


def from_json(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A settings dataclass from a JSON object; missing keys take their defaults.

    Args:
        cls: a dataclass, possibly with dataclasses in its fields.
        values: the object.
        where: what is read, for messages: "config", "run" ...

    Raises:
        ConfigError: for an unknown key, with the closest known one, and for values
            that `cls` refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore
    given = {}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"unknown key {where}.{name}: {closest(name, fields)}")
        default = _default(fields[name])
        if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
            value = from_json(type(default), value, f"{where}.{name}")
        given[name] = _tuples(value)
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _tuples(value: Any) -> Any:
    """JSON has lists where settings have tuples (they must hash)."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
