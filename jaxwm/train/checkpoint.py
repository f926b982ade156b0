"""Checkpoints: pytrees of arrays that are whole on disk, or not there at all.

    directory/latest                       newest step, for people and scripts
    directory/checkpoints/<step>/state/    the arrays, written by orbax
    directory/checkpoints/<step>/manifest.json   digests; written last (manifest.py)

A step is written into a temporary directory, flushed, given its manifest and renamed.
Loading takes the newest step that verifies: the files that orbax parses byte for byte,
what they say of sizes, and then every array.
"""

import json
import math
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.train import durable, manifest
from jaxwm.train.errors import CheckpointError, TemplateError
from jaxwm.types import PyTree

FOLDER = "checkpoints"
LATEST = "latest"
_TRIM_BYTES = 1 << 16  # smaller arrays are stored whole
# Before reading, files up to this size are compared with their digests: among them are
# all that orbax parses. Larger ones hold numbers, and those are compared as arrays.
_PARSED_BYTES = 1 << 20
# Smaller arrays lie in one, one behind another: orbax takes 0.2 ms for each, and states
# have hundreds of leaves.
_PACKED_BYTES = 1 << 20
_PACK = "small"
_ZERO_BYTES = 1 << 28  # arrays of zeros may be missing in the files
_ALIGN = 64  # bytes; devices may then use the memory as it is


def save(
    directory: str | pathlib.Path,
    step: int,
    state: PyTree,
    *,
    config: dict[str, Any],
    keep: int = 2,
) -> pathlib.Path:
    """Writes one checkpoint and deletes all but the newest `keep`.

    Zeros at the far end of every axis of a large array are not stored, so a replay
    that is mostly unwritten costs what was written. Empty arrays are only listed.

    Args:
        directory: of the run; made if missing.
        step: names the checkpoint; each step is written once.
        state: pytree of arrays. Random keys do not belong in it: fold them from the
            seed and the step.
        config: plain JSON, returned by `restore`.
        keep: how many checkpoints stay, at least 1.

    Returns:
        The checkpoint's directory.

    Raises:
        CheckpointError: where it cannot be written (full or read-only disk); earlier
            checkpoints are untouched.
        ValueError: for leaves that are not arrays, typed keys, or a saved `step`.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1 checkpoint, got {keep}.")
    directory = pathlib.Path(directory)
    arrays = _host_arrays(state)
    if not any(array.size for array in arrays.values()):
        raise ValueError("a state without a single number cannot be saved.")
    folder = directory / FOLDER
    final = folder / str(int(step))
    if final.exists() and _problem(final) is None:
        raise ValueError(f"step {step} is already saved in {final}; steps are final.")
    temporary = folder / f"{durable.PREFIX}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.sweep(folder)
        _write(temporary, arrays, {"step": int(step), "config": config})
        if final.exists():  # broken: nothing can be read from it
            durable.remove_tree(final)
        temporary.rename(final)
        durable.sync(folder)
        durable.write_text(directory / LATEST, f"{FOLDER}/{final.name}\n")
        _retire(folder, final, keep)
    except Exception as error:
        # Whatever orbax raises for a failed write (it has no class of its own).
        try:
            durable.sweep(folder)
        except OSError as left:
            warnings.warn(f"{folder} could not be tidied: {left}", stacklevel=2)
        good = [old for old in steps(directory) if _problem(folder / str(old)) is None]
        last = f"the last good one is step {good[-1]}" if good else "there is none yet"
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {folder}: "
            f"{_first_line(error)}; {last}."
        ) from error
    return final


def restore(
    directory: str | pathlib.Path,
    template: PyTree,
    *,
    step: int | None = None,
    below: str = "",
) -> tuple[int, PyTree, dict[str, Any]]:
    """Reads the newest checkpoint that verifies, or the given `step`.

    Args:
        directory: of the run.
        template: state of the same structure, shapes and dtypes; its values are not
            used, so `jax.eval_shape` of the function that makes a state is enough.
        step: a particular checkpoint instead of the newest.
        below: path of a part, e.g. "learner/params": `template` is then of that part
            alone. Everything is verified all the same.

    Returns:
        `(step, state, config)`; the state's leaves are numpy arrays.

    Raises:
        CheckpointError: where none verifies, listing what is wrong with each.
        TemplateError: where a sound checkpoint holds another tree, naming the paths.
    """
    directory = pathlib.Path(directory)
    names = steps(directory) if step is None else [step]
    wrong = []
    for name in reversed(names):
        root = directory / FOLDER / str(name)
        try:
            body = manifest.read(root)
            manifest.check_files(root, body, largest=_PARSED_BYTES)
            state = _read(root, body, template, below)
        except CheckpointError as error:
            wrong.append(f"step {name}: {_problem(root, deep=True) or error}")
            continue
        if wrong:
            warnings.warn(
                f"{directory}: fell back to step {name}; " + "; ".join(wrong),
                stacklevel=2,
            )
        return name, state, body["config"]
    listed = "".join(f"\n  {line}" for line in wrong) or " none was saved"
    raise CheckpointError(f"no readable checkpoint in {directory / FOLDER}:{listed}")


def steps(directory: str | pathlib.Path) -> list[int]:
    """Steps with a directory, ascending by number (not by date); not yet verified."""
    folder = pathlib.Path(directory) / FOLDER
    paths = folder.iterdir() if folder.is_dir() else ()
    names = {path.name for path in paths if path.is_dir()}
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def tidy(directory: str | pathlib.Path) -> list[str]:
    """Deletes unfinished files and sets aside broken steps as `<step>.broken`.

    For the owner of the run's lock, before it goes on. Returns what was done, one
    line each.
    """
    directory = pathlib.Path(directory)
    folder = directory / FOLDER
    done = [f"deleted unfinished {name}" for name in durable.sweep(folder)]
    done += [f"deleted unfinished {name}" for name in durable.sweep(directory)]
    for step in steps(directory):
        path = folder / str(step)
        if problem := _problem(path, deep=True):
            aside = path.with_name(f"{step}.broken")
            if aside.exists():
                durable.remove_tree(aside)
            path.rename(aside)
            done.append(f"set aside step {step} as {aside.name}: {problem}")
    return done


def _host_arrays(state: PyTree) -> dict[str, np.ndarray]:
    """Leaves by path, on the host."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = _name(path)
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise ValueError(
                f"{name} is a {type(leaf).__name__}; checkpoints hold arrays only: "
                "use jnp.asarray, or keep it in the config."
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"{name} is a random key; checkpoints hold none: derive it with "
                "fold_in from the seed and the step."
            )
        if leaf.dtype == object:
            raise ValueError(f"{name} holds Python objects; checkpoints hold numbers.")
        if name in arrays:
            raise ValueError(f"two leaves of the state are both called {name}.")
        arrays[name] = np.asarray(leaf)
    return arrays


def _write(root: pathlib.Path, arrays: dict[str, np.ndarray], body: dict) -> None:
    """Writes state and manifest into a fresh directory and flushes both."""
    entries = []
    parts = [_trim(array) for array in arrays.values()]
    digests = manifest.digest_all(manifest.digest_array, parts)
    for (name, array), part, digest in zip(arrays.items(), parts, digests, strict=True):
        entry = {
            "path": name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "stored_shape": list(part.shape),
            "sha256": digest,
        }
        entries.append(entry)
    stored = _pack(entries, parts)
    root.mkdir()
    with _orbax() as checkpointer:
        checkpointer.save((root / "state").absolute(), stored)
    durable.sync_tree(root)
    manifest.write(root, {**body, "arrays": entries})


def _pack(entries: list[dict], parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What orbax is given, and in each entry where in it the array lies."""
    stored, small, end = {}, [], 0
    for entry, part in zip(entries, parts, strict=True):
        if not part.size:  # orbax refuses empty arrays
            continue
        if part.nbytes > _PACKED_BYTES:
            entry["key"] = f"{len(stored):05d}"
            stored[entry["key"]] = part
            continue
        entry |= {"key": _PACK, "start": end}
        end += -(-part.nbytes // _ALIGN) * _ALIGN
        small.append((entry["start"], part))
    if small:
        stored[_PACK] = np.zeros(end, np.uint8)
        for start, part in small:
            flat = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            stored[_PACK][start : start + flat.size] = flat
    return stored


def _unpack(entry: dict, stored: dict[str, np.ndarray]) -> np.ndarray:
    """An array as it was stored, out of what orbax gives back."""
    whole = stored[entry["key"]]
    if "start" not in entry:  # by itself
        return whole
    shape, dtype = entry["stored_shape"], np.dtype(entry["dtype"])
    stop = entry["start"] + math.prod(shape) * dtype.itemsize
    return whole[entry["start"] : stop].view(dtype).reshape(shape)


def _read(root: pathlib.Path, body: dict, template: PyTree, below: str) -> PyTree:
    """Reads the arrays into the template's structure and checks all digests."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    prefix = f"{below}/" if below else ""
    wanted = {prefix + _name(path): leaf for path, leaf in leaves}
    written = [entry for entry in body["arrays"] if "key" in entry]
    entries = {entry["path"]: entry for entry in body["arrays"]}
    entries = {name: e for name, e in entries.items() if name.startswith(prefix)}
    _check_template(root, entries, wanted)
    _check_stored(root, body)
    import orbax.checkpoint as ocp

    arguments = {e["key"]: ocp.RestoreArgs(restore_type=np.ndarray) for e in written}
    try:
        with _orbax() as checkpointer:
            stored = checkpointer.restore(
                (root / "state").absolute(), restore_args=arguments
            )
        parts = {entry["path"]: _unpack(entry, stored) for entry in written}
    except Exception as error:
        raise CheckpointError(f"orbax cannot read it: {_first_line(error)}") from error
    _check_arrays(written, parts)
    return structure.unflatten(_rebuild(entries[name], parts) for name in wanted)


def _check_stored(root: pathlib.Path, body: dict) -> None:
    """Compares what the array files say of themselves with the manifest.

    Reading takes as much memory as they say, and aborts the process where there is
    less. Nothing is compressed, so a checkpoint takes what its files do.
    """
    wanted: dict[str, tuple[list[int], np.dtype]] = {}
    for entry in body["arrays"]:
        if "start" in entry:
            size = math.prod(entry["stored_shape"]) * np.dtype(entry["dtype"]).itemsize
            end = -(-(entry["start"] + size) // _ALIGN) * _ALIGN
            before = wanted.get(entry["key"], ([0], None))[0][0]
            wanted[entry["key"]] = ([max(before, end)], np.dtype(np.uint8))
        elif "key" in entry:
            wanted[entry["key"]] = (entry["stored_shape"], np.dtype(entry["dtype"]))
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in wanted.values())
    files = sum(entry["size"] for entry in body["files"])
    if total > files + _ZERO_BYTES:
        raise CheckpointError(f"{files} bytes of files cannot hold {total} of arrays")
    import tensorstore  # what orbax reads with

    base = {"driver": "file", "path": f"{(root / 'state').absolute()}/"}
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        reads = {key: store.read(f"{key}/.zarray") for key in wanted}
        found = {key: json.loads(read.result().value) for key, read in reads.items()}
        for key, (shape, dtype) in wanted.items():
            head = found[key]
            fits = (
                head["shape"] == shape
                and head["dtype"] in (dtype.str, dtype.name)
                and math.prod(head["chunks"]) <= max(1, math.prod(shape))
                and head["compressor"] is None
                and head["filters"] is None
            )
            if not fits:
                raise ValueError(f"{key} is {head}, not {dtype}{shape}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"its arrays differ: {_first_line(error)}") from error


def _check_arrays(written: list[dict], parts: dict[str, np.ndarray]) -> None:
    """Compares every array that was read with its entry in the manifest."""
    digests = manifest.digest_all(manifest.digest_array, parts.values())
    for entry, part, digest in zip(written, parts.values(), digests, strict=True):
        has = (str(part.dtype), list(part.shape), digest)
        if has != (entry["dtype"], entry["stored_shape"], entry["sha256"]):
            raise CheckpointError(f"array {entry['path']} differs from its digest")


def _rebuild(entry: dict, parts: dict[str, np.ndarray]) -> np.ndarray:
    """One array in full, zeros back in place."""
    part = parts.get(entry["path"])
    if part is not None and entry["stored_shape"] == entry["shape"]:
        return part
    full = np.zeros(entry["shape"], np.dtype(entry["dtype"]))
    if part is not None:
        full[tuple(map(slice, part.shape))] = part
    return full


def _check_template(root: pathlib.Path, entries: dict, wanted: dict) -> None:
    """Compares names, shapes and dtypes with the template's."""
    wrong = [f"{name} is not in the checkpoint" for name in wanted.keys() - entries]
    wrong += [f"{name} is only in the checkpoint" for name in entries.keys() - wanted]
    for name in wanted.keys() & entries.keys():
        has = (tuple(entries[name]["shape"]), entries[name]["dtype"])
        wants = (tuple(wanted[name].shape), str(wanted[name].dtype))
        if has != wants:
            wrong.append(
                f"{name} is {has[1]}{list(has[0])} in the checkpoint, "
                f"{wants[1]}{list(wants[0])} is expected"
            )
    if wrong:
        wrong = sorted(wrong)
        more = f" (and {len(wrong) - 8} more)" if len(wrong) > 8 else ""
        raise TemplateError(
            f"{root} was saved from another state: {'; '.join(wrong[:8])}{more}. "
            "Was the configuration, the optimiser or the number of seeds changed?"
        )


def _trim(array: np.ndarray) -> np.ndarray:
    """Cuts the zeros (all bits zero) at the far end of every axis."""
    if array.nbytes < _TRIM_BYTES:
        return array
    array = np.ascontiguousarray(array)
    words = array[..., None].view(f"u{min(array.dtype.itemsize, 8)}")
    for axis in range(array.ndim):
        low, high = 0, array.shape[axis]
        probe = high - 1  # a full array answers at once
        while low < high:
            tail = (slice(None),) * axis + (slice(probe, high),)
            low, high = (probe + 1, high) if words[tail].any() else (low, probe)
            probe = (low + high) // 2
        part = (slice(None),) * axis + (slice(high),)
        array, words = array[part], words[part]
    return array


def _retire(folder: pathlib.Path, newest: pathlib.Path, keep: int) -> None:
    """Deletes all but the newest `keep` sound checkpoints; never the one just made."""
    sound = [
        path
        for path in (folder / str(step) for step in steps(folder.parent))
        if path != newest and _problem(path) is None
    ]
    for path in sound[: max(0, len(sound) + 1 - keep)]:
        durable.remove_tree(path)


def _problem(root: pathlib.Path, *, deep: bool = False) -> str | None:
    """What keeps a directory from being a checkpoint; `deep` reads every file."""
    try:
        body = manifest.read(root)
        if deep:
            manifest.check_files(root, body)
    except CheckpointError as error:
        return str(error)
    return None


def _orbax() -> Any:
    import orbax.checkpoint as ocp  # 0.4 s that listing steps need not pay

    # Of several processes one writes, and each may read: none waits for the others.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"jaxwm{me}"
    )
    # Uncompressed: three times faster to write, and floats hardly compress.
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False,
        use_ocdbt=True,
        use_zarr3=False,
        multiprocessing_options=alone,
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "state"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
