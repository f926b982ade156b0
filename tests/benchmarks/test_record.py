"""Rows survive the file, and a slower row is found where the noise allows."""

import pytest

from benchmarks import record, table
from benchmarks.measure import Ratio, Timing
from benchmarks.record import Row


def timing(median, spread=0.05, retraces=0, variation=0.01):
    return Timing(
        trace_s=0.1,
        lower_s=0.2,
        compile_s=1.0,
        first_run_s=0.3,
        median_s=median,
        p10_s=median * (1 - spread),
        p90_s=median * (1 + spread),
        min_s=median * (1 - spread),
        variation=variation,
        repeats=7,
        retraces=retraces,
        peak_bytes=1000,
        checksum=1.5,
    )


def row(median=1.0, name="bench/row", **more):
    return record.timed_row(name, "B=8", 8, "steps/s", timing(median), **more)


def test_items_per_second_come_from_the_median():
    assert row(median=2.0).value == 4.0


def test_a_row_that_compiled_in_the_timed_part_fails():
    bad = record.timed_row("a/b", "", 1, "", timing(1.0, retraces=3))
    assert bad.status == "failed"
    assert "compiled 3 times" in bad.note


def test_a_row_that_varies_is_called_noisy():
    assert record.timed_row("a/b", "", 1, "", timing(1.0, variation=0.2)).status == (
        "noisy"
    )


def test_a_file_gives_back_its_rows_and_context(tmp_path):
    where = record.context()
    ratio = Ratio(2.0, 1.9, 2.1, 1.0, 2.0, "peer 1.0", 5)
    rows = [row(), row(name="a/b", ratio=ratio, target=1.5), Row("c/d", note="why")]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(record.to_json(r, where) + "\n" for r in rows))
    back = record.read(path)
    assert [r for r, _ in back] == rows
    assert back[0][1]["versions"]["jax"]
    assert back[0][1]["device"] == where["device"]


def test_a_file_of_another_schema_is_refused_with_its_line(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text('{"schema": 0}\n')
    with pytest.raises(ValueError, match=r"old.jsonl:1: schema must be 1, got 0"):
        record.read(path)


@pytest.mark.parametrize(
    ("median", "spread", "worse"),
    [
        (1.05, 0.01, False),  # 5 % slower
        (1.20, 0.01, True),  # 20 % slower and apart
        (1.20, 0.40, False),  # 20 % slower, within the noise
        (0.50, 0.01, False),  # faster
    ],
)
def test_slower_means_ten_percent_and_outside_both_intervals(median, spread, worse):
    base = [Row("a/b", timing=timing(1.0, spread), value=1.0)]
    new = [Row("a/b", timing=timing(median, spread), value=1 / median)]
    (change,) = record.changes(new, base)
    assert change.worse is worse
    assert change.ratio == pytest.approx(median)


@pytest.mark.parametrize(("processor", "worse"), [(1.0, False), (1.2, True)])
def test_the_processor_decides_where_the_clock_is_noisy(processor, worse):
    def noisy(seconds, busy):
        spread = busy, 0.99 * busy, 1.01 * busy
        return timing(seconds, 0.4, variation=0.5)._replace(work=spread)

    base = [Row("a/b", timing=noisy(1.0, 1.0), value=1.0)]
    new = [Row("a/b", timing=noisy(3.0, processor), value=1 / 3)]
    (change,) = record.changes(new, base)
    assert change.worse is worse
    assert change.ratio == pytest.approx(processor)


def test_a_larger_value_is_worse_where_less_is_better():
    base = [Row("a/bytes", value=100.0, higher_is_better=False)]
    (up,) = record.changes([base[0]._replace(value=150.0)], base)
    (down,) = record.changes([base[0]._replace(value=50.0)], base)
    assert (up.worse, down.worse) == (True, False)


def test_rows_without_a_partner_or_a_value_are_left_out():
    assert record.changes([row(), Row("a/b")], [row(name="x"), Row("a/b")]) == []


def test_targets_are_met_on_the_right_side():
    ratio = Ratio(0.9, 0.8, 1.0, 1.0, 0.9, "peer", 5)
    assert row(target=0.8, ratio=ratio).met
    assert not row(target=1.0, ratio=ratio).met
    assert Row("a", value=0.2, higher_is_better=False, target=0.3).met
    assert not Row("a", value=0.4, higher_is_better=False, target=0.3).met
    assert Row("a", target=0.3, status="skipped").met is None


def test_a_skipped_row_shows_no_number():
    skipped = Row("a/b", status="skipped", note="torch: skipped, not installed")
    assert table.line(skipped) == "a/b  -  skipped  torch: skipped, not installed"


def test_a_busy_machine_is_named():
    where = {**record.context(), "cores": 2, "load_before": 0.3}
    assert "busy" not in table.heading(where)
    assert "busy (load 7.0)" in table.heading({**where, "load_before": 7.0})


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (1234.0, "1234"), (56_789.0, "56.8 k"), (1_234_567.0, "1.23 M")],
)
def test_numbers_are_shown_with_three_digits(value, text):
    assert table.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2 s"), (0.00123, "1.23 ms"), (4e-6, "4 us")]
)
def test_durations_are_shown_with_a_unit(value, text):
    assert table.seconds(value) == text
