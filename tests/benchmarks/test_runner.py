"""The runner: every bench runs at tiny size, failures and baselines end with 1."""

import json
import math

import pytest

from benchmarks import curves, measure, record, runner
from benchmarks.record import Row

BENCHES = runner.benches()


@pytest.mark.parametrize(
    "bench",
    [
        pytest.param(b, id=b.name, marks=[pytest.mark.slow] * b.compiles_long)
        for b in BENCHES
    ],
)
def test_every_bench_gives_rows_at_tiny_size(bench):
    where = record.context()
    rows = list(bench.run(measure.SMOKE))
    assert rows
    assert len({(row.name, row.size) for row in rows}) == len(rows)
    for row in rows:
        assert row.name.startswith(bench.name + "/")
        assert row.status in ("ok", "noisy") or row.note, row
        assert row.status != "failed", row
        assert row.value is None or math.isfinite(row.value)
        if row.value is None:
            assert row.status == "skipped"
        if row.ratio is None and "skipped" in row.note:
            assert row.met is None
        json.loads(record.to_json(row, where))


def one(name, rows):
    return (runner.Bench(name, rows),)


def test_a_bench_that_raises_fails_its_row_and_the_others_go_on():
    def broken(settings):
        yield Row("bad/first", value=1.0)
        raise ValueError("no water in the pool")

    chosen = one("bad", broken) + one("good", lambda s: [Row("good/row", value=2.0)])
    rows = list(runner.collect(chosen, measure.SMOKE, lambda text: None))
    assert [row.name for row in rows] == ["bad/first", "bad/error", "good/row"]
    assert rows[1].status == "failed"
    assert "no water" in rows[1].note


def test_the_exit_code_tells_of_failure(monkeypatch, tmp_path, capsys):
    value = [10.0]
    rows = lambda settings: [Row("x/y", value=value[0])]
    monkeypatch.setattr(runner, "benches", lambda: one("x", rows))
    base = tmp_path / "base.jsonl"
    assert runner.main(["--smoke", "--out", str(base)]) == 0
    assert runner.main(["--smoke", "--base", str(base)]) == 0
    value[0] = 5.0
    assert runner.main(["--smoke", "--base", str(base)]) == 1
    assert "WORSE" in capsys.readouterr().out


def test_a_baseline_of_another_machine_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(
        runner, "benches", lambda: one("x", lambda settings: [Row("x/y", value=1.0)])
    )
    base = tmp_path / "base.jsonl"
    assert runner.main(["--smoke", "--out", str(base)]) == 0
    base.write_text(base.read_text().replace('"cpu": "', '"cpu": "another '))
    with pytest.raises(SystemExit, match="numbers of two machines do not compare"):
        runner.main(["--smoke", "--base", str(base)])
    assert runner.main(["--smoke", "--any-machine", "--base", str(base)]) == 0


def test_an_unknown_bench_names_those_there_are():
    with pytest.raises(SystemExit, match=r"'nosuch'.*machine"):
        runner.main(["-k", "nosuch"])


def test_accelerators_are_not_measured_where_there_are_none():
    with pytest.raises(SystemExit, match=r"--tier accel .* only CPUs here"):
        runner.main(["--tier", "accel"])


def test_a_sweep_is_drawn_beside_the_results(monkeypatch, tmp_path):
    sweep = [
        Row("x/y", f"{n:,} environments, 4 steps", value=10.0 * n, unit="steps/s")
        for n in (1024, 1, 32)
    ]
    monkeypatch.setattr(runner, "benches", lambda: one("x", lambda settings: sweep))
    out = tmp_path / "rows.jsonl"
    assert runner.main(["--smoke", "--out", str(out)]) == 0
    assert (tmp_path / "rows.png").stat().st_size > 1000
    assert curves.of(sweep) == {"x/y": [(1, 10.0), (32, 320.0), (1024, 10240.0)]}
    assert curves.of(sweep[:2]) == {}


def test_rows_know_which_fraction_of_the_peak_they_reach():
    timing = measure.Timing(0, 0, 0, 0, 2.0, 2.0, 2.0, 2.0, 0, 7, 0, 0, 0.0)
    rows = [
        Row("machine/matmul_float32", value=1.0),
        Row("machine/copy_donated", value=1.0),
        Row("x/compute", timing=timing, flops=1e9),
        Row("x/memory", timing=timing, flops=1e6, bytes_moved=2e9),
        Row("x/unknown", timing=timing),
    ]
    fractions = [row.roofline for row in runner.with_roofline(rows)]
    assert fractions == [None, None, 0.5, 1.0, None]
