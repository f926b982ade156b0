"""Saves checkpoints in processes that are killed at chosen moments.

python -m tests.train.saver     reads requests as JSON, one a line, and answers likewise

    {"directory": ..., "steps": [3], "keep": 2, "stop": 7}    killed at its 7th event
    {"directory": ..., "steps": [3, 4, ...], "delay": 0.2}    killed after 0.2 s

Events are the calls that change the disk, each before, in the middle (of a write) and
after. Every request is a fork of this process, which has imported everything and
started nothing: it costs little, and no thread is lost. Answers: `saved`, the steps
whose `save` returned; `event`, where it was killed; `killed`.
"""

import io
import json
import os
import pathlib
import select
import signal
import sys
import time

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401  before forking

from jaxwm.train import checkpoint

SIZE = 200_000  # numbers in the large array


def state_of(step: int) -> dict[str, np.ndarray]:
    """What is saved as a step: every number tells which."""
    return {"large": np.full(SIZE, step, np.float64), "small": np.float32([step])}


class Killer:
    """Counts events and ends the process at one of them."""

    def __init__(self, stop: int | None, said: int):
        self.remaining, self.said = stop, said

    def at(self, event: str) -> None:
        if self.remaining is None:
            return
        if self.remaining == 0:
            os.write(self.said, f"event {event}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self.remaining -= 1

    def watch(self, function):
        name = function.__name__

        def call(path, *args, **kwargs):
            self.at(f"before {name} {path}")
            result = function(path, *args, **kwargs)
            self.at(f"after {name} {path}")
            return result

        return call


class Watched(io.FileIO):
    """A file for writing whose writes are events."""

    killer: Killer

    def write(self, data):
        self.killer.at(f"before write {self.name}")
        half = len(data) // 2
        super().write(data[:half])
        self.killer.at(f"amid write {self.name}")
        super().write(data[half:])
        self.killer.at(f"after write {self.name}")
        return len(data)


def save(request: dict, said: int) -> None:
    """What the child does."""
    killer = Killer(request.get("stop"), said)
    Watched.killer = killer
    plain = pathlib.Path.open

    def opened(path, mode="r", *args, **kwargs):
        return (
            Watched(path, "w") if mode == "wb" else plain(path, mode, *args, **kwargs)
        )

    if "stop" in request:
        pathlib.Path.open = opened  # type: ignore[method-assign]
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, killer.watch(getattr(os, name)))
    jax.devices()  # starting them takes longer than a save
    os.write(said, b"began\n")
    for step in request["steps"]:
        checkpoint.save(
            request["directory"], step, state_of(step), config={}, keep=request["keep"]
        )
        os.write(said, f"saved {step}\n".encode())


def serve(request: dict) -> dict:
    """One request: forks, kills if asked to, and tells what came of it."""
    heard, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            save(request, said)
        finally:
            os._exit(0)
    os.close(said)
    text = b""
    if "delay" in request:
        select.select([heard], [], [], 60)
        time.sleep(request["delay"])
        os.kill(pid, signal.SIGKILL)
    while part := os.read(heard, 1 << 16):
        text += part
    os.close(heard)
    status = os.waitpid(pid, 0)[1]
    lines = text.decode().splitlines()
    words = [line.split(" ", 1) for line in lines]
    return {
        "saved": [int(rest[0]) for word, *rest in words if word == "saved"],
        "event": next((rest[0] for word, *rest in words if word == "event"), None),
        "killed": os.WIFSIGNALED(status),
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
