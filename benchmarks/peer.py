"""Peers: whether they are installed, and a process of their own for those not in JAX.

A peer in another process keeps its threads, memory and imports to itself. Parent and
child speak in lines of JSON; the child times itself, so the pipe is not measured.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple


class MissingError(Exception):
    """The peer cannot run here; its text is the reason."""


class Ready(NamedTuple):
    """A peer that can run."""

    name: str  # with its version
    call: Callable[[], object]  # one timed call, to its end
    facts: dict  # what shows that it does the same: sizes, number of weights


def missing(*modules: str) -> str:
    """Why a row has no peer: "X: skipped, not installed", or "" if it has one."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)}: skipped, not installed" if absent else ""


class Process:
    """A peer in a child process: `with Process(module, config) as peer: peer(calls)`.

    `module` is run with `-m` and must call `serve`. Calling the object runs the peer
    that many times and returns the seconds a call that the child measured.

    Raises:
        MissingError: if the peer says that it cannot run here.
        RuntimeError: if the child dies, with the end of what it wrote.
    """

    def __init__(self, module: str, config: dict):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.name, self.facts = "", {}

    def __enter__(self):
        try:
            reply = self._read()
            if "missing" in reply:
                raise MissingError(reply["missing"])
        except BaseException:
            self.__exit__()
            raise
        self.name, self.facts = reply["ready"], reply["facts"]
        return self

    def __exit__(self, *exception):
        self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._errors.close()

    def __call__(self, calls: int) -> float:
        self._child.stdin.write(f"{calls}\n")
        self._child.stdin.flush()
        return self._read()["seconds"]

    def _read(self) -> dict:
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._errors.seek(0)
            tail = self._errors.read()[-2000:]
            raise RuntimeError(f"the peer ended with {self._child.returncode}:\n{tail}")
        return json.loads(line)


def serve(setup: Callable[[dict], Ready]) -> None:
    """The child's side: answers how long `calls` calls take until stdin closes.

    Args:
        setup: of the config; raises `MissingError` if the peer cannot run here.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what the peer prints must not mix with the replies

    def reply(**words):
        replies.write(json.dumps(words) + "\n")
        replies.flush()

    try:
        ready = setup(json.loads(sys.argv[1]))
    except MissingError as reason:
        reply(missing=str(reason))
        return
    ready.call()
    reply(ready=ready.name, facts=ready.facts)
    for line in sys.stdin:
        calls = int(line)
        start = time.perf_counter()
        for _ in range(calls):
            ready.call()
        reply(seconds=(time.perf_counter() - start) / calls)
