"""Where the files of a Minari dataset are, and what its metadata.json promises."""

import json
import pathlib
from typing import Any

from jaxwm.data import hdf5

DATA, META = "main_data.hdf5", "metadata.json"


def folder_of(path) -> pathlib.Path:
    """The folder that holds main_data.hdf5."""
    path = pathlib.Path(path)
    for folder in (path / "data", path, path.parent):
        if (folder / DATA).is_file() and (folder != path.parent or path.name == DATA):
            return folder
    raise FileNotFoundError(
        f"no Minari dataset at {path}; expected {path / 'data' / DATA}."
    )


def metadata_of(folder: pathlib.Path) -> dict[str, Any]:
    """metadata.json, with the entries that reading relies on."""
    path = folder / META
    try:
        metadata = json.loads(path.read_bytes())
        counts = [metadata["total_episodes"], metadata["total_steps"]]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"total_episodes and total_steps are {counts}")
        for name in ("observation_space", "action_space"):
            space = metadata.get(name)  # a string of JSON, where it is stored at all
            metadata[name] = json.loads(space) if isinstance(space, str) else None
            if not isinstance(metadata[name], dict | None):
                raise ValueError(f"{name} is {space}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({type(error).__name__}: {error}); restore "
            "it from a copy."
        ) from error
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise ValueError(
            f"{path}: data_format must be hdf5, got {metadata['data_format']}; convert "
            "the dataset with minari."
        )
    return metadata


def check_totals(file, metadata, folder) -> None:
    """Compares the episodes in the file with what metadata.json promises."""
    want = metadata["total_episodes"]
    path = folder / DATA
    with hdf5.reading(str(path)):
        names = {name for name in file if name.startswith("episode_")}
        # Not all that were promised are gone through: there may be no end to them.
        counted = range(min(want, len(names) + 1))
        missing = next((i for i in counted if f"episode_{i}" not in names), None)
        if missing is not None or len(names) != want:
            what = "more than stated"
            if missing is not None:
                what = f"episode {missing} is missing"
            raise ValueError(
                f"{path} has {len(names)} episodes, {META} says {want} ({what}); the "
                "file is incomplete or belongs to another dataset."
            )
        steps = 0
        for i in range(want):
            where = f"{path}, episode {i}"
            steps += hdf5.num_rows(hdf5.child(file, f"episode_{i}", where), where)
    if steps != metadata["total_steps"]:
        raise ValueError(
            f"{path} has {steps} rows, {META} says {metadata['total_steps']}; the "
            "file is incomplete or belongs to another dataset."
        )
