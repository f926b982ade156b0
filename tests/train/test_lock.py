"""One process per directory, also where the file system has no flock."""

import errno
import fcntl
import json
import os
import platform
import subprocess

import pytest

from jaxwm.train import lock
from jaxwm.train.errors import RunLockedError


def test_the_same_directory_cannot_be_held_twice(tmp_path):
    with (
        lock.hold(tmp_path),
        pytest.raises(RunLockedError, match=f"in use by process {os.getpid()} on host"),
        lock.hold(tmp_path),
    ):
        pass


def test_it_can_be_held_again_afterwards_also_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock.hold(tmp_path):
        raise KeyError
    with lock.hold(tmp_path):
        assert lock.owner(tmp_path)["pid"] == os.getpid()


def test_old_text_without_a_lock_is_taken_over(tmp_path):
    (tmp_path / lock.NAME).write_text(
        '{"pid": 1, "host": "elsewhere", "boot": "x"} ' * 9
    )
    with lock.hold(tmp_path):
        assert lock.owner(tmp_path)["pid"] == os.getpid()


@pytest.fixture
def no_flock(monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)


def pretend(tmp_path, **changes):
    text = {
        "pid": os.getpid(),
        "host": platform.node(),
        "boot": lock._boot(),
        **changes,
    }
    (tmp_path / lock.NAME).write_text(json.dumps(text))


def dead_pid():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize(
    "changes", [{"pid": "dead"}, {"boot": "another"}, {"pid": "no number"}]
)
def test_without_flock_a_dead_owner_is_replaced(tmp_path, changes):
    if changes.get("pid") == "dead":
        changes = {"pid": dead_pid()}
    pretend(tmp_path, **changes)
    with lock.hold(tmp_path):
        assert lock.owner(tmp_path)["pid"] == os.getpid()


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("changes", [{}, {"host": "elsewhere"}])
def test_without_flock_a_living_or_unknowable_owner_stays(tmp_path, changes):
    pretend(tmp_path, **changes)
    with pytest.raises(RunLockedError, match="if that process is gone, delete"):
        lock.hold(tmp_path).__enter__()


def test_a_missing_directory_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="No such file"), lock.hold(tmp_path / "none"):
        pass
