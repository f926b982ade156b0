"""What is kept when numbers stop being finite: enough to look at it and to repeat it.

    dumps/<iteration>-seed<s>/checkpoints/<iteration>/   that seed's state behind the
                                                         bad iteration, digests included
    dumps/<iteration>-seed<s>/dump.json                  what happened, for people

A run follows bit for bit from its seed and its last checkpoint, so the way into the
failure needs no recording: `jaxwm doctor replay` walks it again.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm.train import checkpoint, chunk, durable, layout
from jaxwm.train.errors import CheckpointError
from jaxwm.types import Learner

FOLDER = "dumps"
NAME = "dump.json"


class Retrace(NamedTuple):
    """What walking into a failure again showed."""

    start: int  # iteration it started from
    reproduced: bool  # the same flag fell at the same iteration
    same_bits: bool  # and the state behind it equals the dumped one
    before: dict[str, str]  # leaves not finite one iteration earlier, see `nonfinite`
    after: dict[str, str]


def describe(run: chunk.Run, seeds: np.ndarray) -> list[dict[str, Any]]:
    """One entry for every seed with a bad iteration."""
    bad = np.asarray(run.window.bad)
    values = {k: np.asarray(v) for k, v in chunk.flags(run.window).items()}
    found = []
    for i in np.flatnonzero(bad >= 0):
        broken = [name for name, value in values.items() if not value[i] >= 1]
        found.append(
            {
                "metrics": broken,
                "iteration": int(bad[i]),
                "seed": int(seeds[i]),
                "index": int(i),
                "nonfinite": nonfinite(jax.tree.map(lambda x, i=i: x[i], run.learner)),
            }
        )
    return found


def nonfinite(state: Any) -> dict[str, str]:
    """Leaves that hold NaN or infinity: path -> how many of how many numbers."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact):
            continue
        wrong = int(leaf.size - np.isfinite(np.asarray(leaf)).sum())
        if wrong:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found[name] = f"{wrong} of {leaf.size}"
    return found


def write(
    directory: pathlib.Path, run: chunk.Run, entry: dict[str, Any], config: dict
) -> pathlib.Path:
    """Writes one seed's dump below the run's directory.

    Raises:
        CheckpointError: where the state cannot be written; the text is written first.
    """
    iteration, index = entry["iteration"], entry["index"]
    path = directory / FOLDER / f"{iteration}-seed{entry['seed']}"
    path.mkdir(parents=True, exist_ok=True)
    body = {**entry, "run": str(directory), "checkpoints": checkpoint.steps(directory)}
    durable.write_text(path / NAME, json.dumps(body, indent=1) + "\n")
    if iteration not in checkpoint.steps(path):
        state = jax.tree.map(lambda x: np.asarray(x[index]), run.learner)
        checkpoint.save(path, iteration, state, config=config)
    return path


def retrace(learner: Learner, seeds: list[int], path: str | pathlib.Path) -> Retrace:
    """Runs from the last good checkpoint, or the start, into a dumped failure.

    Args:
        learner: built as for the run.
        seeds: all of the run's: they share one program.
        path: of the dump, inside the run's directory.
    """
    path = pathlib.Path(path)
    entry, directory = read(path), path.resolve().parents[1]
    iteration, index = entry["iteration"], entry["index"]
    program = chunk.build(learner, layout.check(seeds), log_every=1)
    start, run = _last_good(program, directory, iteration)
    run = program.advance(run, start, iteration)

    def one(run):
        return jax.tree.map(lambda x: np.array(x[index]), run.learner)

    state = one(run)
    run = program.advance(run, iteration, iteration + 1)
    _, dumped, _ = checkpoint.restore(path, one(run))
    pairs = zip(jax.tree.leaves(dumped), jax.tree.leaves(one(run)), strict=True)
    return Retrace(
        start,
        bool(np.asarray(run.window.bad)[index] == iteration),
        all(a.tobytes() == b.tobytes() for a, b in pairs),
        nonfinite(state),
        nonfinite(one(run)),
    )


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """The text of a dump.

    Raises:
        CheckpointError: where there is none.
    """
    file = pathlib.Path(path) / NAME
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no dump: {error}.") from error


def _last_good(program: chunk.Program, directory: pathlib.Path, iteration: int):
    """The newest readable checkpoint not after `iteration`, or the first state."""
    for step in reversed(checkpoint.steps(directory)):
        if step <= iteration:
            try:
                _, state, _ = checkpoint.restore(directory, program.template, step=step)
            except CheckpointError:
                continue  # an older one, or the start, leads there as well
            return step, layout.place(state, program.shardings)
    return 0, program.init()
