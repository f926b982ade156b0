"""The loop around a learner: compiled chunks, and between them everything else.

for each chunk of iterations:  advance all seeds  (compiled, state updated in place)
                               log, evaluate, save, look for signals
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxwm.train import checkpoint, chunk, cluster, compiles, guard, layout, signals
from jaxwm.train import progress as display
from jaxwm.train.errors import CheckpointError, ConfigError
from jaxwm.train.run import RunDir
from jaxwm.train.sinks import Sink, json_lines, plain
from jaxwm.types import Learner, PyTree

_CHUNK_SECONDS = 1.0  # what a chunk aims at; a signal waits for its end
_SAVE_SHARE = 10  # between saves passes this many times what the last one took


class Fitted(NamedTuple):
    """How a run ended."""

    state: PyTree  # of the learner, every leaf `[S, ...]`
    iteration: int  # iterations done
    interrupted: bool  # a signal asked to stop
    late_compiles: int  # XLA compilations after the second chunk; 0 is right


def fit(
    learner: Learner,
    *,
    seeds: Sequence[int],
    num_iterations: int,
    run: RunDir | None = None,
    evaluate: Callable | None = None,
    eval_every: int = 0,
    log_every: int = 1,
    steps_per_iteration: int = 1,
    save_every: int | float = 60,
    keep: int = 2,
    sinks: Sequence[Sink] = (),
    progress: display.Progress | None = None,
    chunk_size: int | None = None,
    shard: str = "seeds",
) -> Fitted:
    """Trains a learner from all seeds at once, to the end or to a signal.

    With a run directory it goes on from the newest sound checkpoint there. The result
    is bit for bit the same wherever it was interrupted and however it was cut into
    chunks, on the same machine, versions and number of devices.

    Args:
        learner: `init(key)` and `step(key, state, iteration)`, pure. Metrics whose
            name ends in "finite" must stay 1.
        seeds: of the S runs; everything random follows from seed and iteration.
        num_iterations: in total, counted from the first start.
        run: where to save, from `open_run`; None keeps everything in memory.
        evaluate: `(key, learner state) -> metrics` of ONE seed, pure; its values may
            be arrays and are logged as `eval/...`.
        eval_every: iterations between evaluations, one more at the end; 0 never.
        log_every: iterations that a logged row averages (NaN are left out).
        steps_per_iteration: environment steps of one seed, for `step` in rows.
        save_every: least seconds between checkpoints, one more at the end; 0 writes one
            after every chunk.
        keep: checkpoints that stay.
        sinks: receive every row, beside `metrics.jsonl` of the run.
        progress: what to show; nothing by default.
        chunk_size: most iterations of a chunk; by default about a second's worth.
        shard: what devices share: "seeds", "batch" or "params", see `layout`. Several
            processes (`jax.distributed`) need one of the last two; all call this
            with the same arguments, the first one writes files and shows progress.

    Returns:
        The final state and how the run ended.

    Raises:
        FloatingPointError: at the first flag below 1, naming metric, iteration and
            seed; a dump for `jaxwm doctor replay` lies in the run directory.
        RunError: where saving or logging fails.
        ConfigError: where the checkpoint has other seeds.
        ValueError: for arguments out of range; for learners, see `chunk.build`.
    """
    _check(num_iterations, log_every, eval_every, evaluate, chunk_size)
    numbers = layout.check(seeds)
    config = {"run": run.config if run else {}, "seeds": [int(s) for s in numbers]}
    show = progress or display.silent()

    with contextlib.ExitStack() as stack:
        stack.callback(show.close)
        stop, newest = threading.Event(), -1
        if run is not None:
            stop = stack.enter_context(signals.polite(show.note))
            if cluster.leads():
                for line in checkpoint.tidy(run.path):
                    show.note(line)
                newest = max(checkpoint.steps(run.path), default=-1)
            newest = cluster.told(newest)
            if num_iterations <= newest:
                return _finished(learner, numbers, run, config, show, newest, shard)
        with show.compiling("the training loop"):
            program = chunk.build(
                learner, numbers, log_every=log_every, evaluate=evaluate, shard=shard
            )
        show.note(f"the loop needs {program.num_bytes / 1e6:,.0f} MB")
        saved, state, spent = _begin(program, run, config, show, newest)
        iteration = saved or 0
        outputs = [*sinks]
        if run is not None and cluster.leads():
            lines = json_lines(run.path / "metrics.jsonl", resume_at=iteration)
            outputs = [lines, *outputs]
        for sink in outputs:
            stack.callback(sink.close)
        began = time.monotonic()

        def elapsed() -> float:
            return spent + time.monotonic() - began

        def log(metrics):
            row = {
                "iteration": iteration,
                "step": iteration * steps_per_iteration,
                "seconds": round(elapsed(), 3),
                **plain(metrics),
            }
            for sink in outputs:
                sink.write(row)
            show.row(row)

        def save():
            if run is None or saved == iteration:
                return
            whole = layout.fetch(state)
            if cluster.leads():
                for sink in outputs:
                    sink.flush()  # rows reach the disk before the state they led to
                extra = {**config, "seconds": elapsed()}
                checkpoint.save(run.path, iteration, whole, config=extra, keep=keep)

        def is_due(every: int) -> bool:
            return (every > 0 and iteration % every == 0) or iteration == num_iterations

        num_chunks, compiled = 0, 0
        save_at = time.monotonic() + save_every
        show.begin(
            iteration * steps_per_iteration, num_iterations * steps_per_iteration
        )
        stopped, size, _ = cluster.agree(stop.is_set(), 1, False, first=True)
        while iteration < num_iterations and not stopped:
            before = time.monotonic()
            ends = [num_iterations, iteration + min(size, chunk_size or size)]
            ends += [(iteration // n + 1) * n for n in (log_every, eval_every) if n]
            state = program.advance(state, iteration, min(ends))
            if (np.asarray(state.window.bad) >= 0).any():  # waits for the devices
                _fail(state, numbers, run, config)
            took = (time.monotonic() - before) / (min(ends) - iteration)
            # Twice as long at most: later iterations may cost more than the first.
            size = max(1, min(int(_CHUNK_SECONDS / took), 2 * size))
            iteration, num_chunks = min(ends), num_chunks + 1
            if is_due(log_every):
                log(_means(state.window))
            if program.evaluate and is_due(eval_every):
                found = program.evaluate(state.learner, iteration)
                log({f"eval/{name}": value for name, value in found.items()})
            show.update(iteration * steps_per_iteration)
            due = time.monotonic() >= save_at
            stopped, size, due = cluster.agree(stop.is_set(), size, due)
            if due:
                before = time.monotonic()
                save()
                saved, now = iteration, time.monotonic()
                pause = max(save_every, _SAVE_SHARE * (now - before))
                save_at = now + (pause if save_every else 0)
            if num_chunks == 2:
                compiled = compiles.count()
        late = compiles.count() - compiled if num_chunks > 2 else 0
        save()
        return Fitted(layout.fetch(state.learner), iteration, stopped, late)


def _check(num_iterations, log_every, eval_every, evaluate, chunk_size) -> None:
    for name, value in (
        ("num_iterations", num_iterations),
        ("log_every", log_every),
        ("chunk_size", 1 if chunk_size is None else chunk_size),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if eval_every < 0:
        raise ValueError(f"eval_every must not be negative, got {eval_every}.")
    if eval_every and evaluate is None:
        raise ValueError("eval_every needs a function to evaluate with, got None.")


def _finished(
    learner: Learner, seeds, run: RunDir, config: dict, show, newest: int, shard: str
) -> Fitted:
    """The end of a run that has been reached before; nothing is compiled for it."""
    template = jax.eval_shape(jax.vmap(lambda seed: chunk.start(learner, seed)), seeds)
    iteration, state, extra = checkpoint.restore(
        run.path, template, step=_pinned(newest), below="learner"
    )
    _check_seeds(run, extra, config)
    show.note(f"{run.path} has reached iteration {iteration}, its last")
    where = layout.choose(len(seeds), shard).of_state(template, learner.axes)
    return Fitted(layout.fetch(layout.place(state, where)), iteration, False, 0)


def _begin(program: chunk.Program, run: RunDir | None, config: dict, show, newest: int):
    """`(iteration of the checkpoint or None, state, seconds spent before)`."""
    if run is None or newest < 0:
        return None, program.init(), 0.0
    iteration, state, extra = checkpoint.restore(
        run.path, program.template, step=_pinned(newest)
    )
    _check_seeds(run, extra, config)
    show.note(f"resuming {run.path} at iteration {iteration}")
    return iteration, layout.place(state, program.shardings), extra["seconds"]


def _pinned(newest: int) -> int | None:
    """The checkpoint to read: several processes must not fall back differently."""
    return newest if jax.process_count() > 1 else None


def _check_seeds(run: RunDir, extra: dict, config: dict) -> None:
    if extra["seeds"] != config["seeds"]:
        raise ConfigError(
            f"{run.path} was begun with seeds {extra['seeds']}, not "
            f"{config['seeds']}; resume it with its own or choose another directory."
        )


def _means(window: chunk.Window) -> dict[str, np.ndarray]:
    """Means over a window, `[S]`; of flags the smallest value."""
    total, count = jax.device_get((window.total, window.count))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: value if name.endswith(chunk.FLAG) else value / count[name]
            for name, value in total.items()
        }


def _fail(state: chunk.Run, seeds: np.ndarray, run: RunDir | None, config: dict):
    """Writes a dump for every seed that went bad, and raises."""
    texts = []
    state = layout.fetch(state)
    for entry in guard.describe(state, seeds):
        text = (
            f"metric {' and '.join(entry['metrics'])} fell below 1 at iteration "
            f"{entry['iteration']} of seed {entry['seed']}"
        )
        if entry["nonfinite"]:
            text += f"; not finite: {', '.join([*entry['nonfinite']][:5])}"
        if run is not None and cluster.leads():
            try:
                path = guard.write(run.path, state, entry, config)
                text += f"; look into it with: jaxwm doctor replay {path}"
            except (CheckpointError, OSError) as error:
                text += f"; its dump could not be written: {error}"
        texts.append(text)
    raise FloatingPointError("\n".join(texts) + ".")
