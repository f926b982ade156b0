"""One episode as a group of an HDF5 file, read with suspicion.

Everything that a file says about itself is checked before it is believed: links may
not lead out of the file, sizes are compared before memory is taken (compressed data
must not unpack to very much more than they are), and every error names file and
episode. `where` is that name. Shapes: T rows.
"""

import contextlib
import io
import math
import pathlib
import warnings
from typing import Any

import jax
import numpy as np

from jaxwm.data import dataset, spaces
from jaxwm.types import PyTree, Transition

FIELDS = ("rewards", "terminations", "truncations")
# Compressed data may unpack to this much, or to so many times their size.
_UNPACKED_BYTES, _UNPACKED_TIMES = 1 << 28, 50
_MOST_BYTES = 1 << 32  # where the caller sets no limit


def h5py() -> Any:
    """The library, imported when first needed.

    Raises:
        ImportError: naming the extra to install.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "Minari datasets need h5py, which is not installed; install the extra: "
            'pip install "jaxwm[data]".'
        ) from error
    return h5py


def open_file(path: pathlib.Path) -> Any:
    """The file, opened for reading.

    Raises:
        ValueError: if it is not a complete HDF5 file.
    """
    with reading(str(path)):
        return h5py().File(path, "r")


@contextlib.contextmanager
def reading(where: str):
    """Turns whatever HDF5 raises inside into a ValueError that names the place."""
    try:
        yield
    except (
        OSError,
        KeyError,
        RuntimeError,
        TypeError,
        AttributeError,
        MemoryError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(
            f"{where} cannot be read ({error}); it is damaged or incomplete, restore "
            "it from a copy."
        ) from error


def child(group, name: str, where: str) -> Any:
    """A member of a group that lies in this file.

    Raises:
        ValueError: if there is none, or it is a link.
    """
    link = group.get(name, getlink=True)
    if link is None:
        raise ValueError(f"{where}: {name} is missing; the file is incomplete.")
    if not isinstance(link, h5py().HardLink):
        raise ValueError(f"{where}: {name} is a link, which is not followed.")
    return group[name]


def num_rows(group, where: str) -> int:
    """T, and checks that the group's own count agrees."""
    shape = getattr(child(group, "rewards", where), "shape", None)
    if shape is None or len(shape) != 1:
        raise ValueError(f"{where}: rewards must be [T], got shape {shape}.")
    stated = group.attrs.get("total_steps", shape[0])
    if stated != shape[0]:
        raise ValueError(
            f"{where}: total_steps says {stated} rows, rewards has {shape[0]}; the "
            "file is incomplete."
        )
    return shape[0]


def read_episode(
    group,
    where: str,
    *,
    obs_space: dict | None,
    action_space: dict | None,
    jpeg: bool,
    extras: tuple[str, ...],
    like: PyTree | None,
    max_bytes: int,
) -> Transition:
    """One episode `[T, ...]`, floats as float32 and integers as int32."""
    _check_size(_datasets(group, where), max_bytes, where)
    num = num_rows(group, where)
    member = lambda name: child(group, name, where)
    obs = _tree(member("observations"), obs_space, jpeg, f"{where}: observations")
    for path, leaf in jax.tree_util.tree_leaves_with_path(obs):
        if len(leaf) != num + 1:
            name = "/".join(["observations", *filter(None, [dataset.field_name(path)])])
            raise ValueError(
                f"{where}: {name} must have T + 1 = {num + 1} rows, got {len(leaf)}; "
                "the file is incomplete."
            )
    action = _tree(member("actions"), action_space, jpeg, f"{where}: actions")
    reward, terminal, truncated = outcomes(group, where)
    mask: Any = np.ones(num, np.float32)
    return Transition(
        obs=jax.tree.map(lambda x: x[:-1], obs),
        action=action,
        reward=reward,
        discount=1 - terminal.astype(np.float32),
        truncated=truncated,
        next_obs=jax.tree.map(lambda x: x[1:], obs),
        mask=mask,
        extras=_extras(group, extras, like, num, where),
    )


def outcomes(group, where: str) -> tuple[Any, Any, Any]:
    """Rewards (float32), terminations and truncations (bool) of an episode."""
    nodes = [child(group, name, where) for name in FIELDS]
    for name, node in zip(FIELDS, nodes, strict=True):
        _check_dataset(node, f"{where}: {name}")
    _check_size(nodes, _MOST_BYTES, where)
    reward, terminal, truncated = (
        _array(node, None, False, f"{where}: {name}")
        for node, name in zip(nodes, FIELDS, strict=True)
    )
    return reward.astype(np.float32), terminal.astype(bool), truncated.astype(bool)


def episode_arrays(episode: Transition, name: int | str) -> dict[str, np.ndarray]:
    """An episode's arrays by their names in the file.

    Raises:
        ValueError: if `next_obs` of some row is not `obs` of the next one; the layout
            stores only one of them.
    """
    after = jax.tree.map(lambda x: x[1:], episode.obs)
    before = jax.tree.map(lambda x: x[:-1], episode.next_obs)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        differs = np.flatnonzero((a != b).reshape(len(a), -1).any(1))
        if differs.size:
            raise ValueError(
                f"episode {name}, row {differs[0]}: next_obs must equal obs of the "
                "row behind it; mark rows behind which an episode ends as truncated."
            )
    obs = jax.tree.map(
        lambda x, last: np.concatenate([x, last[-1:]]), episode.obs, episode.next_obs
    )
    named = {
        "observations": obs,
        "actions": episode.action,
        "rewards": episode.reward,
        "terminations": np.asarray(episode.discount) == 0,
        "truncations": np.asarray(episode.truncated, bool),
        "infos": episode.extras,
    }
    leaves = jax.tree_util.tree_leaves_with_path(named)
    return {dataset.field_name(path): np.asarray(leaf) for path, leaf in leaves}


def all_arrays(group, where: str) -> dict[str, np.ndarray]:
    """Everything in a group by name, as it is stored; links are not followed."""
    nodes = _datasets(group, where)
    _check_size(nodes, _MOST_BYTES, where)
    start = len(group.name) + 1
    return {node.name[start:]: node[()] for node in nodes}


def _datasets(group, where) -> list[Any]:
    """The arrays of a group that lie in this file; links are not followed."""
    found = []

    def visit(name, node):
        if isinstance(node, h5py().Dataset):
            _check_dataset(node, f"{where}: {name}")
            found.append(node)

    group.visititems(visit)
    return found


def _check_dataset(node, where):
    """Raises where it is no array, or one whose numbers lie in other files."""
    if not isinstance(node, h5py().Dataset):
        raise ValueError(f"{where} must be an array, got {type(node).__name__}.")
    if node.is_virtual or node.external:
        raise ValueError(f"{where} lies in another file, which is not followed.")


def _check_size(nodes, max_bytes, where):
    """Raises where arrays would take too much memory, or unpack to far too much."""
    size = sum(node.nbytes for node in nodes)
    if size > max_bytes:
        raise ValueError(
            f"{where} holds {size / 2**30:.2f} GiB, max_bytes allows "
            f"{max_bytes / 2**30:.2f}; raise it if the file is to be trusted."
        )
    packed = sum(node.id.get_storage_size() for node in nodes)
    if size > max(_UNPACKED_BYTES, _UNPACKED_TIMES * packed):
        raise ValueError(
            f"{where} unpacks from {packed / 2**20:.1f} to {size / 2**20:.0f} MiB, "
            f"which is more than {_UNPACKED_TIMES} times as much; store it without "
            "compression if it is to be trusted."
        )


def _extras(group, names, like, num, where) -> dict[str, Any]:
    """The chosen infos, their first T rows (state before the step)."""
    infos = child(group, "infos", where) if "infos" in group else {}
    found = {
        name: _tree(child(infos, name, where), None, False, f"{where}: infos/{name}")
        for name in names
        if name in infos
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        if leaf.ndim == 0 or len(leaf) not in (num, num + 1):
            raise ValueError(
                f"{where}: infos/{dataset.field_name(path)} must have {num} or "
                f"{num + 1} rows, got shape {list(leaf.shape)}."
            )
    found = jax.tree.map(lambda x: x[:num], found)
    if like is None:
        return found
    leaves = jax.tree_util.tree_leaves_with_path(found)
    by_name = {dataset.field_name(path): leaf for path, leaf in leaves}

    def wanted(path, _):
        name = dataset.field_name(path)
        if name not in by_name:
            raise ValueError(
                f"{where}: infos/{name} is missing, `like` asks for it; stored are "
                f"{', '.join(by_name) or 'none'}."
            )
        return by_name[name]

    return jax.tree_util.tree_map_with_path(wanted, like)


def _tree(node, space, jpeg, where) -> PyTree:
    """A group as a dict or tuple of arrays, a dataset as one array."""
    if not isinstance(node, h5py().Group):
        return _array(node, space, jpeg, where)
    members = {} if space is None else space.get("subspaces", {})
    if len(node) and all(name.startswith("_index_") for name in node):
        subspaces = dict(enumerate(members))
        return tuple(
            _tree(
                child(node, f"_index_{i}", where),
                subspaces.get(i),
                jpeg,
                f"{where}/_index_{i}",
            )
            for i in range(len(node))
        )
    return {
        name: _tree(
            child(node, name, where), members.get(name), jpeg, f"{where}/{name}"
        )
        for name in node
    }


def _array(node, space, jpeg, where) -> np.ndarray:
    """An array of numbers that lies in this file, as float32, int32, uint8 or bool."""
    _check_dataset(node, where)
    try:
        shape = None if space is None else spaces.shape_of(space)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if jpeg and space is not None and spaces.is_image(space):
        return _images(node, shape, where)
    array = node[()]
    if shape is not None and array.shape[1:] != shape:
        raise ValueError(
            f"{where} must have rows of shape {list(shape)} as metadata.json says, got "
            f"{list(array.shape[1:])}."
        )
    if array.dtype == bool or array.dtype == np.uint8:
        return array
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):  # infinity is found and named by the caller
            return array.astype(np.float32)
    if np.issubdtype(array.dtype, np.integer):
        if array.size and not np.array_equal(array, array.astype(np.int32)):
            raise ValueError(f"{where} has integers beyond 32 bits.")
        return array.astype(np.int32)
    raise ValueError(f"{where} must hold numbers, got {array.dtype}.")


def _images(node, shape: tuple[int, ...], where) -> np.ndarray:
    """JPEG images of one shape, decoded."""
    from PIL import Image

    rows = node[()]
    packed = sum(len(row) for row in rows)
    if len(rows) * math.prod(shape) > max(_UNPACKED_BYTES, _UNPACKED_TIMES * packed):
        raise ValueError(f"{where}: images unpack to far more than is stored.")

    def decoded(row):
        image = Image.open(io.BytesIO(bytes(row)))  # reads the size, no pixel yet
        if (image.height, image.width) != shape[:2]:
            raise ValueError(f"{image.height} x {image.width} instead of {shape}")
        return np.array(image)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return np.stack([decoded(row) for row in rows])
    except (
        ValueError,
        OSError,
        TypeError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ValueError(f"{where}: an image cannot be decoded ({error}).") from error
