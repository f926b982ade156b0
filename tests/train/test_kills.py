"""A save that is killed at any point leaves a run that can be read, and goes on."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import pytest

from jaxwm.train import checkpoint, durable
from tests.train import saver

ROOT = pathlib.Path(__file__).parents[2]


@contextlib.contextmanager
def saving():
    """A function that sends a request to `saver` and returns the answer."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.train.saver"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:

        def ask(**request):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def ask():
    with saving() as ask:
        yield ask


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        checkpoint.save(directory, step, saver.state_of(step), config={}, keep=2)
    return directory


def newest(directory):
    """The step that is read, once its numbers are known to be its own."""
    step, state, _ = checkpoint.restore(directory, saver.state_of(0))
    assert all((array == step).all() for array in state.values())
    return step


def kill_at(ask, two_steps, directory, stop):
    """Kills a save of step 3 beside steps 1 and 2 at one event; returns the answer."""
    shutil.copytree(two_steps, directory)
    answer = ask(directory=str(directory), steps=[3], keep=2, stop=stop)
    before = newest(directory)
    # At most the step that was being saved is lost, and none that was finished.
    assert before in ((3,) if answer["saved"] else (2, 3)), answer
    if "gone-1" in (answer["event"] or ""):
        assert before == 3, answer  # older steps go once the new one is there
    checkpoint.tidy(directory)
    assert not list(directory.rglob(f"{durable.PREFIX}*")), answer
    assert newest(directory) == before
    return answer


def test_kills_at_some_calls_of_a_save_lose_at_most_that_step(ask, two_steps, tmp_path):
    events = [
        kill_at(ask, two_steps, tmp_path / str(stop), stop)["event"] for stop in (3, 40)
    ]
    assert all(events)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_every_call_of_a_save_loses_at_most_that_step(
    ask, two_steps, tmp_path
):
    """Before, amid and after all writes, flushes, renamings and deletions."""
    events = []
    while True:
        directory = tmp_path / str(len(events))
        answer = kill_at(ask, two_steps, directory, len(events))
        shutil.rmtree(directory)
        if not answer["killed"]:
            break
        events.append(answer["event"].replace(str(directory), ""))
    kinds = {" ".join(event.split()[:2]) for event in events}
    for call in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "write"):
        assert {f"before {call}", f"after {call}"} <= kinds
    for part in ("manifest.json", "latest", "gone-1"):
        assert any(part in event for event in events), part
    print(f"{len(events)} stop points")


def kill_at_random(ask, directory, num, seed):
    """Kills a process that does nothing but save, `num` times; returns what it did."""
    rng, last, kills, left, saves = random.Random(seed), 0, 0, 0, 0
    began = time.monotonic()
    for _ in range(num):
        steps = list(range(last + 1, last + 200))
        delay = 0.02 * 40 ** rng.random()
        answer = ask(directory=str(directory), steps=steps, keep=2, delay=delay)
        kills += answer["killed"]
        saves += len(answer["saved"])
        finished = max(answer["saved"], default=last)
        if checkpoint.steps(directory):
            found = newest(directory)
            assert finished <= found <= finished + 1, (found, finished)
            last = found
        assert last >= finished
        left += bool(list(directory.rglob(f"{durable.PREFIX}*")))
        checkpoint.tidy(directory)
        assert not list(directory.rglob(f"{durable.PREFIX}*"))
        assert len(checkpoint.steps(directory)) <= 3
    took = time.monotonic() - began
    return {"kills": kills, "saves": saves, "left": left, "seconds": round(took)}


def test_kills_at_random_moments_lose_at_most_one_save(ask, tmp_path):
    assert kill_at_random(ask, tmp_path, 2, seed=31)["kills"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills_at_random_moments_lose_at_most_one_save_each(ask, tmp_path):
    found = kill_at_random(ask, tmp_path, 100, seed=32)
    assert found["kills"] == 100
    assert found["saves"] > 50  # killed while saving, not before
    print(found)
