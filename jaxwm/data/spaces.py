"""Spaces as Minari writes them into metadata.json, and trees stored under their names.

Source: the layout of Minari 0.5 (Farama Foundation), read in its documentation and
compared with the installed package by the tests.
"""

import math
from typing import Any

import numpy as np

from jaxwm.types import Box, Discrete, PyTree


def space_of(tree: PyTree) -> dict[str, Any]:
    """The space of a tree of arrays or shapes: dicts, tuples, and unbounded boxes."""
    if isinstance(tree, dict):
        return {"type": "Dict", "subspaces": {k: space_of(v) for k, v in tree.items()}}
    if isinstance(tree, tuple | list):
        return {"type": "Tuple", "subspaces": [space_of(v) for v in tree]}
    dtype = np.dtype(tree.dtype)
    if dtype.kind == "b":
        return {"type": "MultiBinary", "n": list(tree.shape)}
    low, high = -math.inf, math.inf
    if np.issubdtype(dtype, np.integer):
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    return _box(np.full(tree.shape, low), np.full(tree.shape, high), dtype)


def action_space(action: Box | Discrete, dtype: np.dtype) -> dict[str, Any]:
    """The space of an environment's actions."""
    if isinstance(action, Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": action.num}
    return _box(np.array(action.low), np.array(action.high), np.dtype(dtype))


def shape_of(space: dict[str, Any]) -> tuple[int, ...]:
    """Shape of one element of a space that is an array.

    Raises:
        ValueError: for a space that jaxwm does not read, naming its type.
    """
    kind = space.get("type")
    if kind == "Box":
        return tuple(space["shape"])
    if kind == "Discrete":
        return ()
    if kind == "MultiDiscrete":
        return np.shape(space["nvec"])
    if kind == "MultiBinary":
        return tuple(np.atleast_1d(space["n"]).tolist())
    raise ValueError(
        f"space {kind!r} cannot be read; Box, Discrete, MultiDiscrete, MultiBinary, "
        "Dict and Tuple can."
    )


def is_image(space: dict[str, Any]) -> bool:
    """Whether Minari stores elements of this space as JPEG, unless told not to."""
    return (
        space.get("type") == "Box"
        and space.get("dtype") == "uint8"
        and len(space["shape"]) in (2, 3)
        and min(space["shape"][:2]) >= 32
        and bool(np.all(np.asarray(space["low"]) == 0))
        and bool(np.all(np.asarray(space["high"]) == 255))
    )


def _box(low, high, dtype):
    return {
        "type": "Box",
        "dtype": str(dtype),
        "shape": list(low.shape),
        "low": low.tolist(),
        "high": high.tolist(),
    }
