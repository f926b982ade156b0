"""The manifest of a checkpoint: what lies in it and the digest of every byte.

Orbax reads flipped bits in array data without an error, so each checkpoint carries
its own list: path, size and SHA-256 of every file, and path, shape, dtype and SHA-256
of every array. It is written last; a directory without a sound one is no checkpoint.
"""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from jaxwm.train import durable
from jaxwm.train.errors import CheckpointError, ConfigError

NAME = "manifest.json"
FORMAT = 1


def digest_array(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(memoryview(flat.view(np.uint8))).hexdigest()


def digest_file(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(root: pathlib.Path, body: dict[str, Any]) -> None:
    """Lists all files under `root` and writes the manifest beside them, sealed.

    Args:
        root: the checkpoint's directory, finished but for the manifest.
        body: what else to keep; plain JSON.

    Raises:
        CheckpointError: where `body` is not plain JSON.
    """
    files = [
        {
            "path": path.relative_to(root).as_posix(),
            "size": path.stat().st_size,
            "sha256": digest_file(path),
        }
        for path in sorted(root.rglob("*"))
        if path.is_file()
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
    if body["format"] > FORMAT:
        raise ConfigError(
            f"{root} has format {body['format']}, this version of jaxwm reads up to "
            f"{FORMAT}; update jaxwm."
        )
    return body


def check_files(root: pathlib.Path, body: dict[str, Any]) -> None:
    """Compares every listed file with its size and digest.

    Raises:
        CheckpointError: naming the files that differ.
    """
    wrong = []
    for entry in body["files"]:
        path = root / entry["path"]
        if not path.is_file():
            wrong.append(f"{entry['path']} is missing")
        elif path.stat().st_size != entry["size"]:
            size = path.stat().st_size
            wrong.append(f"{entry['path']} has {size} bytes, not {entry['size']}")
        elif digest_file(path) != entry["sha256"]:
            wrong.append(f"{entry['path']} differs from its digest")
    if wrong:
        raise CheckpointError("; ".join(wrong))


def _seal(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
