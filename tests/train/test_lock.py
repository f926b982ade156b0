"""One process per directory, also where the file system has no flock."""

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys

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


RIVAL = """
import sys, time
before = time.monotonic()
from jaxwm.train import run
from jaxwm.train.errors import RunLockedError
try:
    with run.open_run(sys.argv[1], {}):
        print("owns", flush=True)
        sys.stdin.read()
except RunLockedError as error:
    print(time.monotonic() - before, error, flush=True)
    sys.exit(3)
"""


def start_two_at_once(directory):
    """Starts two, sees that one owns the run and kills it; seconds of the other."""
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    lines = [process.stdout.readline() for process in pair]
    owners = [line == "owns\n" for line in lines]
    assert sorted(owners) == [False, True], lines
    first, second = pair[owners.index(True)], pair[owners.index(False)]
    assert second.wait(10) == 3
    seconds, text = lines[owners.index(False)].split(" ", 1)
    assert f"{directory} is in use by process {first.pid} on host" in text
    first.kill()
    for process in pair:
        process.communicate()
    assert lock.owner(directory)["pid"] == first.pid  # a stale lock is left
    return float(seconds)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_of_two_processes_one_goes_on_and_a_killed_ones_lock_is_taken_over(
    tmp_path, times
):
    seconds = [start_two_at_once(tmp_path) for _ in range(times)]
    assert max(seconds) < 1
    print(f"{times} pairs, the second ended after {max(seconds):.2f} s at most")


@pytest.mark.parametrize("verb", ["resume", "train"])
def test_the_command_line_says_so_before_it_loads_jax(tmp_path, verb):
    where = (
        [str(tmp_path)] if verb == "resume" else ["polygrad", "--out", str(tmp_path)]
    )
    (tmp_path / "config.json").write_text('{"schema": 1}')
    code = (
        "import sys, time\n"
        "from jaxwm.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "assert 'jax' not in sys.modules and time.process_time() < 1\n"
        "sys.exit(code)"
    )
    with lock.hold(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code, verb, *where], capture_output=True, text=True
        )
    assert done.returncode == 3, done.stderr
    assert f"is in use by process {os.getpid()} on host" in done.stderr


def test_a_missing_directory_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="No such file"), lock.hold(tmp_path / "none"):
        pass
