"""A run's directory and its `config.json`, the document that says what the run is.

    runs/x/  config.json  run.lock  metrics.jsonl  latest
             checkpoints/<step>/{state/, manifest.json}   report.html   media/   dumps/

    config.json: schema, recipe, run (settings), config (the recipe's), versions,
                 device, seeds, command, created

Nothing here imports jax.
"""

import contextlib
import importlib.metadata
import json
import math
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxwm.train import durable, lock, settings
from jaxwm.train.errors import ConfigError, RunError
from jaxwm.version import __version__

NAME = "config.json"
SCHEMA = 1
# MIGRATIONS[i] turns a document of schema i into one of schema i + 1.
MIGRATIONS: dict[int, Callable[[dict], dict]] = {}


class Rule(NamedTuple):
    """What a changed field means when a run goes on."""

    verdict: str  # "refused", "warned" or "free"
    why: str


# Every field of the document and of `RunConfig`. What begins with "config." decides the
# numbers, all of it; so does what is not listed.
FIELDS: dict[str, Rule] = {
    "schema": Rule("free", "older documents are migrated"),
    "recipe": Rule("refused", "another system"),
    "seeds": Rule("refused", "other runs"),
    "device": Rule("warned", "rounds differently"),
    "versions.*": Rule("warned", "may compute differently"),
    "command": Rule("free", "a note for people"),
    "created": Rule("free", "a note for people"),
    "config.*": Rule("refused", "model, agent, loop or task: other numbers"),
    "run.env": Rule("refused", "another task"),
    "run.engine": Rule("refused", "another simulator"),
    "run.images": Rule("refused", "other observations"),
    "run.factors": Rule("refused", "another distribution of tasks"),
    "run.seeds": Rule("refused", "other runs"),
    "run.seed": Rule("refused", "other runs"),
    "run.preset": Rule("free", "the settings it stands for are compared instead"),
    "run.env_steps": Rule("warned", "the run ends elsewhere"),
    "run.num_envs": Rule("refused", "other shapes and numbers"),
    "run.replay_steps": Rule("refused", "other shapes"),
    "run.eval_every": Rule("warned", "rows lie at other steps"),
    "run.eval_episodes": Rule("warned", "evaluations are not comparable"),
    "run.log_every": Rule("warned", "rows average other windows"),
    "run.save_every": Rule("warned", "a crash costs more or less"),
    "run.keep": Rule("warned", "older checkpoints go"),
    "run.out": Rule("free", "directories may be moved"),
    "run.platform": Rule("warned", "rounds differently"),
    "run.shard": Rule("warned", "sums in another order"),
    "run.distributed": Rule("free", "says who takes part"),
    "run.deterministic": Rule("refused", "the same bits were promised"),
    "run.tensorboard": Rule("free", "only what is written beside"),
    "run.report": Rule("free", "only what is written beside"),
}
_UNKNOWN = Rule("refused", "not known here")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mujoco", "numpy")


class RunDir(NamedTuple):
    """A run directory that this process owns, from `open_run`."""

    path: pathlib.Path
    config: dict[str, Any]  # its document
    resumed: bool  # it was there before


@contextlib.contextmanager
def open_run(
    path: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[RunDir]:
    """Owns a run directory for a `with` block: made if new, checked if not.

    Args:
        path: the directory.
        config: the document of the run, plain JSON (see `document`). Where the run
            exists it is compared with the one there. None takes the one there.
        warn: is told about differences that do not matter to the numbers.

    Raises:
        RunLockedError: if another process owns the directory.
        ConfigError: where `config` differs and must not, or no run is there.
        RunError: if the directory cannot be written, or holds something else.
    """
    path = pathlib.Path(path)
    if config is None and not (path / NAME).is_file():
        raise ConfigError(f"{path} is no run: it has no {NAME}.")
    with contextlib.ExitStack() as stack:
        try:
            if not (path / NAME).is_file():
                _refuse_strangers(path)
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.hold(path))
            resumed = (path / NAME).is_file()
            found = read(path) if resumed else {}
            if config is not None:
                config = {"schema": SCHEMA, **json.loads(json.dumps(config))}
                if resumed:
                    for line in compare(found, config):
                        warn(line)
                    config = {**found, "run": config.get("run", {})}
                if config != found:
                    _write(path, config)
        except OSError as error:
            raise RunError(f"{path} cannot hold a run: {error}.") from error
        yield RunDir(path, read(path), resumed)


def document(
    recipe: str,
    run: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    seeds: list[int],
    device: str,
) -> dict[str, Any]:
    """A new run's document.

    Args:
        recipe: name in the catalogue.
        run: `RunConfig` as a dict.
        config: the recipe's settings.
        seeds: of the runs side by side.
        device: in words.

    Raises:
        ConfigError: for a setting that is NaN or infinite, naming it.
    """
    for name, value in settings.flat({"run": run, "config": config}).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} must be finite, got {value}.")
    return {
        "schema": SCHEMA,
        "recipe": recipe,
        "run": dict(run),
        "config": dict(config),
        "seeds": seeds,
        "device": device,
        "versions": versions(),
        "command": shlex.join(["jaxwm", *sys.argv[1:]]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions() -> dict[str, str]:
    """Versions of jaxwm, Python and the packages that decide a run's numbers."""
    found = {"jaxwm": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """A run's document, in today's schema.

    Raises:
        ConfigError: if it is missing, unreadable, or of a newer version.
    """
    file = pathlib.Path(path) / NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        schema = found["schema"]
    except OSError as error:
        raise ConfigError(f"{path} is no run: {error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error!r}.") from error
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ConfigError(
            f"{file} has schema {schema}, this version of jaxwm ({__version__}) reads "
            f"up to {SCHEMA}; update jaxwm."
        )
    for old in range(schema, SCHEMA):
        if old not in MIGRATIONS:
            raise ConfigError(f"{file} has schema {old}, which is no longer read.")
        found = {**MIGRATIONS[old](found), "schema": old + 1}
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences that matter little, one line each.

    Raises:
        ConfigError: listing those that would change the run's numbers.
    """
    was, now = settings.flat(old), settings.flat(new)
    soft, hard = [], []
    for name in sorted(was.keys() | now.keys()):
        verdict = rule(name).verdict
        if was.get(name) == now.get(name) or verdict == "free":
            continue
        line = f"{name} was {_shown(was, name)}, now {_shown(now, name)}"
        # By an older or newer version; but a factor left out has its default.
        unrecorded = (name not in was or name not in now) and not name.startswith(
            "config.env."
        )
        (soft if verdict == "warned" or unrecorded else hard).append(line)
    if hard:
        raise ConfigError(
            "this run was begun with other settings:\n  "
            + "\n  ".join(hard)
            + "\nUse the old ones (jaxwm resume does), or another --out."
        )
    return soft


def rule(name: str) -> Rule:
    """What a change of a field means; `name` as `settings.flat` makes it."""
    group = f"{name.split('.')[0]}.*"
    return FIELDS.get(name) or FIELDS.get(group) or _UNKNOWN


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "not recorded"


def _refuse_strangers(path: pathlib.Path) -> None:
    """Raises where a directory holds something that is no run."""
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    ours = (lock.NAME, durable.PREFIX)
    others = [name for name in names if not name.startswith(ours)]
    if others:
        raise RunError(
            f"{path} holds {', '.join(others[:3])} but no {NAME}; choose a directory "
            "that is empty or a run."
        )


def _write(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    text = json.dumps(config, indent=2, allow_nan=False)
    durable.write_text(path / NAME, text + "\n")
