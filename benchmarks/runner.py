"""Runs the rows, prints them at a glance and writes them as JSON lines.

    python -m benchmarks.runner [--tier quick|full|accel] [-k TEXT] [--smoke]
                                [--base FILE]

The machine's peaks come first; with them each row that knows its arithmetic also shows
which fraction of the machine it reaches. Peers that are not installed are skipped and
named. Sweeps over the number of environments are also drawn, beside the results. Ends
with 1 if a row failed or is slower than the baseline, else with 0.
"""

import argparse
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TIERS = ("quick", "full", "accel")  # the last: all rows, on a GPU or TPU alone


class Bench(NamedTuple):
    """A name to select by, and a function `(settings) -> rows`."""

    name: str
    run: Callable
    full_only: bool = False
    compiles_long: bool = False  # its smoke run too takes more than a few seconds


def benches() -> tuple[Bench, ...]:
    """All benches, machine first. Imported late: jax must see the cores chosen."""
    from benchmarks import (
        bench_checkpoint,
        bench_compile,
        bench_diffusion,
        bench_gradients,
        bench_import,
        bench_machine,
        bench_physics,
        bench_plan,
        bench_ppo,
        bench_replay,
        bench_rollout,
        bench_scale,
        bench_seeds,
        bench_simulators,
        bench_spectral,
    )

    return (
        Bench("machine", bench_machine.rows),
        Bench("import", bench_import.rows),
        Bench("physics", bench_physics.rows, compiles_long=True),
        Bench("rollout", bench_rollout.rows, full_only=True, compiles_long=True),
        Bench("replay", bench_replay.rows),
        Bench("diffusion", bench_diffusion.rows, compiles_long=True),
        Bench("gradients", bench_gradients.rows, full_only=True, compiles_long=True),
        Bench("simulators", bench_simulators.rows, full_only=True, compiles_long=True),
        Bench("spectral", bench_spectral.rows, full_only=True, compiles_long=True),
        Bench("seeds", bench_seeds.rows, full_only=True, compiles_long=True),
        Bench("plan", bench_plan.rows, full_only=True, compiles_long=True),
        Bench("scale", bench_scale.rows, full_only=True, compiles_long=True),
        Bench("ppo", bench_ppo.rows, full_only=True, compiles_long=True),
        Bench("compile", bench_compile.rows, full_only=True, compiles_long=True),
        Bench("checkpoint", bench_checkpoint.rows),
    )


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.runner", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tier", choices=TIERS, default="quick")
    parser.add_argument("-k", default="", metavar="TEXT", help="benches with this text")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes; no result kept"
    )
    parser.add_argument("--cores", type=int, metavar="N", help="use only N cores")
    parser.add_argument("--out", type=pathlib.Path, help="file to write rows to")
    parser.add_argument("--base", type=pathlib.Path, help="baseline to compare with")
    parser.add_argument(
        "--any-machine",
        action="store_true",
        help="compare across machines all the same",
    )
    parser.add_argument("--list", action="store_true", help="names of the benches")
    return parser.parse_args(argv)


def pin(cores: int) -> None:
    """Restricts this process, and the peers it starts, to the first `cores` cores."""
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("--cores needs Linux; leave it out on this system.")
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= cores <= len(allowed):
        raise SystemExit(f"--cores must be 1 to {len(allowed)} here, got {cores}.")
    os.sched_setaffinity(0, set(allowed[:cores]))


def collect(chosen, settings, report: Callable) -> Iterator:
    """Runs the benches; one that raises becomes a failed row, and the rest go on."""
    from benchmarks.record import Row

    begun, took = time.perf_counter(), []
    for bench in chosen:
        report(f"{bench.name} ...")
        try:
            yield from bench.run(settings)
        except Exception as error:
            traceback.print_exc()
            note = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Row(f"{bench.name}/error", status="failed", note=note)
        begun, before = time.perf_counter(), begun
        took.append(f"{bench.name} {begun - before:.0f}")
    report("seconds: " + ", ".join(took))


def with_roofline(rows: list) -> list:
    """Adds the fraction of the measured peaks to rows that know their arithmetic."""
    peaks = {row.name: row.value for row in rows if row.name.startswith("machine/")}
    flops = (peaks.get("machine/matmul_float32") or 0.0) * 1e9
    moved = (peaks.get("machine/copy_donated") or 0.0) * 1e9
    done = []
    for row in rows:
        if (
            row.timing is not None
            and flops
            and moved
            and (row.flops or row.bytes_moved)
        ):
            least = max((row.flops or 0) / flops, (row.bytes_moved or 0) / moved)
            row = row._replace(roofline=least / row.timing.median_s)
        done.append(row)
    return done


def compared(rows, where, base: pathlib.Path, any_machine: bool, console) -> bool:
    """Prints rows beside the baseline; returns whether one is worse.

    Raises:
        SystemExit: if the baseline is of another machine and `any_machine` is off.
    """
    from rich.table import Table

    from benchmarks import record

    stored = record.read(base)
    for name in ("device", "cpu", "cores"):
        there = {context.get(name) for _, context in stored}
        if there != {where[name]} and not any_machine:
            raise SystemExit(
                f"{base} was measured on {name} = {there}, this machine has "
                f"{where[name]!r}; numbers of two machines do not compare "
                "(--any-machine to do so all the same)."
            )
    found = record.changes(rows, (row for row, _ in stored))
    table = Table("row", "size", "against the baseline", title=str(base))
    for change in found:
        words = f"{change.ratio:.2f} x {'slower' if change.ratio > 1 else ''}".strip()
        table.add_row(change.name, change.size, words + ("  WORSE" * change.worse))
    console.print(table)
    if not found:
        console.print(f"No row of {base} was measured now.")
    return not found or any(change.worse for change in found)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if options.cores:
        pin(options.cores)
    sys.path.insert(0, str(ROOT))

    import jax
    from rich.console import Console

    from benchmarks import curves, measure, record, table

    if options.tier == "accel" and jax.default_backend() == "cpu":
        raise SystemExit(
            "--tier accel measures a GPU or TPU, and jax finds only CPUs here; install "
            '"jaxwm[cuda]" on a machine that has one, or take --tier quick or full.'
        )

    console = Console(width=None if sys.stdout.isatty() else 130)
    chosen = [bench for bench in benches() if options.k in bench.name]
    if options.list:
        console.print("\n".join(bench.name for bench in chosen))
        return 0
    if not chosen:
        raise SystemExit(
            f"no bench has {options.k!r} in its name; have: "
            + ", ".join(bench.name for bench in benches())
        )
    full = options.tier != "quick"
    chosen = [bench for bench in chosen if full or not bench.full_only]
    settings = measure.SMOKE if options.smoke else measure.Settings(full=full)

    where = record.context()
    console.print(table.heading(where))
    started = time.perf_counter()
    rows = []
    # Compile times are those of a first run; a persistent cache would hide them.
    cache = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    for row in collect(chosen, settings, lambda text: console.print(text, style="dim")):
        row = row._replace(load=record.load())
        if options.smoke:  # targets are meant for real sizes
            row = row._replace(target=None)
        rows.append(row)
        console.print(table.line(row), highlight=False)
    jax.config.update("jax_enable_compilation_cache", cache)
    rows = with_roofline(rows)
    console.print(table.glance(rows))
    console.print(table.notes(rows), highlight=False)
    console.print(f"{len(rows)} rows in {time.perf_counter() - started:.0f} s")

    out = options.out
    if out is None and not options.smoke:
        out = RESULTS / (time.strftime("%Y%m%d-%H%M%S") + ".jsonl")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(record.to_json(row, where) + "\n" for row in rows))
        console.print(f"written to {out}")
        picture = out.with_suffix(".png")
        if curves.draw(rows, picture):
            console.print(f"steps a second by number of environments: {picture}")

    worse = False
    if options.base is not None:
        worse = compared(rows, where, options.base, options.any_machine, console)
    return int(worse or any(row.status == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
