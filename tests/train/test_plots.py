"""Figures: right bytes, right curves, equal data equal files, bad input refused."""

import io
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxwm.train import plots

STEPS = np.arange(0, 5000, 1000)
CURVES = np.linspace(-1000, -100, 15).reshape(3, 5)
REAL = np.sin(np.arange(3 * 6 * 2)).reshape(3, 6, 2)
GRAPH = np.arange(6 * 3 * 4).reshape(6, 3, 4) % 5 == 0
# Row r, frame i: every pixel is 60 r + i.
PAINTED = [np.full((11, 4, 6, 3), 60 * r, np.uint8) for r in range(3)]
for _row in PAINTED:
    _row += np.arange(11, dtype=np.uint8)[:, None, None, None]

EVERY = {
    "learning_curves": lambda **o: plots.learning_curves(STEPS, CURVES, **o),
    "error_by_horizon": lambda **o: plots.error_by_horizon(
        {"model": [0, 0.1, 0.2]}, persistence=[0, 1, 2], **o
    ),
    "real_beside_imagined": lambda **o: plots.real_beside_imagined(
        REAL, REAL + 0.1, **o
    ),
    "mechanism_usage": lambda **o: plots.mechanism_usage(
        GRAPH[..., 0] + 0, GRAPH[..., 1] + 0, **o
    ),
    "causal_graph": lambda **o: plots.causal_graph(GRAPH, **o),
    "film_strip": lambda **o: plots.film_strip(
        np.full((4, 8, 8, 3), 128, np.uint8), **o
    ),
    "seen_and_imagined": lambda **o: plots.seen_and_imagined(*PAINTED, **o),
}


@pytest.fixture
def drawn(monkeypatch):
    """The figure a function draws, kept for looking into."""
    kept = []
    render = plots._render

    def keep(draw, width, height, format):
        return render(lambda f: (draw(f), kept.append(f)), width, height, format)

    monkeypatch.setattr(plots, "_render", keep)
    return kept


def lines(figure):
    return [line for axes in figure.axes for line in axes.get_lines()]


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_comes_as_svg_and_png(name):
    svg = EVERY[name](format="svg")
    assert re.match(rb"<\?xml[^>]*\?>\s*<!DOCTYPE svg", svg)
    assert not re.search(rb"<script|javascript:", svg, re.IGNORECASE)
    picture = Image.open(io.BytesIO(EVERY[name](format="png")))
    assert picture.format == "PNG" and picture.width > 600
    with pytest.raises(ValueError, match='format must be "svg" or "png", got \'jpg\''):
        EVERY[name](format="jpg")


def test_equal_data_give_equal_files_and_leave_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    assert EVERY["learning_curves"]() == EVERY["learning_curves"]()
    assert dict(matplotlib.rcParams) == before


def test_learning_curves_show_every_seed_and_their_interquartile_mean(drawn):
    values = np.array([[0.0, 0], [4, 40], [6, 60], [100, 1000]])
    plots.learning_curves([0, 10], values, random=-5.0, best=2000.0)
    found = [line.get_ydata() for line in lines(drawn[0])]
    for seed in values:
        assert any(np.array_equal(seed, y) for y in found)
    assert any(np.array_equal([5, 50], y) for y in found)
    assert any(np.array_equal([-5, -5], y) for y in found)
    assert any(np.array_equal([2000, 2000], y) for y in found)
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == [
        "IQM of 4 seeds, 95 %",
        "best known",
        "random policy",
    ]


def test_one_seed_has_a_curve_and_no_band(drawn):
    plots.learning_curves([0, 10], [1.0, 2.0])
    assert not drawn[0].axes[0].collections
    assert drawn[0].legends[0].get_texts()[0].get_text() == "one seed"


def test_the_mean_leaves_out_steps_that_a_seed_lacks(drawn):
    values = np.array([[1.0, np.nan, 3], [1, 2, 5]])
    plots.learning_curves([0, 10, 20], values)
    bold = max(lines(drawn[0]), key=lambda line: line.get_linewidth())
    np.testing.assert_array_equal(bold.get_xdata(), [0, 20])
    np.testing.assert_array_equal(bold.get_ydata(), [1, 4])


def test_learning_curves_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\[S, 5\] like steps, got \(3, 4\)"):
        plots.learning_curves(STEPS, CURVES[:, :4])


def test_errors_are_logarithmic_and_start_where_they_are_positive(drawn):
    plots.error_by_horizon(
        {"mine": [0, 1e-3, 1e-2], "other": [0, 1e-2, np.nan]}, persistence=[0, 1, 2]
    )
    axes = drawn[0].axes[0]
    assert axes.get_yscale() == "log"
    shown = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    np.testing.assert_array_equal(shown["mine"], [np.nan, 1e-3, 1e-2])
    np.testing.assert_array_equal(shown["other"], [np.nan, 1e-2, np.nan])
    np.testing.assert_array_equal(shown["repeat the first obs."], [np.nan, 1, 2])
    looks = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == 3


def test_a_perfect_model_is_said_to_be_one(drawn):
    plots.error_by_horizon({"mine": [0.0, 0.0]})
    assert drawn[0].axes[0].texts[0].get_text() == "all errors are exactly zero"


def test_errors_need_a_model():
    with pytest.raises(ValueError, match="at least one model"):
        plots.error_by_horizon({})


def test_dollars_in_names_are_no_formulas():
    plots.error_by_horizon({"a$^b$": [0, 1.0]})
    plots.real_beside_imagined(REAL, REAL, names=["$\\frac", "x$"])


def test_real_and_imagined_share_a_panel_per_entry_and_start(drawn):
    plots.real_beside_imagined(REAL, REAL + 1, names=["x", "v"], control_dt=0.5)
    axes = drawn[0].axes
    assert len(axes) == 2 * 3
    assert [a.get_ylabel() for a in axes[::3]] == ["x", "v"]
    real, imagined = axes[1].get_lines()  # entry x of the second start
    np.testing.assert_array_equal(real.get_ydata(), REAL[1, :, 0])
    np.testing.assert_array_equal(imagined.get_ydata(), REAL[1, :, 0] + 1)
    np.testing.assert_array_equal(real.get_xdata(), 0.5 * np.arange(6))


def test_the_real_line_ends_at_a_termination(drawn):
    mask = np.ones((3, 6))
    mask[0, 2:] = 0
    plots.real_beside_imagined(REAL, REAL, mask=mask)
    real, imagined = drawn[0].axes[0].get_lines()
    np.testing.assert_array_equal(np.isnan(real.get_ydata()), mask[0] == 0)
    assert np.isfinite(imagined.get_ydata()).all()


def test_many_entries_and_starts_are_cut_and_the_figure_says_so(drawn):
    many = np.random.default_rng(0).normal(size=(5, 4, 11))
    plots.real_beside_imagined(many, many)
    assert len(drawn[0].axes) == 8 * 3
    assert drawn[0].get_supxlabel() == "3 of 11 entries are not drawn"


def test_a_constant_entry_is_not_magnified(drawn):
    still = np.full((1, 4, 1), 2.0)
    plots.real_beside_imagined(still, still + 1e-7)
    low, high = drawn[0].axes[0].get_ylim()
    assert high - low > 0.5


def test_real_and_imagined_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[N, H, O\], got \(3, 6, 2\) and \(3, 5, 2"):
        plots.real_beside_imagined(REAL, REAL[:, :5])
    with pytest.raises(ValueError, match="names must have 2 entries like obs, got 1"):
        plots.real_beside_imagined(REAL, REAL, names=["x"])


def test_a_film_strip_goes_from_the_first_frame_to_the_last(drawn):
    film = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 6, 3), np.uint8
    )
    plots.film_strip(film, control_dt=0.1, every=2, columns=3, rows=2)
    shown = [axes for axes in drawn[0].axes if axes.images]
    assert [a.images[0].get_array()[0, 0, 0] for a in shown] == [0, 20, 40, 59, 79, 99]
    assert [a.get_title("left") for a in shown][::5] == ["0.00 s", "19.80 s"]


def test_a_short_film_makes_a_short_strip(drawn):
    plots.film_strip(np.zeros((1, 4, 4, 3), np.uint8))
    assert [axes.get_title("left") for axes in drawn[0].axes] == ["step 0"]


def test_film_strips_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"got \(4, 4, 3\)"):
        plots.film_strip(np.zeros((4, 4, 3), np.uint8))


def test_real_decoded_and_imagined_frames_stand_below_each_other(drawn):
    plots.seen_and_imagined(*PAINTED, control_dt=0.1, columns=6)
    (figure,) = drawn
    shown = [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes]
    first = [0, 2, 4, 6, 8, 10]
    assert shown == [60 * r + i for r in range(3) for i in first]
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[:6] == ["0.00 s", "0.20 s", "0.40 s", "0.60 s", "0.80 s", "1.00 s"]
    assert not any(titles[6:])
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[::6] == ["real", "decoded", "imagined"]


def test_a_short_episode_makes_short_rows(drawn):
    plots.seen_and_imagined(*(row[:2] for row in PAINTED))
    assert [axes.get_title("left") for axes in drawn[0].axes[:2]] == [
        "step 0",
        "step 1",
    ]
    assert len(drawn[0].axes) == 6


def test_rows_of_frames_refuse_other_shapes():
    real, decoded, imagined = PAINTED
    with pytest.raises(ValueError, match=r"must have one shape, got .*'imagined': "):
        plots.seen_and_imagined(real, decoded, imagined[:3])
    with pytest.raises(ValueError, match=r"must be \[F, height, width, 3\]"):
        plots.seen_and_imagined(real[..., 0], decoded, imagined)


def test_a_causal_graph_has_a_row_per_edge_and_leaves_self_edges_out(drawn):
    graph = np.zeros((4, 2, 3), bool)
    graph[:, 0, 0] = graph[1:3, 0, 1] = graph[:, 1, 2] = True
    plots.causal_graph(graph, names=["ball", "paddle", "wind"])
    *pictures, raster = drawn[0].axes
    labels = [label.get_text() for label in raster.get_yticklabels()]
    assert labels == ["wind → paddle", "paddle → ball"]
    bars = [
        [path.get_extents().intervalx.tolist() for path in bar.get_paths()]
        for bar in raster.collections
    ]
    assert bars == [[[0, 1], [1, 2], [2, 3], [3, 4]], [[1, 2], [2, 3]]]
    assert len(pictures) == 4


def test_a_graph_of_no_edges_says_so_and_weights_are_refused(drawn):
    plots.causal_graph(np.zeros((2, 3, 3), bool))
    assert any("no token acts" in t.get_text() for t in drawn[0].axes[-1].texts)
    with pytest.raises(ValueError, match=r"bool .* got \(2, 3, 3\) float64"):
        plots.causal_graph(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="names must have 3 entries like M, got 2"):
        plots.causal_graph(np.zeros((2, 3, 3), bool), names=["a", "b"])
    with pytest.raises(ValueError, match="positions must be"):
        plots.causal_graph(np.zeros((2, 3, 3), bool), positions=np.zeros((2, 3)))


def test_mechanisms_are_cells_with_the_context_written_in(drawn):
    mechanism = np.array([[0, 2], [0, 0], [2, 2]])
    context = np.array([[0, 0], [1, 1], [0, 0]])
    plots.mechanism_usage(mechanism, context, names=["ball", "paddle"])
    (axes,) = drawn[0].axes
    texts = [(t.get_position(), t.get_text()) for t in axes.texts]
    assert texts == [((0.5, 1.5), "0"), ((1.5, 0.5), "1"), ((2.5, 1.5), "0")]
    (legend,) = drawn[0].legends
    assert [t.get_text() for t in legend.get_texts()] == ["mechanism 0", "2"]
    cells = sum(len(bars.get_paths()) for bars in axes.collections)
    assert cells == mechanism.size
    with pytest.raises(ValueError, match="mechanism and context must both be"):
        plots.mechanism_usage(mechanism, context[:2])
    with pytest.raises(ValueError, match="names must have 2 entries like N, got 1"):
        plots.mechanism_usage(mechanism, context, names=["ball"])
