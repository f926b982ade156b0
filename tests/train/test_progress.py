"""What a person sees."""

import pytest

from jaxwm.train import progress


def drive(show):
    with show.compiling("the training loop"):
        pass
    show.begin(0, 2000)
    show.row({"iteration": 1, "loss": [1.0]})
    show.row({"iteration": 1, "eval/return": [100.0, None, 200.0]})
    show.update(500)
    show.note("[not markup]")
    show.update(2000)
    show.close()


def test_lines_name_compiling_share_rate_time_left_and_score(capsys):
    drive(progress.lines(every=0))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "compiling the training loop ..."
    assert lines[1].startswith("compiled the training loop in 0.")
    assert lines[2].startswith(" 25%  500 of 2,000 steps")
    assert "steps/s" in lines[2]
    assert lines[2].endswith("left  eval/return 150")
    assert lines[3] == "[not markup]"
    assert lines[4].startswith("100%")


def test_lines_are_few_but_the_last_is_shown(capsys):
    show = progress.lines(every=1000)
    show.begin(0, 100)
    for step in range(1, 101):
        show.update(step)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert shown[-1].startswith("100%")


def test_the_bar_runs_without_a_terminal_too(capsys):
    drive(progress._bar("eval/return"))
    err = capsys.readouterr().err
    assert "compiled the training loop in" in err
    assert "[not markup]" in err


def test_silence(capsys):
    drive(progress.silent())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3599.6, "1:00:00")]
)
def test_times_read_as_clocks(seconds, text):
    assert progress.clock(seconds) == text
