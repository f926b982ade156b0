"""What a person sees while a run goes on: compiling, rate, time left, the latest score.

On a terminal a bar; elsewhere a plain line now and then, so that log files stay short.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_QUIET_SECONDS = 10.0  # between plain lines


class Progress(NamedTuple):
    """Functions that `fit` calls; all may be called from any thread.

    compiling(what): a context, entered while XLA compiles
    begin(step, total): training starts at `step` of `total` environment steps
    update(step): so many are done
    row(row): a row of metrics was logged
    note(text): something worth a line
    close(): the display ends
    """

    compiling: Callable[[str], contextlib.AbstractContextManager]
    begin: Callable[[int, int], None]
    update: Callable[[int], None]
    row: Callable[[dict[str, Any]], None]
    note: Callable[[str], None]
    close: Callable[[], None]


def silent() -> Progress:
    """Shows nothing."""
    nothing = lambda *_: None
    return Progress(
        lambda _: contextlib.nullcontext(), nothing, nothing, nothing, nothing, nothing
    )


def console(shown: str = "eval/return") -> Progress:
    """A bar on a terminal, plain lines elsewhere.

    Args:
        shown: the metric to show; the mean over seeds of its latest value.
    """
    return _bar(shown) if sys.stderr.isatty() else lines(shown)


def lines(shown: str = "eval/return", *, every: float = _QUIET_SECONDS) -> Progress:
    """Plain lines on stderr, at most one per `every` seconds while training."""
    state: dict[str, Any] = {"score": "", "said": -1e9}

    def say(text):
        print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def compiling(what):
        say(f"compiling {what} ...")
        before = time.monotonic()
        yield
        say(f"compiled {what} in {time.monotonic() - before:.1f} s")

    def begin(step, total):
        state.update(total=total, start=step, clock=time.monotonic())

    def update(step):
        now = time.monotonic()
        if now - state["said"] < every and step < state["total"]:
            return
        state["said"] = now
        spent = now - state["clock"]
        done = step - state["start"]
        rate = done / max(spent, 1e-9)
        left = (state["total"] - step) / rate if rate else 0.0
        share = step / max(state["total"], 1)
        say(
            f"{share:4.0%}  {step:,} of {state['total']:,} steps  {rate:,.0f} steps/s"
            f"  {clock(left)} left{state['score']}"
        )

    def row(row):
        if shown in row:
            state["score"] = f"  {shown} {_mean(row[shown]):.4g}"

    return Progress(compiling, begin, update, row, say, lambda: None)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(shown: str) -> Progress:
    from rich import console as rich_console
    from rich import progress as rich_progress

    display = rich_progress.Progress(
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("{task.fields[left]}"),
        rich_progress.TextColumn("{task.fields[score]}"),
        console=rich_console.Console(stderr=True),
        transient=False,
    )
    state: dict[str, Any] = {}

    def show():
        if not display.live.is_started:
            display.start()

    @contextlib.contextmanager
    def compiling(what):
        show()
        before = time.monotonic()
        task = display.add_task(
            f"compiling {what} ...", total=None, rate="", left="", score=""
        )
        try:
            yield
        finally:
            display.remove_task(task)
        spent = time.monotonic() - before
        display.console.print(f"compiled {what} in {spent:.1f} s", highlight=False)

    def begin(step, total):
        show()
        state.update(total=total, start=step, clock=time.monotonic())
        state["task"] = display.add_task(
            "training", total=total, completed=step, rate="", left="", score=""
        )

    def update(step):
        spent = time.monotonic() - state["clock"]
        rate = (step - state["start"]) / max(spent, 1e-9)
        left = clock((state["total"] - step) / rate) if rate else "?"
        display.update(
            state["task"],
            completed=step,
            rate=f"{rate:,.0f} steps/s",
            left=f"{left} left",
        )

    def row(row):
        if shown in row and "task" in state:
            score = f"{shown} {_mean(row[shown]):.4g}"
            display.update(state["task"], score=score)

    def note(text):
        display.console.print(text, highlight=False, markup=False)

    return Progress(compiling, begin, update, row, note, display.stop)


def _mean(values: Any) -> float:
    if isinstance(values, list):
        numbers = [_mean(v) for v in values]
        known = [v for v in numbers if v == v]
        return sum(known) / len(known) if known else float("nan")
    return float("nan") if values is None else float(values)
