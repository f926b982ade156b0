"""`jaxwm launch`: several processes on this machine, started again when one dies."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from jaxwm.train.errors import RunError

_GRACE = 20.0  # seconds between asking processes to end and ending them
_USAGE = (2, 3)  # exit statuses that another start would only repeat


def launch(arguments: list[str]) -> int:
    """Runs `jaxwm train ...` as several processes that work on one run."""
    own, command = _split(arguments)
    parser = argparse.ArgumentParser(
        "jaxwm launch",
        usage="jaxwm launch [options] -- train NAME ... (or: resume RUN)",
        description="Several processes of one run on this machine. When one dies all "
        "are started again; the run goes on from its last checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=2, help="how many")
    parser.add_argument("--restarts", type=int, default=10, help="at most")
    options = parser.parse_args(own)
    if options.processes < 1 or options.restarts < 0:
        parser.error("--processes must be at least 1 and --restarts at least 0")
    if not command or command[0] not in ("train", "resume"):
        parser.error("what to launch stands behind --, and is train or resume")
    command = [sys.executable, "-m", "jaxwm", *command, "--distributed"]
    received = []  # signals; the second one ends everything at once
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    restarts = 0
    while True:
        codes = _together(command, options.processes, received)
        if not any(codes):
            return 0
        bad = {i: code for i, code in enumerate(codes) if code}
        words = ", ".join(f"{i} with {code}" for i, code in bad.items())
        if received or set(codes) & set(_USAGE) or restarts >= options.restarts:
            raise RunError(f"processes ended: {words}; restarted {restarts} times.")
        restarts += 1
        _note(f"processes ended: {words}; start {restarts + 1}")


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Own options and what stands behind `--`."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _together(command: list[str], num: int, received: list[int]) -> list[int]:
    """Starts all, waits until all have ended; one failure ends the others."""
    address = f"127.0.0.1:{_free_port()}"
    started = [_start(command, address, num, i) for i in range(num)]
    processes = [process for process, _ in started]
    asked = None  # when the processes were asked to end
    try:
        while alive := [process for process in processes if process.poll() is None]:
            if any(process.poll() for process in processes):
                break  # who meets a dead process cannot save any more
            if len(received) > 1:
                break
            if received and asked is None:
                asked = time.monotonic()
                for process in alive:
                    process.send_signal(signal.SIGTERM)
            waits = len(alive) == num or asked is None
            if not waits and time.monotonic() - asked > _GRACE:
                break  # the others have long ended
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for process, thread in started:
            process.wait()
            thread.join()
    return [process.returncode for process in processes]


def _start(command: list[str], address: str, num: int, index: int):
    """One process, and the thread that passes its words on."""
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(num),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=None if index == 0 else subprocess.PIPE,
        stderr=None if index == 0 else subprocess.STDOUT,
        text=True,
        # A terminal's Ctrl-C reaches this process alone, which passes it on.
        start_new_session=True,
    )

    def pass_on():
        for line in process.stdout or ():
            print(f"[{index}] {line}", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    return process, thread


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _note(text: str) -> None:
    print(f"jaxwm launch: {text}", file=sys.stderr, flush=True)
