"""A code that decodes: weights as a small file from which a working network comes back.

    encode:  grid search (complexity.py) -> integers by rate and distortion (refine.py)
             -> range coder (range_coder.py) -> file (container.py)
    decode:  W~ = δ² Q_L Q_R^T  or  δ Q

Integers are multiplied exactly (in float64, checked against 2^53), so a file decodes to
the same floats on every machine. Both are functions of the host: they compile what they
need, once per loss function and shapes. Shapes: m rows, n columns, k components.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxwm.measures import coarse, container, leaves, range_coder
from jaxwm.measures import refine as rounding
from jaxwm.measures.complexity import Cells, Grid, search, smallest
from jaxwm.types import PyTree

MAX_BYTES = 1 << 28  # of decoded arrays, unless the caller allows more
# Ranks above about two thirds store dense weights, so one threshold stands for those.
SEARCH = Grid(
    taus=(0.4, 0.5, 0.6, 0.7, 1.0),
    deltas=tuple(np.geomspace(0.01, 1.0, 12).round(5).tolist()),
)
# Tried where no bin of the first grid keeps the loss.
FINER = Grid(taus=(1.0,), deltas=tuple(np.geomspace(1e-5, 0.01, 16).round(7).tolist()))
_EXACT = 1 << 53
# The loss is evaluated again on decoded weights, by another program: leave it room.
_MARGIN = 1e-3


class Piece(NamedTuple):
    """One matrix or vector of a tree before it is coded."""

    leaf: int  # among the coded leaves
    layer: int
    rank: int  # 0: dense
    delta: float
    integers: np.ndarray  # [m, n], or [m + n, k]: both factors, one under the other


class Plan(NamedTuple):
    """Integers for a whole tree."""

    pieces: list[Piece]
    layers: list[bool]  # per coded leaf, whether its first axis counts matrices


def encode(
    params: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]] | None = None,
    *,
    epsilon: float | int = 1.0,
    grid: Grid = SEARCH,
    num_steps: int = 100,
    reach: float | int = 1.0,
    widths: tuple[float, ...] = (1.0,),
    tau: float | int = 1.0,
    delta: float | int = 1e-3,
    stacked: leaves.Stacked = False,
) -> bytes:
    """Writes weights as a file whose length is their complexity, header included.

    With a loss, the smallest file found whose decoded weights keep it within
    `epsilon`: the cell of the grid with the fewest bits, then rounding by rate and
    distortion. Every stored number stays within `reach` bins of what it stands for.
    Where no cell keeps the loss, floats are stored as they are. Without a loss, ranks
    and bins are what `tau` and `delta` say.

    Args:
        params: any pytree; arrays that are not floating-point are stored exactly.
            Leaves that are not arrays, numbers or strings come back from `like` only.
        loss: `(params) -> scalar`, mean loss in nats on data that never change. Pass
            the same function again to spare compiling again.
        epsilon: how far the loss may rise, nats.
        grid: thresholds and bins of the first search.
        num_steps: gradient steps of the rounding; 0 rounds to the nearest.
        reach: largest distance of an integer from its weight, in bins, at least 1/2.
        widths: of the bins to start the rounding from, in units of the best plain one;
            each costs as much time as the first, (1.0, 1.2) saves a few per cent.
        tau: without a loss: share of the sum of singular values kept, in [0, 1].
        delta: without a loss: width of a bin.
        stacked: leaves whose first axis counts layers; see `svd_cache`.

    Raises:
        ValueError: for `epsilon` or `delta` <= 0, `tau` outside [0, 1], `reach` < 1/2,
            a loss that is not a scalar, params that are empty, NaN or infinite.
    """
    leaves.check_epsilon(epsilon)
    if not reach >= 0.5 or num_steps < 0:
        raise ValueError(
            f"reach must be at least 0.5 bins and num_steps at least 0, got {reach} "
            f"and {num_steps}; 0.5 is rounding to the nearest."
        )
    found = leaves.flatten(params)
    if loss is None:
        plan = _plain(found, tau, delta, grid.mode, stacked)
        return _write(params, found, plan)
    return _smallest_file(
        params, loss, epsilon, grid, num_steps, reach, widths, stacked
    )


def decode(
    data: bytes, *, like: PyTree | None = None, max_bytes: int = MAX_BYTES
) -> PyTree:
    """Reads weights from a file of `encode`.

    Takes time in proportion to the arrays that the file declares, and at most about
    five times `max_bytes` of memory beside the file; nothing in a file is executed.

    Args:
        data: the file.
        like: a tree of the same structure and shapes (values are not used); the result
            has its containers. Without it, dicts, lists and tuples come back as such,
            other containers as dicts by name or lists.
        max_bytes: the largest sum of all arrays that is accepted.

    Returns:
        The tree; its leaves are numpy arrays.

    Raises:
        ValueError: for files that are truncated, changed or not from `encode`; for
            arrays beyond `max_bytes`; where `like` is of another tree.
    """
    try:
        content = container.unpack(bytes(data), max_bytes)
        values = container.raw_arrays(content)
        stream = range_coder.Decoder(content.integers)
        for i, leaf in enumerate(content.leaves):
            if leaf.kind == container.CODED:
                values[i] = _read(leaf, stream)
        if like is None:
            if any(leaf.kind == container.OPAQUE for leaf in content.leaves):
                raise ValueError(
                    "it holds leaves that are not arrays; pass a tree that has them "
                    "as `like`"
                )
            return container.rebuild(content.tree, values)
        return _into(like, content, values)
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"data cannot be decoded: {error}.") from error


def planes(data: bytes, *, max_bytes: int = MAX_BYTES) -> list[np.ndarray]:
    """The integers of a file, one matrix per part; for reports.

    Raises:
        ValueError: as `decode`.
    """
    try:
        content = container.unpack(bytes(data), max_bytes)
        stream = range_coder.Decoder(content.integers)
        return [
            stream.matrix(*leaf.plane(part.rank))
            for leaf in content.leaves
            for part in leaf.parts
        ]
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"data cannot be decoded: {error}.") from error


def _smallest_file(
    params, loss, epsilon, grid, num_steps, reach, widths, stacked
) -> bytes:
    """The shortest file that was checked to keep the loss."""
    found = leaves.flatten(params)
    problem, kept = _problem(loss, found, stacked)
    leaves.check_scalar(loss, found)
    cells = _search(found.arrays, kept, problem=problem, grid=grid)
    best = jax.device_get(smallest(cells, epsilon * (1 - _MARGIN)))
    if not best.feasible:
        finer = dataclasses.replace(FINER, mode=grid.mode)
        cells = _search(found.arrays, kept, problem=problem, grid=finer)
        best = jax.device_get(smallest(cells, epsilon * (1 - _MARGIN)))
    if not best.feasible:
        return container.pack(params, None, b"")  # floats as they are
    plan = _plain(found, float(best.tau), float(best.delta), grid.mode, stacked)
    plans = [plan]
    low = tuple(piece.rank > 0 for piece in plan.pieces)
    limit = float(cells.base_loss) + epsilon * (1 - _MARGIN)
    for width in widths if num_steps else ():
        delta = float(np.float32(best.delta * width))
        integers, feasible = _refine(
            found.arrays,
            kept,
            float(best.tau),
            delta,
            limit,
            epsilon,
            problem=problem,
            low=low,
            mode=grid.mode,
            num_steps=num_steps,
            window=reach - 0.5,
        )
        if feasible:
            plans.append(_plan(plan, jax.device_get(integers), delta))
    files = sorted((_write(params, found, plan) for plan in plans), key=len)
    for data in files:
        arrays = leaves.flatten(decode(data, like=params, max_bytes=1 << 62)).arrays
        value = float(_value(arrays, kept, problem=problem))
        if value <= float(cells.base_loss) + epsilon:
            return data
    return container.pack(params, None, b"")  # floats as they are


class _Problem(NamedTuple):
    """What the compiled search depends on besides arrays; hashable."""

    loss: Callable
    structure: Any
    kinds: tuple[str, ...]  # per leaf: "coded", "array" or "constant"
    constants: tuple[Any, ...]
    layers: tuple[bool, ...]  # per coded leaf: its first axis counts matrices

    def params(self, arrays: list, kept: list) -> PyTree:
        """The tree of these arrays."""
        of = {"coded": iter(arrays), "array": iter(kept)}
        of["constant"] = iter(self.constants)
        return self.structure.unflatten(next(of[kind]) for kind in self.kinds)


def _problem(loss, found: leaves.Leaves, stacked) -> tuple[_Problem, list]:
    """The problem, and the arrays that are kept as they are."""
    kinds, constants, kept = [], [], []
    for leaf, coded in zip(found.kept, found.coded, strict=True):
        kind = "coded" if coded else "array" if leaves.is_array(leaf) else "constant"
        kinds.append(kind)
        if kind == "constant":
            constants.append(leaf)
        elif kind == "array":
            kept.append(leaf)
    layers = _layers(found, stacked)
    problem = _Problem(
        loss, found.structure, tuple(kinds), tuple(constants), tuple(layers)
    )
    try:
        hash(problem)
    except TypeError as error:
        raise ValueError(
            f"params hold a leaf that is neither an array nor hashable ({error}); "
            "take it out of the tree."
        ) from error
    return problem, kept


def _layers(found: leaves.Leaves, stacked) -> list[bool]:
    return [
        leaves.is_stacked(stacked, name, array.ndim)
        for name, array in zip(found.names, found.arrays, strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("problem", "grid"))
def _search(arrays, kept, *, problem: _Problem, grid: Grid) -> Cells:
    params = problem.params(arrays, kept)
    told = dict(zip(leaves.flatten(params).names, problem.layers, strict=True))
    return search(params, problem.loss, grid=grid, stacked=told.__getitem__)


@functools.partial(jax.jit, static_argnames=("problem",))
def _value(arrays, kept, *, problem: _Problem) -> Array:
    return problem.loss(problem.params(arrays, kept))


@functools.partial(
    jax.jit, static_argnames=("problem", "low", "mode", "num_steps", "window")
)
def _refine(
    arrays,
    kept,
    tau,
    delta,
    limit,
    epsilon,
    *,
    problem: _Problem,
    low: tuple[bool, ...],
    mode: str,
    num_steps: int,
    window: float,
):
    """Integers of every piece, and whether they keep the limit."""
    starts, is_low = [], iter(low)
    for array, layers in zip(arrays, problem.layers, strict=True):
        for matrix in _matrices(array, layers):
            if not next(is_low):
                starts.append((matrix / delta, None))
                continue
            left, right = coarse.factors(matrix, tau, mode)
            # More components than this would be stored dense.
            most = (matrix.size - 1) // sum(matrix.shape)
            starts.append((left[:, :most] / delta, right[:, :most] / delta))

    def loss_of(integers):
        new, parts = [], iter(integers)
        for array, layers in zip(arrays, problem.layers, strict=True):
            dense = []
            for _ in _matrices(array, layers):
                left, right = next(parts)
                if right is None:
                    dense.append(left * delta)
                else:
                    product = jnp.matmul(left, right.T, precision="highest")
                    dense.append(product * delta**2)
            new.append(jnp.stack(dense).reshape(array.shape).astype(array.dtype))
        return problem.loss(problem.params(new, kept)).astype(jnp.float32)

    best = rounding.refine(
        starts, loss_of, limit, epsilon, num_steps=num_steps, window=window
    )
    return best.integers, best.feasible


def _matrices(array, layers: bool):
    """A leaf as float32 matrices `[B, m, n]`; vectors are one column."""
    batch = array.shape[0] if layers else 1
    shape = (
        leaves.matrix_shape(array.shape, layers)
        if array.ndim > 1
        else (batch, array.size, 1)
    )
    return array.astype(np.float32).reshape(shape)


def _plain(found: leaves.Leaves, tau, delta, mode, stacked) -> Plan:
    """Nearest integers at one threshold and bin, as `coarse_grain` has them."""
    coarse.check_range(tau, delta, mode)
    layers, pieces = _layers(found, stacked), []
    for i, (array, is_layers) in enumerate(zip(found.arrays, layers, strict=True)):
        for b, matrix in enumerate(_matrices(np.asarray(array), is_layers)):
            m, n = matrix.shape
            rank, integers = 0, None
            if array.ndim > 1:
                left, right = coarse.factors(jnp.asarray(matrix), tau, mode)
                rank = int(np.sum(np.any(np.asarray(right), 0)))
                rank = max(rank, 1) if rank * (m + n) < m * n else 0
            if rank:
                integers = np.concatenate([left, right])[:, :rank]
            integers = matrix if integers is None else integers
            pieces.append(Piece(i, b, rank, delta, _integers(integers, delta)))
    return Plan(pieces, layers)


def _plan(plain: Plan, integers, delta: float) -> Plan:
    """The plain plan with refined integers; components that became zero are gone."""
    pieces = []
    for piece, (left, right) in zip(plain.pieces, integers, strict=True):
        q, rank = left, 0
        if right is not None:
            alive = np.any(left, 0) & np.any(right, 0)
            q = np.concatenate([left, right])[:, alive]
            rank = max(int(alive.sum()), 1)
            q = q if q.shape[1] else np.zeros((len(q), 1))
        q = np.rint(q).astype(np.int32)
        pieces.append(piece._replace(rank=rank, delta=delta, integers=q))
    return plain._replace(pieces=pieces)


def _integers(x: np.ndarray, delta: float) -> np.ndarray:
    q = np.rint(np.asarray(x, np.float64) / np.float32(delta))
    largest = float(np.max(np.abs(q)))
    if not largest < range_coder.LARGEST:
        raise ValueError(
            f"delta = {delta} makes integers of {largest:.3g}, more than "
            f"{range_coder.LARGEST}; choose wider bins."
        )
    return q.astype(np.int32)


def _write(params: PyTree, found: leaves.Leaves, plan: Plan) -> bytes:
    """A file of integers."""
    parts: list[list[container.Part]] = [[] for _ in found.arrays]
    for piece in plan.pieces:
        parts[piece.leaf].append(container.Part(piece.rank, piece.delta))
    records = [
        container.Leaf(
            container.CODED,
            shape=array.shape,
            layers=layers,
            parts=tuple(own),
        )
        for array, layers, own in zip(found.arrays, plan.layers, parts, strict=True)
    ]
    coder = range_coder.Encoder()
    for piece in plan.pieces:
        shape = records[piece.leaf].plane(piece.rank)
        q = piece.integers
        coder.matrix(q if q.shape == shape else q.T)
    return container.pack(params, records, coder.data())


def _read(leaf: container.Leaf, stream: range_coder.Decoder) -> np.ndarray:
    """One array from its integers."""
    batch, m, n = leaf.matrices()
    out = np.zeros((batch, m, n), np.float64)
    for b, part in enumerate(leaf.parts):
        q = stream.matrix(*leaf.plane(part.rank)).astype(np.float64)
        delta = float(part.delta)
        if not part.rank:
            q = q if q.shape == (m, n) else q.T
            out[b] = q * delta
            continue
        left, right = q[:m], q[m:]
        # Sums of integers below 2^53 are exact in any order, on any machine.
        if np.max(np.abs(left)) * np.max(np.abs(right)) * part.rank >= _EXACT:
            raise ValueError("its integers are too large to be multiplied exactly")
        out[b] = (left @ right.T) * (delta * delta)
    with np.errstate(over="ignore"):
        return out.reshape(leaf.shape).astype(leaf.dtype)


def _into(like: PyTree, content: container.Content, values: list) -> PyTree:
    """Decoded leaves in the containers of another tree."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    if len(paths) != len(values):
        raise ValueError(
            f"like has {len(paths)} leaves, the file {len(values)}; it was made from "
            "another tree"
        )
    out = []
    for (path, own), leaf, value in zip(paths, content.leaves, values, strict=True):
        if leaf.kind == container.OPAQUE:
            out.append(own)
            continue
        shapes = [getattr(x, "shape", None) for x in (own, value)]
        dtypes = [getattr(x, "dtype", None) for x in (own, value)]
        if shapes[0] != shapes[1] or dtypes[0] != dtypes[1]:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"like[{name}] is {dtypes[0]}{shapes[0]}, the file holds "
                f"{dtypes[1]}{shapes[1]}; it was made from another tree"
            )
        out.append(value)
    return structure.unflatten(out)
