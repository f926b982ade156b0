"""The command `jaxwm VERB`.

Looks the verb up and hands over; jax is not loaded to show help. Exit status: 0 done
(also when a signal stopped a run that was saved), 1 failed, 2 wrong usage, 3 the run
directory belongs to another process.
"""

import importlib
import os
import sys
from typing import NamedTuple

from jaxwm.version import __version__


class Verb(NamedTuple):
    """A verb: where its function is, and what it does."""

    module: str
    function: str
    doc: str


VERBS = {
    "list": Verb("look", "systems", "systems, with what was measured of them"),
    "envs": Verb("look", "tasks", "tasks and their factors of variation"),
    "doctor": Verb("look", "doctor", "this machine; or a run's NaN dump, walked again"),
    "train": Verb("train", "train", "train a system in an environment"),
    "resume": Verb("train", "resume", "go on with a run"),
    "launch": Verb("launch", "launch", "train as several processes of this machine"),
    "eval": Verb("judge", "evaluate", "evaluate a run's policies"),
    "report": Verb("judge", "report", "write a run's report.html"),
    "compare": Verb("compare", "compare", "world models side by side on one task"),
    "run": Verb("experiment", "run", "a system's experiment against its claim"),
    "data": Verb("datasets", "data", "inspect datasets, make them from runs"),
    "complexity": Verb("complexity", "complexity", "a checkpoint as a small file"),
    "export": Verb("judge", "export", "a run's policy as StableHLO and safetensors"),
    "bench": Verb("benchmarks", "bench", "throughput beside the peers (source only)"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    from jaxwm.train import errors, settings

    try:
        if name not in VERBS:
            hint = settings.closest(name, VERBS)
            raise errors.ConfigError(f'unknown verb "{name}"; {hint}')
        verb = VERBS[name]
        module = importlib.import_module(f"jaxwm.commands.{verb.module}")
        return getattr(module, verb.function)(rest)
    except (errors.RunError, FloatingPointError) as error:
        if os.environ.get("JAXWM_DEBUG"):
            raise
        print(f"jaxwm: {error}", file=sys.stderr)
        if isinstance(error, errors.RunLockedError):
            return 3
        return 2 if isinstance(error, errors.ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def usage() -> str:
    """What `jaxwm --help` shows."""
    verbs = "\n".join(f"  {name:<10}{verb.doc}" for name, verb in VERBS.items())
    return (
        "usage: jaxwm VERB ...   (jaxwm VERB -h for its options and defaults)\n\n"
        f"{verbs}\n\n"
        "try:  jaxwm train polygrad --env pendulum --seeds 3 --out runs/first"
    )


if __name__ == "__main__":
    sys.exit(main())
