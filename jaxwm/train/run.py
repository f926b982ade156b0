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

# What may differ when a run goes on: silently, or with a warning. The rest decides
# the run's numbers and must not.
_FREE = (
    "schema",
    "command",
    "created",
    "run.distributed",
    "run.out",
    "run.preset",  # what it stands for is compared instead
    "run.report",
    "run.tensorboard",
)
_WARN = (
    "run.env_steps",
    "run.eval_every",
    "run.eval_episodes",
    "run.log_every",
    "run.save_every",
    "run.keep",
    "run.platform",
    "run.shard",
    "device",
    "versions.",
)
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
    """
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
        if was.get(name) == now.get(name) or name.startswith(_FREE):
            continue
        line = f"{name} was {_shown(was, name)}, now {_shown(now, name)}"
        unrecorded = name not in was or name not in now  # by an older or newer version
        (soft if name.startswith(_WARN) or unrecorded else hard).append(line)
    if hard:
        raise ConfigError(
            "this run was begun with other settings:\n  "
            + "\n  ".join(hard)
            + "\nUse the old ones (jaxwm resume does), or another --out."
        )
    return soft


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
