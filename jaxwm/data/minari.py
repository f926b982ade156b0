"""Datasets in Minari's HDF5 layout: load, save, stream by episode, inspect.

    <dataset>/data/main_data.hdf5   groups episode_0, episode_1 ... each with
        observations [T + 1, ...], actions, rewards, terminations, truncations [T, ...]
        and infos; attributes id, total_steps
    <dataset>/data/metadata.json    spaces, totals, names
    <dataset>/data/manifest.json    ours: SHA-256 of both files and of each episode

Neither gymnasium nor minari is needed, only h5py (extra `data`); minari reads what is
saved here. `extras["physics"]` and `["params"]` are stored in infos, T rows: the state
before each step. Floating-point data are loaded as float32, integers as int32 (images
stay uint8). Links that lead out of the file are refused.

Memory: reading and writing hold one episode at a time; `load` holds its result as well.

Source: Minari 0.5 documentation, "Dataset standards" (Farama Foundation).
"""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxwm.core import tree
from jaxwm.data import dataset, hdf5, layout, manifest, spaces
from jaxwm.types import EnvSpec, PyTree, Transition

_MINARI_VERSION = "0.5.4"  # whose layout this is
_EXTRAS = ("physics", "params")


def load(
    path: str | os.PathLike,
    *,
    extras: tuple[str, ...] = _EXTRAS,
    like: PyTree | None = None,
    max_bytes: int = 4 * 2**30,
    verify: bool = True,
) -> Transition:
    """A whole dataset as rows `[M, ...]`, ready for `windows` or `to_replay`.

    Args:
        path: the dataset's folder, its `data` folder, or its main_data.hdf5.
        extras: infos to take over, where present.
        like: extras of an environment's transitions; gives the loaded ones the same
            containers (named tuples are read as dicts otherwise).
        max_bytes: most memory the rows may take, bytes.
        verify: whether to compare the files with their manifest, if they have one.

    Raises:
        ValueError: naming file, episode and row: if data are damaged, incomplete, not
            finite, or larger than `max_bytes`.
        FileNotFoundError: if there is no dataset.
        ImportError: without h5py.
    """
    episodes = read(path, extras=extras, like=like, max_bytes=max_bytes, verify=verify)
    total = layout.metadata_of(layout.folder_of(path))["total_steps"]
    rows, filled = None, 0
    for episode in episodes:
        num = len(episode.reward)
        if rows is None:
            needed = tree.num_bytes(episode) / num * total
            if needed > max_bytes:
                raise ValueError(
                    f"{path} needs {needed / 2**30:.2f} GiB of memory for {total} "
                    f"rows, max_bytes allows {max_bytes / 2**30:.2f}; raise it, or go "
                    "through the episodes one by one with minari.read."
                )
            rows = jax.tree.map(
                lambda x: np.empty((total, *x.shape[1:]), x.dtype), episode
            )
        jax.tree.map(
            lambda whole, part, a=filled, b=filled + num: whole.__setitem__(
                slice(a, b), part
            ),
            rows,
            episode,
        )
        filled += num
    if rows is None:
        raise ValueError(f"{path} has no episodes.")
    return rows


def read(
    path: str | os.PathLike,
    *,
    extras: tuple[str, ...] = _EXTRAS,
    like: PyTree | None = None,
    max_bytes: int = 4 * 2**30,
    verify: bool = True,
) -> Iterator[Transition]:
    """The episodes of a dataset one by one, `[T, ...]`; arguments as in `load`.

    Only one episode is in memory at a time, `max_bytes` at most. An episode whose last
    row is neither terminal nor truncated is marked truncated.
    """
    folder = layout.folder_of(path)
    metadata = layout.metadata_of(folder)
    if verify:
        manifest.verify(folder)
    with hdf5.open_file(folder / layout.DATA) as file:
        layout.check_totals(file, metadata, folder)
        for i in range(metadata["total_episodes"]):
            where = f"{folder / layout.DATA}, episode {i}"
            with hdf5.reading(where):
                episode = hdf5.read_episode(
                    hdf5.child(file, f"episode_{i}", where),
                    where,
                    obs_space=metadata["observation_space"],
                    action_space=metadata["action_space"],
                    jpeg=bool(metadata.get("jpeg_encoding", True)),
                    extras=extras,
                    like=like,
                    max_bytes=max_bytes,
                )
            try:
                episode = dataset.checked_episode(episode, i)
            except ValueError as error:
                raise ValueError(f"{folder / layout.DATA}, {error}") from None
            yield dataset.end_episode(episode)


def save(
    path: str | os.PathLike,
    episodes: Transition | Iterable[Transition],
    *,
    spec: EnvSpec | None = None,
    dataset_id: str | None = None,
    description: str = "",
) -> pathlib.Path:
    """Writes a new dataset; all of it appears at once, or nothing does.

    Args:
        path: folder that does not exist yet. For minari to find it by name it is
            `<MINARI_DATASETS_PATH>/<dataset_id>`.
        episodes: rows of a dataset, or episodes `[T, ...]` one by one; each is written
            before the next is asked for.
        spec: gives the bounds of actions; needed for discrete ones.
        dataset_id: like "pendulum/random-v0"; default the folder's name, with "-v0"
            unless it ends in a version.
        description: for people.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder exists, the id is malformed, or an episode is not
            consistent (naming it).
    """
    h5py = hdf5.h5py()
    path = pathlib.Path(path)
    dataset_id = _dataset_id(dataset_id, path.name)
    if path.exists():
        raise ValueError(f"path must not exist yet, {path} does; choose another name.")
    if isinstance(episodes, Transition):
        episodes = dataset.split_episodes(episodes)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    folder = unfinished / "data"
    folder.mkdir(parents=True)
    try:
        sums, total, first = [], 0, None
        with h5py.File(folder / layout.DATA, "w", track_order=True) as file:
            for i, episode in enumerate(episodes):
                episode = dataset.checked_episode(episode, i)
                first = first or jax.tree.map(lambda x: x[0], episode)
                arrays = hdf5.episode_arrays(episode, i)
                num = len(episode.reward)
                group = file.create_group(f"episode_{i}")
                group.attrs.update({"id": i, "total_steps": num})
                group.create_group("infos")
                for name, array in arrays.items():
                    group.create_dataset(name, data=array)
                sums.append({"rows": num, "sha256": manifest.episode_sum(arrays)})
                total += num
        if first is None:
            raise ValueError("episodes must hold at least one episode, got none.")
        metadata = {
            "dataset_id": dataset_id,
            "minari_version": _MINARI_VERSION,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "total_episodes": len(sums),
            "total_steps": total,
            "dataset_size": round((folder / layout.DATA).stat().st_size / 1e6, 1),  # MB
            "observation_space": json.dumps(spaces.space_of(first.obs)),
            "action_space": json.dumps(_action_space(first.action, spec)),
            "description": description,
        }
        (folder / layout.META).write_text(json.dumps(metadata))
        manifest.write(folder, sums)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def inspect(path: str | os.PathLike, *, verify: bool = True) -> dict[str, Any]:
    """What a dataset holds, as plain numbers and strings; observations are not read.

    Returns:
        name, file, bytes, episodes, steps, terminated and truncated episodes, lengths
        and undiscounted returns (least, mean, most), observation and action spaces,
        names of infos, and `verified`: True, or None where there is no manifest or
        `verify` is off.

    Raises:
        ValueError: as `read`.
    """
    folder = layout.folder_of(path)
    metadata = layout.metadata_of(folder)
    verified = manifest.verify(folder) if verify else None
    lengths, returns, ends, infos = [], [], [], set()
    with hdf5.open_file(folder / layout.DATA) as file:
        layout.check_totals(file, metadata, folder)
        for i in range(metadata["total_episodes"]):
            where = f"{folder / layout.DATA}, episode {i}"
            with hdf5.reading(where):
                group = hdf5.child(file, f"episode_{i}", where)
                reward, terminal, truncated = hdf5.outcomes(group, where)
                if "infos" in group:
                    infos |= set(hdf5.child(group, "infos", where))
            bad = dataset.first_bad_row(reward)
            if bad is not None:
                raise ValueError(f"{where}, row {bad}: reward is not finite.")
            lengths.append(len(reward))
            returns.append(float(np.sum(reward, dtype=np.float64)))
            ends.append((bool(terminal[-1:].any()), bool(truncated[-1:].any())))
    span = lambda x: {"min": min(x), "mean": float(np.mean(x)), "max": max(x)}
    return {
        "name": metadata.get("dataset_id", ""),
        "file": str(folder / layout.DATA),
        "bytes": (folder / layout.DATA).stat().st_size,
        "episodes": len(lengths),
        "steps": sum(lengths),
        "terminated": sum(end[0] for end in ends),
        "truncated": sum(end[1] and not end[0] for end in ends),
        "length": span(lengths) if lengths else None,
        "return": span(returns) if returns else None,
        "observation_space": metadata["observation_space"],
        "action_space": metadata["action_space"],
        "infos": sorted(infos),
        "verified": verified,
    }


def _dataset_id(dataset_id, folder_name) -> str:
    """The id, checked: (namespace/)name-v0."""
    if dataset_id is None:
        dataset_id = folder_name
        if not re.search(r"-v\d+$", dataset_id):
            dataset_id += "-v0"
    if not re.fullmatch(r"([-\w][-\w/]*[-\w]+/)?[-\w]+-v\d+", dataset_id):
        raise ValueError(
            "dataset_id must look like namespace/name-v0 (letters, digits, - and _), "
            f"got {dataset_id!r}."
        )
    return dataset_id


def _action_space(example, spec) -> dict[str, Any]:
    if spec is not None:
        return spaces.action_space(spec.action, np.asarray(example).dtype)
    if np.issubdtype(np.asarray(example).dtype, np.integer):
        raise ValueError(
            "spec must be given for integer actions; their number is not in the data."
        )
    return spaces.space_of(example)
