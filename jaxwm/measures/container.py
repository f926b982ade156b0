"""The file around coded weights: magic, checksum, tree, other leaves, coded integers.

    "jxwm"  version u8  crc32 u32 (of all that follows)
    sizes of header and raw part as varints, flags u8
    header   the tree in pre-order; per leaf its type, shape, ranks and bins
    raw      bytes of leaves that are not coded, in the order of the tree
    integers of the coded leaves, one range-coded stream (range_coder.py)

Header and raw part are deflated where that is smaller. Numbers are little-endian,
varints seven bits at a time. Nothing in a file is executed and no pickle is involved.
Dicts, lists, tuples and None come back as such; other containers as dicts, or as lists
where their children have no names.
"""

import json
import math
import struct
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.measures import leaves

MAGIC, VERSION = b"jxwm", 1
_DTYPES = (
    ("float32", "float64", "float16", "bfloat16", "bool", "int8", "int16", "int32")
    + ("int64", "uint8", "uint16", "uint32", "uint64", "complex64", "complex128")
    + ("float8_e4m3fn", "float8_e5m2")
)
_MAX_HEADER, _MAX_NODES, _MAX_DEPTH, _MAX_NDIM = 1 << 24, 1 << 18, 64, 16
DICT, LIST, TUPLE, NONE, CODED, ARRAY, KEY, PLAIN, OPAQUE = range(9)


class Part(NamedTuple):
    """One matrix or vector of a coded leaf: how its integers are to be read."""

    rank: int  # components of two factors; 0: the numbers themselves
    delta: float  # float32


class Leaf(NamedTuple):
    """What the header says of one leaf."""

    kind: int
    name: str = ""
    dtype: Any = None
    shape: tuple[int, ...] = ()
    layers: bool = False  # the first axis counts matrices
    parts: tuple[Part, ...] = ()
    value: Any = None  # of plain Python values; of keys, the implementation

    @property
    def nbytes(self) -> int:
        """Bytes of the array itself."""
        if self.dtype is None:
            return 0
        return math.prod(self.shape) * self.dtype.itemsize

    def plane(self, rank: int) -> tuple[int, int]:
        """Shape of the integers of one part: long columns suit the coder."""
        _, m, n = self.matrices()
        return (m + n, rank) if rank else (max(m, n), min(m, n))

    def matrices(self) -> tuple[int, int, int]:
        """(B, m, n)."""
        if len(self.shape) < 2:
            return 1, math.prod(self.shape), 1
        return leaves.matrix_shape(self.shape, self.layers)


class Content(NamedTuple):
    """A file taken apart; integers are still coded."""

    tree: Any  # nested (kind, keys, children) and indices of leaves
    leaves: list[Leaf]
    raw: bytes
    integers: bytes
    header_bytes: int  # of everything but raw part and integers


def pack(params: Any, coded: list[Leaf] | None, integers: bytes) -> bytes:
    """Writes a file.

    Args:
        params: the tree; its structure and the leaves that are not coded are stored.
        coded: one record per floating-point leaf, in the order of the tree; None stores
            them raw.
        integers: their stream.

    Raises:
        ValueError: for trees that are too deep or large, keys of dicts that are
            neither strings nor integers, arrays of unknown types.
    """
    header, raw = bytearray(), []
    _write_node(header, raw, params, None if coded is None else iter(coded), "", 0)
    flags = 0
    parts = []
    for bit, plain in ((1, bytes(header)), (2, b"".join(raw))):
        deflated = zlib.compress(plain, 9)
        if len(deflated) < len(plain):
            flags, plain = flags | bit, deflated
        parts.append(plain)
    body = bytearray()
    for part in parts:
        _write_varint(body, len(part))
    body.append(flags)
    body += b"".join(parts) + integers
    return MAGIC + struct.pack("<BI", VERSION, zlib.crc32(body)) + bytes(body)


def unpack(data: bytes, max_bytes: int) -> Content:
    """Reads a file up to its integers.

    Raises:
        ValueError: for anything that `pack` did not write, and for arrays that would
            take more than `max_bytes` together.
    """
    if len(data) < 9 or data[:4] != MAGIC:
        raise ValueError("it does not begin like one (no file of `encode`)")
    version, checksum = struct.unpack_from("<BI", data, 4)
    if version != VERSION:
        raise ValueError(f"its format is {version}, this version reads {VERSION}")
    if zlib.crc32(memoryview(data)[9:]) != checksum:
        raise ValueError("its checksum is wrong; it is truncated or was changed")
    reader = _Reader(data, 9)
    sizes = reader.varint(), reader.varint()
    flags = reader.byte()
    header, raw = reader.take(sizes[0]), reader.take(sizes[1])
    integers = reader.take(len(data) - reader.at)
    header = _inflate(header, flags & 1, _MAX_HEADER)
    records: list[Leaf] = []
    head = _Reader(header, 0)
    tree = _read_node(head, records, 0, [0])
    if head.at != len(header):
        raise ValueError("its header is longer than its tree")
    total = sum(leaf.nbytes for leaf in records)
    if total > max_bytes:
        raise ValueError(
            f"its arrays take {total} bytes, more than max_bytes = {max_bytes}; raise "
            "max_bytes if you trust the file"
        )
    wanted = sum(leaf.nbytes for leaf in records if leaf.kind in (ARRAY, KEY))
    raw = _inflate(raw, flags & 2, wanted)
    if len(raw) != wanted:
        raise ValueError("its raw part has the wrong length")
    overhead = len(data) - len(integers) - sizes[1]
    return Content(tree, records, raw, integers, overhead)


def raw_arrays(content: Content) -> list[Any]:
    """Leaves that are not coded, None in place of the others."""
    out, at = [], 0
    for leaf in content.leaves:
        if leaf.kind not in (ARRAY, KEY):
            out.append(leaf.value if leaf.kind == PLAIN else None)
            continue
        piece = content.raw[at : at + leaf.nbytes]
        at += leaf.nbytes
        array = np.zeros(leaf.shape, leaf.dtype)
        if array.size:
            array = np.frombuffer(piece, leaf.dtype).reshape(leaf.shape).copy()
        if leaf.kind == KEY:
            try:
                array = jax.random.wrap_key_data(array, impl=leaf.value)
            except (ValueError, TypeError) as error:
                raise ValueError(f"its random keys cannot be made: {error}") from error
        out.append(array)
    return out


def rebuild(tree: Any, values: list[Any]) -> Any:
    """The nested containers with values in place of their indices."""
    if isinstance(tree, int):
        return values[tree]
    kind, keys, children = tree
    found = [rebuild(child, values) for child in children]
    if kind == DICT:
        return dict(zip(keys, found, strict=True))
    if kind == NONE:
        return None
    return found if kind == LIST else tuple(found)


def _write_node(out, raw, node, coded, name, depth):
    if depth > _MAX_DEPTH:
        raise ValueError(f"params are nested more than {_MAX_DEPTH} deep at {name}.")
    if node is None:
        out.append(NONE)
        return
    pairs, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    if jax.tree_util.treedef_is_leaf(structure):
        _write_leaf(out, raw, node, coded, name)
        return
    kind, keys = _container(node, [path[-1] for path, _ in pairs])
    out.append(kind)
    _write_varint(out, len(pairs))
    for key, (_, child) in zip(keys, pairs, strict=True):
        if kind == DICT:
            _write_key(out, key, name)
        _write_node(out, raw, child, coded, f"{name}/{key}", depth + 1)


def _container(node, entries) -> tuple[int, list]:
    """How a container is stored, and the names of its children."""
    named = [getattr(e, "key", getattr(e, "name", None)) for e in entries]
    positions = list(range(len(entries)))
    if type(node) is tuple:
        return TUPLE, positions
    if isinstance(node, dict):
        return DICT, named
    is_index = [isinstance(e, jax.tree_util.SequenceKey) for e in entries]
    flattened = [isinstance(e, jax.tree_util.FlattenedIndexKey) for e in entries]
    if any(is_index) or any(flattened) or not entries or None in named:
        return LIST, positions
    return DICT, named


def _write_key(out, key, name):
    if isinstance(key, str):
        out.append(0)
        _write_text(out, key)
    elif isinstance(key, int) and not isinstance(key, bool):
        out.append(1 if key >= 0 else 2)
        _write_varint(out, abs(key))
    else:
        raise ValueError(
            f"keys of dicts must be strings or integers, got {key!r} in "
            f"params[{name.strip('/') or 'root'}]; rename it, files hold no objects."
        )


def _write_leaf(out, raw, leaf, coded, name):
    if coded is not None and leaves.is_float(leaf) and leaf.size:
        record = next(coded)
        out.append(CODED)
        _write_array_type(out, leaf, name)
        out.append(int(record.layers))
        for part in record.parts:
            _write_varint(out, part.rank)
            out += struct.pack("<f", part.delta)
    elif leaves.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        out.append(KEY)
        _write_array_type(out, data, name)
        _write_text(out, str(jax.random.key_impl(leaf)))
        raw.append(np.ascontiguousarray(data).tobytes())
    elif leaves.is_array(leaf):
        out.append(ARRAY)
        _write_array_type(out, leaf, name)
        raw.append(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    elif isinstance(leaf, bool | int | float | str):
        out.append(PLAIN)
        _write_text(out, json.dumps(leaf))
    else:
        out.append(OPAQUE)


def _write_array_type(out, array, name):
    dtype = str(np.dtype(array.dtype))
    if dtype not in _DTYPES or array.ndim > _MAX_NDIM:
        raise ValueError(
            f"params[{name.strip('/') or 'root'}] is {dtype} with {array.ndim} axes; "
            f"files hold up to {_MAX_NDIM} axes of {', '.join(_DTYPES)}."
        )
    out.append(_DTYPES.index(dtype))
    out.append(array.ndim)
    for size in array.shape:
        _write_varint(out, size)


def _write_varint(out, value):
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _write_text(out, text):
    content = text.encode()
    _write_varint(out, len(content))
    out += content


class _Reader:
    """Reads from bytes and refuses to read past their end."""

    def __init__(self, data: bytes, at: int):
        self.data, self.at = data, at

    def take(self, num: int) -> bytes:
        if num > len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += num
        return self.data[self.at - num : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number in its header is too long")

    def text(self) -> str:
        return self.take(self.varint()).decode()  # UnicodeDecodeError: a ValueError


def _read_node(reader, records, depth, count):
    kind = reader.byte()
    count[0] += 1
    if depth > _MAX_DEPTH or count[0] > _MAX_NODES:
        raise ValueError("its tree is too deep or has too many leaves")
    if kind == NONE:
        return NONE, [], []
    if kind not in (DICT, LIST, TUPLE):
        records.append(_read_leaf(reader, kind))
        return len(records) - 1
    keys, children = [], []
    for _ in range(reader.varint()):
        if kind == DICT:
            keys.append(_read_key(reader))
        children.append(_read_node(reader, records, depth + 1, count))
    if len(set(keys)) != len(keys):
        raise ValueError("its tree has two children of one name")
    return kind, keys, children


def _read_key(reader):
    kind = reader.byte()
    if kind == 0:
        return reader.text()
    if kind > 2:
        raise ValueError("its tree has a key of unknown type")
    return reader.varint() * (1 if kind == 1 else -1)


def _read_leaf(reader, kind) -> Leaf:
    if kind == OPAQUE:
        return Leaf(OPAQUE)
    if kind == PLAIN:
        value = json.loads(reader.text())
        if not isinstance(value, bool | int | float | str):
            raise ValueError("a plain leaf is neither a number nor a string")
        return Leaf(PLAIN, value=value)
    if kind not in (CODED, ARRAY, KEY):
        raise ValueError("its tree has a node of unknown type")
    index, ndim = reader.byte(), reader.byte()
    if index >= len(_DTYPES) or ndim > _MAX_NDIM:
        raise ValueError("an array in it has an unknown type or too many axes")
    dtype = jnp.dtype(_DTYPES[index])
    shape = tuple(reader.varint() for _ in range(ndim))
    if kind == KEY:
        return Leaf(KEY, dtype=dtype, shape=shape, value=reader.text())
    leaf = Leaf(kind, dtype=dtype, shape=shape)
    if kind == ARRAY:
        return leaf
    leaf = leaf._replace(layers=bool(reader.byte()))
    if not math.prod(shape) or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError("a coded array in it is empty or holds no real numbers")
    if leaf.layers and ndim < 2:
        raise ValueError("an array in it has layers and a single axis")
    batch, m, n = leaf.matrices()
    parts = []
    for _ in range(batch):
        rank, (delta,) = reader.varint(), struct.unpack("<f", reader.take(4))
        if rank > min(m, n) or not 0 < delta < math.inf:
            raise ValueError("an array in it has an impossible rank or bin")
        parts.append(Part(rank, delta))
    return leaf._replace(parts=tuple(parts))


def _inflate(data: bytes, deflated: int, limit: int) -> bytes:
    """Plain bytes, never more than `limit`."""
    if deflated:
        stream = zlib.decompressobj()
        try:
            data = stream.decompress(data, limit + 1)
        except zlib.error as error:
            raise ValueError(f"it cannot be inflated: {error}") from error
    if len(data) > limit:
        raise ValueError("a part of it is larger than it may be")
    return data
