"""World models side by side, from the command line."""

import json

import numpy as np
import pytest

from jaxwm import __main__ as cli
from jaxwm.commands import compare

SMALL = "--preset tiny --steps 300 --updates 2 --batch 8 --windows 16 --horizon 3"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Output directory of a comparison of two models."""
    path = tmp_path_factory.mktemp("compare")
    names = ["ensemble", "transformer"]
    arguments = ["compare", *names, *SMALL.split(), "--out", str(path)]
    assert cli.main(arguments) == 0
    return path


def test_it_leaves_numbers_and_a_picture(compared):
    found = json.loads((compared / "compare.json").read_text())
    assert list(found["models"]) == ["ensemble", "transformer"]
    for row in found["models"].values():
        assert len(row["error"]) == len(row["copy"]) == 3
        assert np.isfinite(row["error"]).all() and row["microseconds"] > 0
        assert row["num_params"] > 0
    # Both were judged on the same windows.
    copies = [row["copy"] for row in found["models"].values()]
    np.testing.assert_array_equal(*copies)
    assert copies[0][0] < copies[0][2]
    # Random members differ; the transformer draws nothing.
    assert found["models"]["ensemble"]["spread"][0] > 0
    assert found["models"]["transformer"]["spread"] is None
    assert (compared / "compare.svg").read_text().count("<svg") == 1


def test_the_table_has_the_best_first_and_shows_intervals():
    rng = np.random.default_rng(0)

    def judged(scale):
        error = scale * rng.uniform(0.9, 1.1, (100, 4))
        error[:50, 3] = np.nan  # these windows had ended
        return compare.Judged(error, error + 1, 0.5, None, 1.0, 2.0, 10)

    text = compare.table({"worse": judged(2.0), "better": judged(1.0)}, 4)
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["world", "model"]
    assert [line.split()[0] for line in lines[1:3]] == ["better", "worse"]
    assert "error at 4" in lines[0] and "+-" in lines[1]


def test_an_unknown_model_is_named_with_the_closest(capsys):
    assert cli.main(["compare", "ensembel"]) == 2
    assert "did you mean ensemble" in capsys.readouterr().err
