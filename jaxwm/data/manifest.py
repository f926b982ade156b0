"""SHA-256 sums beside a dataset: damage is found and named when it is loaded."""

import hashlib
import json
import pathlib

import numpy as np

from jaxwm.data import hdf5, layout

NAME = "manifest.json"
_FILES = (layout.DATA, layout.META)
_SCHEMA = 1


def file_sum(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def episode_sum(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of an episode's arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write(folder: pathlib.Path, episodes: list[dict]) -> None:
    """Writes the manifest of a folder's two files and of the episodes in its data."""
    content = {
        "schema": _SCHEMA,
        "files": {
            name: {
                "sha256": file_sum(folder / name),
                "bytes": (folder / name).stat().st_size,
            }
            for name in _FILES
        },
        "episodes": episodes,  # [{"rows": T, "sha256": ...}], in order
    }
    (folder / NAME).write_text(json.dumps(content, indent=1))


def read(folder: pathlib.Path) -> dict | None:
    """The manifest of a folder, or None where there is none (data of others).

    Raises:
        ValueError: if it cannot be understood, naming the file.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != _SCHEMA:
            raise ValueError(
                f"schema {content['schema']}, this version reads {_SCHEMA}"
            )
        [(content["files"][f]["sha256"], content["files"][f]["bytes"]) for f in _FILES]
        rows = [(entry["sha256"], entry["rows"]) for entry in content["episodes"]]
        if not all(isinstance(num, int) and num >= 0 for _, num in rows):
            raise ValueError("an episode without a number of rows")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it, or "
            "delete it to read the data unverified."
        ) from error
    return content


def verify(folder: pathlib.Path) -> bool | None:
    """True if the files agree with their manifest, None if they have none.

    Raises:
        ValueError: naming the damaged files and episodes.
    """
    content = read(folder)
    if content is None:
        return None
    wrong = _damaged_files(folder, content)
    if not wrong:
        return True
    found = [f"{folder / name}: {what}" for name, what in wrong.items()]
    if layout.DATA in wrong:
        found += _damaged_episodes(folder / layout.DATA, content["episodes"])
    raise ValueError(
        f"dataset is damaged: {'; '.join(found)}. Restore it from a copy; "
        "verify=False reads it as it is."
    )


def _damaged_files(folder: pathlib.Path, content: dict) -> dict[str, str]:
    """What is wrong with each file that differs from the manifest: {name: what}."""
    wrong = {}
    for name in _FILES:
        path, entry = folder / name, content["files"][name]
        if not path.exists():
            wrong[name] = "missing"
        elif path.stat().st_size != entry["bytes"]:
            wrong[name] = (
                f"{path.stat().st_size} bytes instead of {entry['bytes']} as in {NAME}"
            )
        elif file_sum(path) != entry["sha256"]:
            wrong[name] = f"its SHA-256 is not the one in {NAME}"
    return wrong


def _damaged_episodes(path, episodes) -> list[str]:
    """Which episodes, and which rows of the dataset, differ from the manifest."""
    found, start = [], 0
    try:
        with hdf5.open_file(path) as file:
            for i, entry in enumerate(episodes):
                stop = start + entry["rows"]
                try:
                    with hdf5.reading(f"episode {i}"):
                        group = hdf5.child(file, f"episode_{i}", f"episode {i}")
                        arrays = hdf5.all_arrays(group, f"episode {i}")
                    same = episode_sum(arrays) == entry["sha256"]
                except ValueError:
                    same = False
                if not same:
                    found.append(f"episode {i} (rows {start} to {stop - 1}) differs")
                start = stop
    except ValueError:
        return ["no episode of it can be read"]
    return found or ["no episode differs, the damage is in the file's bookkeeping"]
