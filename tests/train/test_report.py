"""The page of a run: every part is there, nothing foreign runs, gaps have reasons."""

import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from jaxwm.train import page, plots, report, sections
from jaxwm.types import Factor
from tests.train import walk

HORIZON = 12


def film(kind="GIF", size=(32, 32)):
    file = io.BytesIO()
    Image.new("RGB", size, (10, 20, 30)).save(file, kind)
    return file.getvalue()


def full():
    rng = np.random.default_rng(0)
    k = np.arange(HORIZON)
    errors = {
        "mse": 1e-3 * k,
        "std": 1e-4 * k,
        "normalised": 2.1e-3 * k,
        "normalised_std": 1e-4 * k,
        "persistence": 0.2 * k,
        "persistence_normalised": 0.1 * k,
        "reward_mse": 1e-5 * k,
        "count": np.full(HORIZON, 64.0),
    }
    real = rng.normal(size=(3, HORIZON, 2))
    return report.Run(
        title="polygrad on pendulum",
        summary="A policy trained in imagination.",
        env="pendulum",
        returns=np.array([[-200.0, -100], [-180, -120], [-190, -130], [-160, -150]]),
        lengths=np.full((4, 2), 200),
        random_return=-1200.0,
        best_return=-150.0,
        steps=np.arange(0, 5000, 1000),
        curves=rng.normal(size=(4, 5)),
        errors={"polygrad": errors, "ensemble": errors},
        beside={"polygrad": {"real": real, "imagined": real}},
        obs_names=["theta", "omega"],
        control_dt=0.05,
        frames={
            "rssm": {
                row: rng.integers(0, 256, (HORIZON, 4, 4, 3)).astype(np.uint8)
                for row in ("real", "decoded", "imagined")
            }
        },
        on_policy={"mean": [0.0125], "std": [1.03]},
        noise={
            "polygrad": {
                "ratio": [0.987, 1.0],
                "autocorrelation": [0.01, 0.02],
                "true_autocorrelation": [0.0, 0.0],
                "crps_ratio": [1.011, 1.0],
                "energy_distance": 0.0333,
            }
        },
        structure={
            "comet": {
                "graph": rng.random((HORIZON, 3, 4)) > 0.5,
                "position": rng.normal(size=(HORIZON, 3, 2)),
                "tokens": ("ball", "paddle", "wall", "action"),
                "mechanism": rng.integers(0, 3, (HORIZON, 3)),
                "context": rng.integers(0, 3, (HORIZON, 3)),
            }
        },
        film=film(),
        film_text="One episode of seed 0.",
        strip=film("PNG"),
        factors=[Factor("mass", 1.0, 0.7, 1.3, "kg", "mass of the rod")],
        config={"run": {"env_steps": 24000}, "config": {"width": 128}},
        versions={"jax": "0.10.2"},
        device="cpu, 2 cores",
        seeds=[3, 4, 5, 6],
        seconds=112.0,
        command="jaxwm train polygrad --env pendulum",
        notes=["Trained on two cores."],
    )


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, the words between them, and open tags."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def ids(self):
        return [a["id"] for tag, a in self.tags if tag == "section"]


def words_of(text):
    return "".join(Reader(text).words)


PAGE = report.report(full())  # made once; no test changes it


@pytest.fixture
def blank(monkeypatch):
    """Empty figures, for tests of what stands around them."""
    monkeypatch.setattr(plots, "_render", lambda *_: b"<svg></svg>")


def test_a_full_run_shows_every_section_in_order():
    reader = Reader(PAGE)
    assert reader.open == []  # every tag is closed
    assert reader.ids() == [*report._SECTIONS, "notes"]
    assert "Not shown" not in PAGE


def test_every_link_points_to_a_section():
    reader = Reader(PAGE)
    links = [a["href"] for tag, a in reader.tags if tag == "a"]
    assert links == [f"#{name}" for name in reader.ids()]


@pytest.mark.parametrize(
    "word",
    [
        "polygrad on pendulum",
        "A policy trained in imagination.",
        "trained, seed 3",
        "trained, interquartile mean",
        "random policy",
        "best known",
        "−1,200",
        "95 % bootstrap interval",
        "1 min 52 s",
        "repeat the first observation",
        "1.03",
        "0.987",
        "0.7 to 1.3",
        "mass of the rod",
        "run.env_steps",
        "24000",
        "0.10.2",
        "cpu, 2 cores",
        "3, 4, 5, 6",
        "jaxwm train polygrad --env pendulum",
        "Trained on two cores.",
        "4 seeds only",
    ],
)
def test_the_page_says(word):
    assert word in words_of(PAGE)


def test_the_table_holds_returns_scores_and_their_interquartile_mean():
    rows = re.findall(r"<tr.*?</tr>", PAGE.split('id="curves"')[0])
    cells = [re.sub(r"<[^>]*>", "|", row) for row in rows]
    score = lambda value: f"{(value + 1200) / 1050:.2f}"
    (seed,) = [row for row in cells if "seed 5" in row]
    assert "−160" in seed and score(-160) in seed and "200" in seed
    (middle,) = [row for row in cells if "interquartile mean" in row]
    # Seeds average -150, -150, -160, -155; the middle two -150 and -155.
    assert "−152.5" in middle and score(-152.5) in middle and "−157.5" not in middle
    assert re.search(r"\|−1[56]\d(\.\d)? to −15\d(\.\d)?\|", middle)


def test_the_error_table_shows_steps_and_shares_of_persistence():
    part = PAGE.split('<section id="error"')[1].split("</section>")[0]
    text = words_of(f"<section{part}</section>")
    for k in (1, 5, 10, 11):
        assert f"k = {k}" in text
    assert "2.1 %" in text  # 2.1e-3 k of 0.1 k
    assert "0.00500 ± 5.0·10−4" in text
    assert "64 trajectories" in text


def test_the_head_sums_up():
    head = words_of(PAGE.split("</header>")[0].split("<body>")[1] + "</header>")
    assert "−152.5" in head
    assert "100 %" in head  # (-152.5 + 1200) / 1050 = 0.998
    assert "4 of 4" in head
    assert "2.1 %" in head  # imagination error against persistence


def test_nothing_is_loaded_and_nothing_runs():
    reader = Reader(PAGE)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & {
        tag for tag, _ in reader.tags
    }
    for _, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action"):
            target = attributes.get(name, "#")
            assert target.startswith(("data:image/", "data:video/", "#"))
    assert "url(" not in PAGE and "@import" not in PAGE
    (policy,) = [a["content"] for _, a in reader.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_pictures_are_embedded_described_and_of_their_kind():
    pictures = [a for tag, a in Reader(PAGE).tags if tag == "img"]
    kinds = [a["src"].split(";")[0] for a in pictures]
    assert kinds.count("data:image/svg+xml") == 5
    assert kinds.count("data:image/gif") == 1
    assert kinds.count("data:image/png") == 2  # film strip and frames
    assert all(a["alt"] for a in pictures)


def test_the_page_is_small_and_says_the_same_twice():
    assert len(PAGE) < 400_000
    assert report.report(full()) == PAGE


def test_everything_from_outside_is_escaped(blank):
    evil = '<script>alert("1")</script>&\''
    run = full()._replace(
        title=evil,
        summary=evil,
        env=evil,
        obs_names=[evil, evil],
        film_text=evil,
        factors=[Factor(evil, 1.0, 0.0, 2.0, evil, evil)],
        config={evil: evil, "nested": {evil: [evil]}},
        versions={evil: evil},
        device=evil,
        seeds=[evil] * 4,
        command=evil,
        notes=[evil],
        errors={evil: full().errors["polygrad"]},
        beside={evil: full().beside["polygrad"]},
        noise={evil: full().noise["polygrad"]},
        frames={evil: full().frames["rssm"]},
    )
    text = report.report(run)
    assert "<script" not in text.lower()
    assert "script" not in {tag for tag, _ in Reader(text).tags}
    assert words_of(text).count(evil) >= 15
    missing = report.report(report.Run(evil, missing={"film": evil}))
    assert "<script" not in missing.lower() and evil in words_of(missing)


def test_an_empty_run_gives_a_reason_for_every_section():
    text = report.report(report.Run("nothing"))
    assert Reader(text).ids() == ["notes"]
    notes = words_of(text)
    for heading, _, reason in report._SECTIONS.values():
        assert heading in notes and reason in notes


@pytest.mark.parametrize("name", report._SECTIONS)
def test_a_missing_section_is_named_with_the_reason_given(name, blank):
    empty = {
        "results": {"returns": None},
        "curves": {"curves": None},
        "film": {"film": None, "strip": None},
        "error": {"errors": {}},
        "beside": {"beside": {}},
        "frames": {"frames": {}},
        "on_policy": {"on_policy": None},
        "noise": {"noise": {}},
        "structure": {"structure": {}},
        "environment": {"factors": ()},
        "ran": dict(config={}, versions={}, device="", seeds=(), seconds=None, env=""),
        "reproduce": {"command": ""},
    }
    run = full()._replace(missing={name: "the dog ate it"}, **empty[name])
    text = report.report(run)
    assert set(report._SECTIONS) - set(Reader(text).ids()) == {name}
    assert f"Not shown: {report._SECTIONS[name][0]}. Reason: the dog ate it." in (
        words_of(text)
    )


def test_a_reason_for_no_section_is_refused():
    with pytest.raises(ValueError, match=r"unknown sections \['movie'\]"):
        report.report(report.Run("x", missing={"movie": "no camera"}))


def test_media_above_the_limit_are_named_instead_of_embedded(blank):
    run = full()
    text = report.report(run, max_media=len(run.film) - 1)
    assert "data:image/gif" not in text
    assert f"The film has {len(run.film):,} bytes, more than" in words_of(text)
    both = report.report(run, max_media=1)
    assert "film" not in Reader(both).ids()
    assert "The film strip has" in words_of(both)


@pytest.mark.parametrize("ends", [(None, -150.0), (-1200.0, None), (0.0, 0.0)])
def test_without_both_ends_there_is_no_score_and_a_note(ends, blank):
    run = full()._replace(random_return=ends[0], best_return=ends[1])
    text = report.report(run)
    assert "No score:" in words_of(text)
    assert 'class="meter"' not in text


def test_one_seed_has_no_interval_and_a_note(blank):
    run = full()._replace(returns=[[-150.0, -170.0]], curves=[[1.0, 2, 3, 4, 5]])
    text = words_of(report.report(run))
    assert "needs 2 seeds" in text and "1 seed only" in text
    assert "no interval can be given" in text
    assert "trained, seed 0" in text  # the run's four seeds do not fit one row


def test_null_and_nan_from_json_are_dashes():
    errors = {name: list(row) for name, row in full().errors["polygrad"].items()}
    errors["mse"][5] = None
    errors["persistence_normalised"][5] = None
    run = full()._replace(errors={"polygrad": errors})
    assert page.DASH in report.report(run)


def test_short_horizons_and_models_of_other_lengths_are_shown():
    short = {name: row[:3] for name, row in full().errors["polygrad"].items()}
    run = full()._replace(errors={"a": full().errors["polygrad"], "b": short})
    assert "k = 11" in words_of(report.report(run))
    run = full()._replace(errors={"b": short})
    text = words_of(report.report(run))
    assert "k = 2" in text and "k = 3" not in text


def test_a_tall_ratio_is_no_percentage_of_nothing(blank):
    errors = dict(full().errors["polygrad"], persistence_normalised=np.zeros(HORIZON))
    run = full()._replace(errors={"m": errors})
    assert sections.ratio_to_persistence(run) is None
    assert "imagination error" not in report.report(run)


# --- from a run's files


ROWS = [
    {"iteration": 0, "step": 0, "seconds": 1.0, "eval/return": [1.0, 2.0]},
    {"iteration": 1, "step": 100, "seconds": 2.0, "model/loss": [0.1, 0.2]},
    {"iteration": 2, "step": 200, "seconds": 3.5, "eval/return": [3.0, None]},
    {"iteration": 4, "step": 400, "seconds": 9.0, "eval/return": [[4.0, 6.0], [1, 3]]},
]


def test_a_curve_takes_one_number_per_seed_or_its_episodes():
    steps, values = report.curve(ROWS, "eval/return")
    np.testing.assert_array_equal(steps, [0, 200, 400])
    np.testing.assert_array_equal(values, [[1, 3, 5], [2, np.nan, 2]])


def test_a_curve_is_sorted_and_the_last_row_of_a_step_counts():
    rows = [{"step": 5, "x": 1.0}, {"step": 2, "x": 2.0}, {"step": 5, "x": 3.0}]
    steps, values = report.curve(rows, "x")
    np.testing.assert_array_equal(steps, [2, 5])
    np.testing.assert_array_equal(values, [[2, 3]])


def test_a_curve_of_nothing_is_empty():
    steps, values = report.curve(ROWS, "no/such")
    assert steps.shape == (0,) and values.shape == (0, 0)


def test_a_curve_refuses_rows_without_a_step_or_of_other_seeds():
    with pytest.raises(ValueError, match="row 1 has 'x' but no 'step'"):
        report.curve([{"step": 0, "x": 1.0}, {"x": 2.0}], "x")
    with pytest.raises(ValueError, match=r"'x' has \[1, 2\] seeds"):
        report.curve([{"step": 0, "x": 1.0}, {"step": 1, "x": [2.0, 3.0]}], "x")


def test_a_run_is_read_from_its_files():
    document = {
        "schema": 1,
        "recipe": "polygrad",
        "run": {"env": "walk", "env_steps": 400},
        "config": {"width": 8},
        "seeds": [0, 1],
        "device": "cpu",
        "versions": {"jax": "0.10.2"},
        "command": "jaxwm train polygrad --env walk",
    }
    spec = walk.SPEC._replace(random_return=0.0, best_return=10.0)
    run = report.of_run(document, ROWS, spec)
    assert run.title == "polygrad on walk" and run.seconds == 9.0
    assert run.random_return == 0 and run.best_return == 10
    assert run.factors == spec.factors and run.control_dt == 0.1
    text = words_of(report.report(run))
    for word in ("run.env_steps", "config.width", "gain", "0.10.2", "--env walk"):
        assert word in text
    assert "Learning curves" in text and "schema" not in text


def test_an_empty_document_still_makes_a_page():
    text = report.report(report.of_run({}, []))
    assert "a run" in words_of(text) and Reader(text).ids() == ["notes"]


# --- pieces


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0, 4, "0"),
        (-1195.4, 4, "−1,195"),
        (12345.6, 3, "12,346"),
        (0.9997, 3, "1.00"),
        (0.12345, 3, "0.123"),
        (5e-5, 3, "5.0·10<sup>−5</sup>"),
        (-2.5e9, 4, "−2.50·10<sup>9</sup>"),
        (None, 4, page.DASH),
        (float("nan"), 4, page.DASH),
        (float("-inf"), 4, "−∞"),
    ],
)
def test_numbers_are_written_for_people(value, digits, shown):
    assert page.number(value, digits) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (3.21, "3.2 s"),
        (60.0, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7260.0, "2 h 01 min"),
    ],
)
def test_durations_are_written_for_people(seconds, shown):
    assert page.duration(seconds) == shown


def test_the_meter_is_cut_at_both_ends_and_its_number_is_not():
    assert "width:100.0%" in page.meter(1.3) and ">1.30<" in page.meter(1.3)
    assert "width:0.0%" in page.meter(-0.4) and ">−0.40<" in page.meter(-0.4)


def test_long_lists_of_settings_start_folded():
    assert "<details open>" in page.pairs("Settings", {"a": 1, "b": 2}, fold=2)
    assert "<details>" in page.pairs("Settings", {"a": 1, "b": 2, "c": 3}, fold=2)
    assert "<details" not in page.pairs("Settings", {"a": 1})


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (film("PNG"), "image/png"),
        (film("GIF"), "image/gif"),
        (film("JPEG"), "image/jpeg"),
        (film("WEBP"), "image/webp"),
        (b"\x00\x00\x00\x18ftypmp42", "video/mp4"),
        (b"<?xml version='1.0'?><svg>", "image/svg+xml"),
    ],
)
def test_media_are_known_by_their_first_bytes(data, kind):
    assert page.media_type(data) == kind


def test_other_media_are_refused():
    with pytest.raises(ValueError, match="expected SVG, PNG"):
        page.media_type(b"<html>")


def test_a_film_file_gets_controls():
    shown = page.figure(b"\x00\x00\x00\x18ftypmp42", "a film", "text", natural=True)
    assert "<video" in shown and "controls" in shown
