"""The manifest of a checkpoint: what lies in it and the digest of every byte.

Orbax reads flipped bits in array data without an error, so each checkpoint carries
its own list: path, size and SHA-256 of every file, and path, shape, dtype and SHA-256
of every array. It is written last; a directory without a sound one is no checkpoint.
"""

import concurrent.futures
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from jaxwm.train import durable
from jaxwm.train.errors import CheckpointError, ConfigError

T = TypeVar("T")

NAME = "manifest.json"
_THREADS = 4
FORMAT = 2  # 1: every array by itself


def digest_array(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(memoryview(flat.view(np.uint8))).hexdigest()


def digest_file(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_all(digest: Callable[[T], str], things: Iterable[T]) -> list[str]:
    """Digests of many arrays or files, in a few threads: hashing leaves Python free."""
    things = list(things)
    found = [""] * len(things)

    def every(first: int):
        for i in range(first, len(things), _THREADS):
            found[i] = digest(things[i])

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(every, range(min(_THREADS, len(things)))))
    return found


def write(root: pathlib.Path, body: dict[str, Any]) -> None:
    """Lists all files under `root` and writes the manifest beside them, sealed.

    Args:
        root: the checkpoint's directory, finished but for the manifest.
        body: what else to keep; plain JSON.

    Raises:
        CheckpointError: where `body` is not plain JSON.
    """
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    files = [
        {
            "path": path.relative_to(root).as_posix(),
            "size": path.stat().st_size,
            "sha256": digest,
        }
        for path, digest in zip(paths, digest_all(digest_file, paths), strict=True)
    ]
    body = {"format": FORMAT, **body, "files": files}
    try:
        sealed = {**body, "seal": _seal(body)}
        text = json.dumps(sealed, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the configuration saved with a checkpoint must be plain JSON: {error}."
        ) from error
    durable.write_text(root / NAME, text + "\n")


def read(root: pathlib.Path) -> dict[str, Any]:
    """Reads a manifest and checks its own seal, not yet the files it lists.

    Raises:
        CheckpointError: naming what is wrong: missing, unreadable or changed.
        ConfigError: where a newer version of jaxwm wrote it.
    """
    path = root / NAME
    if not path.is_file():
        raise CheckpointError(f"{NAME} is missing (an unfinished or stray directory)")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        seal = body.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{NAME} cannot be read: {error!r}") from error
    if seal != _seal(body):
        raise CheckpointError(f"{NAME} was changed after it was written")
    if isinstance(body.get("format"), int) and body["format"] > FORMAT:
        raise ConfigError(
            f"{root} has format {body['format']}, this version of jaxwm reads up to "
            f"{FORMAT}; update jaxwm."
        )
    try:
        _check_form(body)
    except (KeyError, TypeError, ValueError) as error:
        # A seal is no signature: whoever forges a manifest can make one as well.
        raise CheckpointError(f"{NAME} is malformed: {error!r}") from error
    return body


def check_files(
    root: pathlib.Path, body: dict[str, Any], *, largest: float = math.inf
) -> None:
    """Compares every listed file with its size, and with its digest.

    Args:
        root: the checkpoint's directory.
        body: of its manifest.
        largest: size of the largest files whose digests are compared, bytes.

    Raises:
        CheckpointError: naming the files that differ, lead out of `root`, or are links.
    """
    wrong, whole = _links(root), []
    for entry in body["files"]:
        name = pathlib.PurePosixPath(entry["path"])
        path = root / name
        if name.is_absolute() or ".." in name.parts:
            wrong.append(f"{name} lies outside of it")
        elif not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"]:
            size = path.stat().st_size
            wrong.append(f"{name} has {size} bytes, not {entry['size']}")
        elif entry["size"] <= largest:
            whole.append((path, entry))
    if not wrong:  # a file behind a link is not even read
        digests = digest_all(digest_file, (path for path, _ in whole))
        wrong = [
            f"{entry['path']} differs from its digest"
            for digest, (_, entry) in zip(digests, whole, strict=True)
            if digest != entry["sha256"]
        ]
    if wrong:
        raise CheckpointError("; ".join(wrong))


def _check_form(body: dict[str, Any]) -> None:
    """Raises where a manifest is not as `write` and `checkpoint.save` make them."""
    if not isinstance(body["config"], dict):
        raise TypeError("config must be an object")
    for entry in body["files"]:
        _check_types(entry, path=str, size=int, sha256=str)
    for entry in body["arrays"]:
        _check_types(entry, path=str, dtype=str, sha256=str)
        _check_types({"key": "", "start": 0, **entry}, key=str, start=int)
        if np.dtype(entry["dtype"]).kind not in "biufcV":
            raise TypeError(f"{entry['path']} is {entry['dtype']}, no number")
        for name in ("shape", "stored_shape"):
            sizes = entry[name]
            if not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError(f"{name} of {entry['path']} is {sizes}")
        pairs = zip(entry["stored_shape"], entry["shape"], strict=True)
        if any(stored > size for stored, size in pairs):
            raise ValueError(f"{entry['path']} is stored larger than it is")


def _check_types(entry: dict[str, Any], **types: type) -> None:
    for name, kind in types.items():
        if type(entry[name]) is not kind:
            raise TypeError(f"{name} must be {kind.__name__}, got {entry[name]!r}")


def _links(root: pathlib.Path) -> list[str]:
    """Names below `root` that are links: nothing else may be read through them."""
    found, folders = [root.name] if root.is_symlink() else [], [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if entry.is_symlink():
                    found.append(name)
                elif entry.is_dir():
                    folders.append((pathlib.Path(entry.path), f"{name}/"))
    return [f"{name} is a link, which is not followed" for name in found]


def _seal(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
