"""One process per run directory.

The kernel holds the lock (`flock` on `run.lock`), so it ends with its process, however
that ends; the file's text only says who it is. Where the file system knows no flock,
the text decides: an owner on this host and boot that no longer lives is stale.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator

from jaxwm.train.errors import RunLockedError

NAME = "run.lock"
_TRIES = 20


@contextlib.contextmanager
def hold(directory: str | pathlib.Path) -> Iterator[None]:
    """Owns a run directory for the length of a `with` block.

    Raises:
        RunLockedError: at once, naming the owner's process and host.
        OSError: where the directory cannot be written.
    """
    path = pathlib.Path(directory) / NAME
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(handle, path)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_me()).encode(), 0)
        yield
        os.ftruncate(handle, 0)  # the file stays: deleting it would race
    finally:
        os.close(handle)  # ends the lock


def refuse_if_held(directory: str | pathlib.Path) -> None:
    """Raises where another process owns a run directory, as `hold` would later.

    For callers that would load much before they come to `hold`.

    Raises:
        RunLockedError: naming the owner's process and host.
    """
    path = pathlib.Path(directory) / NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # no run yet, or `hold` will say what is wrong
    try:
        _acquire(handle, path)
    finally:
        os.close(handle)


def owner(directory: str | pathlib.Path) -> dict:
    """Who wrote the lock last: pid, host and boot; empty when nobody did."""
    try:
        found = json.loads((pathlib.Path(directory) / NAME).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _acquire(handle: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except OSError as error:
        unknown = error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
        if not unknown and not isinstance(error, BlockingIOError):
            raise
    found = owner(path.parent)
    if unknown and (not found or _is_stale(found)):
        return
    for _ in range(_TRIES):
        if found and not _is_stale(found):
            break
        time.sleep(0.02)  # who holds it is about to write its name
        found = owner(path.parent)
    remedy = (
        f"if that process is gone, delete {path}"
        if unknown
        else "wait for it, stop it, or choose another --out"
    )
    raise RunLockedError(
        f"{path.parent} is in use by process {found.get('pid', '?')} on host "
        f"{found.get('host', '?')}; {remedy}."
    )


def _me() -> dict:
    return {"pid": os.getpid(), "host": platform.node(), "boot": _boot()}


def _boot() -> str:
    """Changes at every start of the machine; a pid means nothing across boots."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_stale(found: dict) -> bool:
    me = _me()
    if found.get("host") != me["host"]:
        return False  # cannot be known from here
    if found.get("boot") != me["boot"]:
        return True
    try:
        os.kill(int(found.get("pid", 0)), 0)
    except (ProcessLookupError, ValueError):
        return True
    except PermissionError:
        return False  # alive, another user's
    return False
