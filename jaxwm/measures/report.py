"""Where the bits went: a coded file tensor by tensor, and sizes to hold beside it."""

import bz2
import gzip
from typing import NamedTuple

import numpy as np

from jaxwm.measures import code, container, leaves, range_coder
from jaxwm.types import PyTree


class TensorReport(NamedTuple):
    """One matrix or vector of a file."""

    name: str  # path in the tree, and the layer where the first axis counts them
    shape: tuple[int, ...]
    rank: int | None  # components of two factors; None where numbers are stored dense
    delta: float | None  # width of a bin; None where floats are stored as they are
    bits: int  # coded alone, to 8 bits
    entropy: float  # of its integers, order 0, bits


class Report(NamedTuple):
    """Sizes of one network, bytes."""

    tensors: tuple[TensorReport, ...]
    file: int  # all of it; what counts
    header: int  # of the file: tree, shapes, ranks, bins, checksum
    entropy: float  # of all integers, order 0, tensor by tensor, without any table
    bz2_integers: int  # a general compressor on the same integers, int8 to int32
    bz2_floats: int  # of the raw weights
    gzip_floats: int
    floats: int  # the raw weights as they lie in memory


def report(params: PyTree, data: bytes, *, max_bytes: int = code.MAX_BYTES) -> Report:
    """Takes a file of `encode(params, ...)` apart.

    Args:
        params: what was encoded; for names and the raw sizes.
        data: the file.
        max_bytes: as in `decode`.

    Raises:
        ValueError: for files that `decode` refuses, or of another tree.
    """
    found = leaves.flatten(params)
    code.decode(data, like=params, max_bytes=max_bytes)  # the same tree, or it says so
    content = container.unpack(data, max_bytes)
    planes = iter(code.planes(data, max_bytes=max_bytes))
    records = [
        leaf for leaf, coded in zip(content.leaves, found.coded, strict=True) if coded
    ]
    tensors, integers = [], []
    for name, record in zip(found.names, records, strict=True):
        if record.kind != container.CODED:
            tensors.append(
                TensorReport(name, record.shape, None, None, 8 * record.nbytes, 0.0)
            )
        for layer, part in enumerate(record.parts):
            q = next(planes)
            integers.append(q)
            coder = range_coder.Encoder()
            coder.matrix(q)
            tensors.append(
                TensorReport(
                    f"{name}[{layer}]" if record.layers else name,
                    record.shape[1:] if record.layers else record.shape,
                    part.rank or None,
                    part.delta,
                    8 * len(coder.data()),
                    range_coder.order_0_bits(q),
                )
            )
    raw = b"".join(np.asarray(array).tobytes() for array in found.arrays)
    return Report(
        tensors=tuple(tensors),
        file=len(data),
        header=content.header_bytes,
        entropy=sum(tensor.entropy for tensor in tensors) / 8,
        bz2_integers=len(bz2.compress(b"".join(_narrow(q) for q in integers), 9)),
        bz2_floats=len(bz2.compress(raw, 9)),
        gzip_floats=len(gzip.compress(raw, 9, mtime=0)),
        floats=len(raw),
    )


def _narrow(q: np.ndarray) -> bytes:
    """Bytes of integers in the shortest type that holds them."""
    largest = int(np.max(np.abs(q.astype(np.int64))))
    kind = np.int8 if largest < 128 else np.int16 if largest < 32768 else np.int32
    return np.ascontiguousarray(q).astype(kind).tobytes()
