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
    # One timed call, to its end; or several of them by name.
    call: Callable[[], object] | dict[str, Callable[[], object]]
    facts: dict  # what shows that it does the same: sizes, number of weights


def missing(*modules: str) -> str:
    """Why a row has no peer: "X: skipped, not installed", or "" if it has one."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)}: skipped, not installed" if absent else ""


class Process:
    """A peer in a child process: `with Process(module, config) as peer: peer(calls)`.

    `module` is run with `-m` and must call `serve`. Calling the object runs the peer
    that many times and returns the seconds a call that the child measured; `side(name)`
    is the same for one of several calls that a peer offers.

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

    def __call__(self, calls: int, what: str = "") -> float:
        self._child.stdin.write(f"{calls} {what}\n")
        self._child.stdin.flush()
        return self._read()["seconds"]

    def side(self, what: str) -> Callable[[int], float]:
        """A side of `measure.compare`: the peer's call of that name."""
        return lambda calls: self(calls, what)

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
    offered = ready.call if isinstance(ready.call, dict) else {"": ready.call}
    for call in offered.values():
        call()
    reply(ready=ready.name, facts=ready.facts)
    for line in sys.stdin:
        calls, _, what = line.strip().partition(" ")
        calls, call = int(calls), offered[what]
        start = time.perf_counter()
        for _ in range(calls):
            call()
        reply(seconds=(time.perf_counter() - start) / calls)
