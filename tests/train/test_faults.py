"""Runs survive kill -9, signals and each other."""

import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxwm import train
from jaxwm.train import checkpoint, chunk, lock, sinks
from tests.train import child, tiny

ROOT = pathlib.Path(__file__).parents[2]
ITERATIONS = 1000


def start(directory, *options):
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    command = [sys.executable, "-m", "tests.train.child", str(directory), *options]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def wait_for(process, word):
    """The first line of a process that starts with `word`, or None at its end."""
    return next((line for line in process.stdout if line.startswith(word)), None)


def kill_until_done(
    directory, delays, word="training", how=signal.SIGKILL, seconds=None
):
    """Restarts a run, ending it after each delay; returns how often it was.

    How long it took to end is appended to `seconds`.
    """
    kills = 0
    for delay in itertools.chain(delays, [None]):
        process = start(directory)
        with process:
            wait_for(process, word)
            if delay is None:
                rest = process.communicate()[0]
                assert process.returncode == 0
                assert f"finished {ITERATIONS}" in rest
                return kills
            try:
                process.wait(delay)
                return kills
            except subprocess.TimeoutExpired:
                before = time.monotonic()
                process.send_signal(how)
                process.wait(120)
                if seconds is not None:
                    seconds.append(time.monotonic() - before)
                assert process.returncode == (0 if how == signal.SIGTERM else -how)
                assert how != signal.SIGTERM or checkpoint.steps(directory)
                kills += 1


def final_state(directory):
    learner = tiny.make()
    template = jax.eval_shape(
        jax.vmap(lambda seed: chunk.start(learner, seed)), np.uint32(child.SEEDS)
    )
    step, state, _ = checkpoint.restore(directory, template, below="learner")
    assert step == ITERATIONS
    return state


def assert_equal_to_an_uninterrupted_run(directory, reference):
    want = jax.tree_util.tree_leaves_with_path(reference.state)
    got = jax.tree.leaves(final_state(directory))
    for (path, a), b in zip(want, got, strict=True):
        assert np.asarray(a).tobytes() == b.tobytes(), jax.tree_util.keystr(path)
    checkpoints = directory / "checkpoints"
    assert not list(checkpoints.glob(".tmp*"))
    assert len(list(checkpoints.iterdir())) == 2
    rows = sinks.read(directory / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(10, ITERATIONS + 1, 10))


@pytest.fixture(scope="module")
def reference():
    return train.fit(
        tiny.make(), seeds=child.SEEDS, num_iterations=ITERATIONS, log_every=10
    )


def test_three_kills_change_nothing(tmp_path, reference):
    rng = random.Random(11)
    kills = kill_until_done(tmp_path, [rng.uniform(0.05, 0.4) for _ in range(3)])
    assert kills == 3
    assert_equal_to_an_uninterrupted_run(tmp_path, reference)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_kills_at_any_time_change_nothing(tmp_path, reference):
    """Log-uniform in the time since the process spoke; new runs until 50 kills."""
    rng, kills, runs = random.Random(12), 0, 0
    while kills < 50:
        directory = tmp_path / str(runs)
        delays = [0.01 * 300 ** rng.random() for _ in range(10)]
        kills += kill_until_done(directory, delays[: 50 - kills], word="compiling")
        assert_equal_to_an_uninterrupted_run(directory, reference)
        runs += 1


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thirty_sigterms_at_any_time_change_nothing(tmp_path, reference):
    """Also while compiling; each is answered by a checkpoint within seconds."""
    rng, seconds, runs = random.Random(13), [], 0
    while len(seconds) < 30:
        directory = tmp_path / str(runs)
        delays = [0.003 * 300 ** rng.random() for _ in range(30 - len(seconds))]
        kill_until_done(directory, delays, "compiling", signal.SIGTERM, seconds)
        assert_equal_to_an_uninterrupted_run(directory, reference)
        runs += 1
    assert len(seconds) == 30
    assert sorted(seconds)[-4] < 5
    assert max(seconds) < 30  # where it was compiling
    print(f"{runs} runs, answers after {np.median(seconds):.2f}, {max(seconds):.2f} s")


def test_sigterm_saves_exits_cleanly_and_the_run_goes_on(tmp_path, reference):
    with start(tmp_path, "--work", "1") as process:
        wait_for(process, "training")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        out = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert "SIGTERM: finishing this chunk and saving" in out
    stopped_at = int(out.split("interrupted ")[1])
    assert checkpoint.steps(tmp_path)[-1] == stopped_at < ITERATIONS
    assert kill_until_done(tmp_path, []) == 0
    assert_equal_to_an_uninterrupted_run(tmp_path, reference)


def test_a_signal_while_compiling_leaves_a_checkpoint_of_the_start(tmp_path):
    with start(tmp_path) as process:
        wait_for(process, "compiling")
        process.send_signal(signal.SIGINT)
        out = process.communicate()[0]
    assert process.returncode == 0
    assert "interrupted 0" in out
    assert checkpoint.steps(tmp_path) == [0]


def test_a_second_signal_ends_at_once_even_in_a_long_chunk(tmp_path):
    with start(tmp_path, "--work", "10000000") as process:
        wait_for(process, "training")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert wait_for(process, "SIGTERM")
        before = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - before < 2


def test_a_second_process_exits_at_once_and_names_the_owner(tmp_path):
    with start(tmp_path, "--work", "10000000") as owner:
        wait_for(owner, "training")
        second = start(tmp_path)
        out = second.communicate()[0]
        assert second.returncode == 3
        assert f"is in use by process {owner.pid} on host" in out
        assert lock.owner(tmp_path)["pid"] == owner.pid
        owner.kill()
    with train.open_run(tmp_path):  # the lock died with its owner
        assert lock.owner(tmp_path)["pid"] == os.getpid()
    assert lock.owner(tmp_path) == {}
