"""Several devices and several processes give what one gives, also when some die."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxwm.train import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
SYSTEMS = ["polygrad", "ppo", "grokking"]
HEARTBEAT = 10  # of tests.train.together


def environment(devices=1, **more):
    flags = f"--xla_force_host_platform_device_count={devices}"
    cache = str(ROOT / ".cache" / "jax")
    return {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": cache,
        **more,
    }


def start(environment, *arguments):
    command = [sys.executable, "-m", "tests.train.together", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(*arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            environment(
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(i),
            ),
            *arguments,
        )
        for i in range(2)
    ]


def finish(*processes):
    for process in processes:
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, out


def params_of(file):
    with np.load(file) as arrays:
        return {
            name: arrays[name].astype(float)
            for name in arrays.files
            if ".params" in name and "env" not in name and "extras" not in name
        }


def distance(a, b):
    """Relative distance of all parameters together."""
    a, b = params_of(a), params_of(b)
    assert a and a.keys() == b.keys()
    apart = sum(np.sum((a[name] - b[name]) ** 2) for name in a)
    return np.sqrt(apart / sum(np.sum(x**2) for x in a.values()))


def wait_for_checkpoint(directory):
    for _ in range(6000):
        if checkpoint.steps(directory):
            return
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint in {directory}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("system", SYSTEMS)
def test_equal_batches_give_equal_parameters_on_any_number_of_devices(system, tmp_path):
    for devices in (1, 2, 4, 8):
        finish(start(environment(devices), system, tmp_path / f"{devices}.npz"))
        if devices > 1:
            apart = distance(tmp_path / "1.npz", tmp_path / f"{devices}.npz")
            assert apart < 1e-6, devices


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_give_the_bits_of_two_devices(system, tmp_path):
    finish(start(environment(2), system, tmp_path / "devices.npz"))
    finish(*start_two(system, tmp_path / "processes.npz"))
    with (
        np.load(tmp_path / "devices.npz") as a,
        np.load(tmp_path / "processes.npz") as b,
    ):
        assert a.files == b.files
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("killed", "how"), [(0, "SIGKILL"), (1, "SIGKILL"), (1, "SIGSTOP")]
)
def test_when_one_dies_or_halts_the_other_ends_and_both_go_on(killed, how, tmp_path):
    finish(start(environment(2), "ppo", tmp_path / "whole.npz", "--iterations", 400))
    arguments = ["ppo", tmp_path / "out.npz", "--run", tmp_path / "run"]
    arguments += ["--iterations", 400]
    pair = start_two(*arguments)
    wait_for_checkpoint(tmp_path / "run")
    pair[killed].send_signal(getattr(signal, how))
    began = time.monotonic()
    out = pair[1 - killed].communicate(timeout=120)[0]
    took = time.monotonic() - began
    assert pair[1 - killed].returncode != 0, out
    pair[killed].kill()
    pair[killed].communicate()
    assert took < HEARTBEAT + 5
    assert checkpoint.steps(tmp_path / "run")[-1] < 400
    finish(*start_two(*arguments))
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "out.npz") as b:
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_checkpoints_move_between_one_two_and_four_devices(tmp_path):
    finish(start(environment(1), "ppo", tmp_path / "whole.npz"))
    for devices, iterations in ((1, 5), (2, 10), (4, 15), (1, 20)):
        options = ["--run", tmp_path / "run", "--iterations", iterations]
        finish(start(environment(devices), "ppo", tmp_path / "out.npz", *options))
    assert distance(tmp_path / "whole.npz", tmp_path / "out.npz") < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_launch_starts_all_again_when_one_is_killed(tmp_path):
    run = tmp_path / "run"
    train = "train polygrad --preset tiny --env pendulum --engine jax --num_envs 8"
    train += " --env_steps 4000 --save_every 0 --no_report"
    command = [sys.executable, "-m", "jaxwm", "launch", "--", *train.split()]
    with subprocess.Popen(
        [*command, "--out", str(run)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launched:
        wait_for_checkpoint(run)
        children = pathlib.Path(f"/proc/{launched.pid}/task/{launched.pid}/children")
        victim = int(children.read_text().split()[1])
        os.kill(victim, signal.SIGKILL)
        out = launched.communicate(timeout=600)[0]
    assert launched.returncode == 0, out
    assert re.search(r"processes ended: .*1 with -9.*; start 2", out)
    assert "resuming" in out
    assert "trained (IQM)" in out
