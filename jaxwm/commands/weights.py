"""Trees of weights from files: NumPy archives, safetensors, checkpoints of runs.

Flat names become nested dicts: "encoder/layer0/kernel" or, where no name holds a slash,
"encoder.layer0.kernel". A name that is also the beginning of another is refused.
"""

import math
import pathlib
import zipfile
from typing import Any

import numpy as np

from jaxwm.train.errors import ConfigError, RunError

# Of a run's state, what its world model has learnt.
RUN_PART = "learner/agent/model/params"
# A file may unpack to this much, or to so many times its size.
_UNPACKED_BYTES, _UNPACKED_TIMES = 1 << 28, 50
_MAX_DEPTH = 64


def read(
    path: str | pathlib.Path,
    *,
    part: str | None = None,
    step: int | None = None,
    seed: int | None = None,
) -> tuple[Any, str]:
    """Reads weights as a nested dict of arrays.

    Args:
        path: an .npz or .safetensors file, a run's directory, any directory with
            `checkpoints/<step>`, or one such step.
        part: of the tree, "a/b"; of a run by default its world model's weights.
        step: of a directory; by default the newest that verifies.
        seed: of a run, one of its seeds; by default the first.

    Returns:
        The weights, and a line that says where they are from.

    Raises:
        ConfigError: where there is no such file, part, step or seed, or a file of
            another kind.
        RunError: for files that cannot be read.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a file or a run's directory.")
    if path.is_dir():
        return _checkpoint(path, part, step, seed)
    if step is not None or seed is not None:
        raise ConfigError(f"{path} is one file: it has no steps and no seeds.")
    readers = {".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise ConfigError(
            f"{path} ends in {path.suffix or 'nothing'}; weights are read from .npz, "
            ".safetensors and the directories of runs and checkpoints."
        )
    flat = readers[path.suffix](path)
    try:
        tree = nest(flat)
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    return _select(tree, part, path), f"{path}{f', {part}' if part else ''}"


def nest(flat: dict[str, Any], separator: str | None = None) -> dict:
    """Nested dicts from names like "a/b/c" or, where no name holds a slash, "a.b.c".

    Raises:
        RunError: where a name is an array and also holds others.
    """
    if separator is None:
        separator = "/" if any("/" in name for name in flat) else "."
    tree: dict = {}
    for name, array in flat.items():
        *folders, last = name.split(separator)
        if len(folders) > _MAX_DEPTH:
            raise RunError(f"{name[:60]}... is nested more than {_MAX_DEPTH} deep.")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise RunError(f"{name}: {folder} is an array and cannot hold others.")
        if last in node:
            raise RunError(f"{name} is an array and cannot hold others as well.")
        node[last] = array
    return tree


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(part.file_size for part in packed.infolist())
            _check_unpacked(size, path)
            for part in packed.infolist():
                _check_head(packed, part)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise RunError(f"{path} cannot be read as .npz: {error}.") from error
    # Text (notes beside the weights) is no weight.
    return {k: v for k, v in arrays.items() if v.dtype.kind in "biufc"}


def _check_unpacked(size: int, path: pathlib.Path) -> None:
    stored = sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())
    if size > max(_UNPACKED_BYTES, _UNPACKED_TIMES * stored):
        raise RunError(
            f"{path} has {stored / 2**20:.1f} MiB and unpacks to {size / 2**20:.0f}, "
            f"which is more than {_UNPACKED_TIMES} times as much."
        )


def _check_head(packed: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """Raises where an array claims more than its part of the archive holds."""
    with packed.open(part) as stream:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read:  # 3.0 is for names of fields, which weights have none
            raise ValueError(f"{part.filename} has version {version}")
        shape, _, dtype = read[version](stream)
    if math.prod(shape) * dtype.itemsize > part.file_size:
        raise ValueError(f"{part.filename} claims shape {shape}, more than it holds")


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise RunError(
            f"{path} is read by safetensors: pip install 'jaxwm[data]'."
        ) from error
    import ml_dtypes  # noqa: F401  bfloat16 needs its NumPy type

    try:
        return load_file(path)
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise RunError(f"{path} cannot be read as .safetensors: {error}.") from error


def _checkpoint(path, part, step, seed):
    """Weights from a directory that `train.checkpoint` wrote."""
    import jax

    from jaxwm.train import checkpoint, manifest, run

    if path.parent.name == checkpoint.FOLDER and path.name.isdigit():
        if step not in (None, int(path.name)):
            raise ConfigError(f"{path} is one step already; leave --step {step} out.")
        path, step = path.parents[1], int(path.name)
    found = checkpoint.steps(path)
    if not found:
        raise ConfigError(
            f"{path} holds no {checkpoint.FOLDER}/<step>; give a run's directory."
        )
    if step is not None and step not in found:
        raise ConfigError(f"{path} has steps {found}, not {step}.")
    is_run = (path / run.NAME).is_file()
    below = RUN_PART if part is None and is_run else part or ""
    body = manifest.read(
        path / checkpoint.FOLDER / str(found[-1] if step is None else step)
    )
    prefix = f"{below}/" if below else ""
    shapes = {
        entry["path"].removeprefix(prefix): jax.ShapeDtypeStruct(
            tuple(entry["shape"]), np.dtype(entry["dtype"])
        )
        for entry in body["arrays"]
        if entry["path"].startswith(prefix)
    }
    if not shapes:
        tops = sorted({"/".join(e["path"].split("/")[:4]) for e in body["arrays"]})
        raise ConfigError(
            f'{path} has no part "{below}"; name one by --part: {", ".join(tops)}.'
        )
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes.values())
    _check_unpacked(size, path)
    taken, tree, _ = checkpoint.restore(path, nest(shapes, "/"), step=step, below=below)
    where = f"{path}, step {taken}{f', {below}' if below else ''}"
    if is_run:
        seeds = run.read(path).get("seeds")
        sizes = {x.shape[:1] for x in jax.tree.leaves(tree)}
        if not isinstance(seeds, list) or sizes != {(len(seeds),)}:
            raise ConfigError(f"{path / run.NAME} does not name the seeds of the run.")
        seed = seeds[0] if seed is None else seed
        if seed not in seeds:
            raise ConfigError(f"the run has seeds {seeds}, not {seed}.")
        index = seeds.index(seed)
        tree = jax.tree.map(lambda x: x[index], tree)
        where += f", seed {seed}"
    elif seed is not None:
        raise ConfigError(f"{path} is no run: its checkpoints have no seeds.")
    return tree, where


def _select(tree: Any, part: str | None, path: pathlib.Path) -> Any:
    for name in (part or "").split("/") if part else ():
        if not isinstance(tree, dict) or name not in tree:
            has = ", ".join(tree) if isinstance(tree, dict) else "one array"
            raise ConfigError(f'{path} has no part "{part}"; here it has {has}.')
        tree = tree[name]
    return tree
