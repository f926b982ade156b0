"""Peers in their own process: they answer, say why not, and die loudly."""

import pytest

from benchmarks import peer

ECHO = "tests.benchmarks.echo_peer"


def test_a_peer_times_itself():
    with peer.Process(ECHO, {"seconds": 0.01}) as echo:
        assert echo.name == "echo 1.0"
        assert echo.facts == {"legs": 4}
        assert 0.01 <= echo(3) < 1.0


def test_one_peer_times_several_calls():
    with peer.Process(ECHO, {"seconds": {"run": 0.01, "walk": 0.5}}) as echo:
        assert 0.01 <= echo.side("run")(2) < 0.5 <= echo.side("walk")(1)


def test_a_peer_that_cannot_run_gives_its_reason():
    with (
        pytest.raises(peer.MissingError, match="no such thing here"),
        peer.Process(ECHO, {"missing": "no such thing here"}),
    ):
        pass


def test_a_peer_that_dies_shows_its_last_words():
    with (
        pytest.raises(RuntimeError, match="by zero on purpose"),
        peer.Process(ECHO, {"crash": "by zero on purpose"}),
    ):
        pass


def test_a_missing_module_is_named():
    assert peer.missing("json") == ""
    assert peer.missing("json", "no_such_module_x") == (
        "no_such_module_x: skipped, not installed"
    )
