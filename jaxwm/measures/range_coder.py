"""Entropy coding of integer matrices: a range coder with adaptive integer models.

A matrix `[a, b]` of small integers goes column by column. Each column first states a
class, its mean magnitude on a logarithmic ladder (class 0: all zero, nothing follows).
An entry's magnitude is then predicted as (mean of its column) x (how much larger than
expected its row has been so far); the prediction picks one of a few adaptive tables of
counts, which start as geometric distributions of that mean. Magnitudes beyond the table
are escaped; where most are large, low bits are sent as they are.

Every model is integer arithmetic and the coder is given frequencies out of 2^16, so a
file decodes to the same integers on every machine. Shapes: a rows, b columns.

Source: range coding after Martin, 1979, as implemented by the library constriction
(Bamler, 2022); the contexts are our own.
"""

import constriction
import numpy as np

LARGEST = 1 << 27  # magnitudes from here on are refused

_TOTAL = 1 << 16  # frequencies of a table add up to this
_CODES = 16  # magnitudes 0 ... 14, and the escape
_ESCAPE = _CODES - 1
# Lower edges in 1/64: of the classes of columns, half octaves behind class 0, and of
# contexts, third octaves. Literal, since powers of floats may round differently.
_CLASS_EDGES = np.array(
    (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
)
_CONTEXT_EDGES = np.array(
    (2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 51, 64, 81, 102, 128, 161, 203, 256)
    + (323, 406, 512)
)
_CLASSES = len(_CLASS_EDGES) + 1
_MEAN_UNIT = 64
_UNIT = 64  # one observation in a table of counts
_PRIOR = 24  # a new table counts as this many observations of its geometric prior
_SHRINK = 4 * _MEAN_UNIT  # rows start as average, with the weight of a sum of 4
_ROUGH = 4  # low bits are split off where magnitudes are above this on average
_STREAM = constriction.stream
_FLAT = _STREAM.model.Categorical(perfect=False)


class Encoder:
    """Takes matrices of integers, gives bytes."""

    def __init__(self):
        self._coder = _STREAM.queue.RangeEncoder()

    def bits(self, values: np.ndarray, width: int) -> None:
        """Equally probable integers below `2**width`, width 0 to 23."""
        if width:
            symbols = np.ascontiguousarray(values, np.int32).reshape(-1)
            self._coder.encode(symbols, _STREAM.model.Uniform(1 << width))

    def matrix(self, q: np.ndarray) -> None:
        """One matrix of integers `[a, b]`, magnitudes below `LARGEST`."""
        magnitudes = np.abs(q.astype(np.int64))
        shift = _shift(magnitudes)
        high = magnitudes >> shift
        model = _Model(len(q))
        self.bits(np.array([shift]), 5)
        for j in range(q.shape[1]):
            index = _class(high[:, j], int(magnitudes[:, j].sum()))
            self._symbols(model.class_frequencies(), np.array([index]))
            model.learn_class(index)
            if index:
                self._column(model, index, q[:, j], high[:, j], magnitudes[:, j], shift)

    def data(self) -> bytes:
        """Everything so far: whole little-endian words, zeros at the end cut off."""
        return self._coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")

    def _column(self, model, index, q, high, magnitudes, shift):
        contexts = model.contexts(index)
        codes = np.minimum(high, _ESCAPE)
        self._symbols(model.magnitude_frequencies(contexts), codes)
        excess = high[codes == _ESCAPE] - _ESCAPE + 1
        if excess.size:  # Elias gamma: its length, then the digits below the first
            lengths = np.frompyfunc(lambda x: int(x).bit_length() - 1, 1, 1)(excess)
            self.bits(lengths.astype(np.int64), 5)
            for length in range(1, int(lengths.max()) + 1):
                chosen = excess[lengths == length] & ((1 << length) - 1)
                self.bits(chosen >> 14, max(length - 14, 0))
                self.bits(chosen & 16383, min(length, 14))
        self.bits(magnitudes & ((1 << shift) - 1), shift)
        signs = (q[magnitudes > 0] < 0).astype(np.int64)
        self._symbols(model.sign_frequencies(), signs)
        model.learn(index, contexts, codes, signs)

    def _symbols(self, frequencies, symbols):
        if not len(symbols):
            return
        table = np.broadcast_to(
            frequencies / _TOTAL, (len(symbols), frequencies.shape[-1])
        )
        self._coder.encode(symbols.astype(np.int32), _FLAT, np.ascontiguousarray(table))


class Decoder:
    """Gives back matrices in the order in which they were encoded.

    Its methods raise ValueError for data that no encoder writes.
    """

    def __init__(self, data: bytes):
        padded = data + b"\0" * (-len(data) % 4)
        words = np.frombuffer(padded, "<u4").astype(np.uint32)
        self._coder = _STREAM.queue.RangeDecoder(words)

    def bits(self, num: int, width: int) -> np.ndarray:
        """`num` equally probable integers below `2**width`."""
        if not width or not num:
            return np.zeros(num, np.int64)
        return self._decode(_STREAM.model.Uniform(1 << width), num)

    def matrix(self, rows: int, columns: int) -> np.ndarray:
        """One matrix `[a, b]` of int32."""
        q = np.zeros((rows, columns), np.int32)
        model = _Model(rows)
        shift = int(self.bits(1, 5)[0])
        for j in range(columns):
            index = int(self._symbols(model.class_frequencies(), 1)[0])
            model.learn_class(index)
            if index:
                q[:, j] = self._column(model, index, rows, shift)
        return q

    def _column(self, model, index, rows, shift):
        contexts = model.contexts(index)
        codes = self._symbols(model.magnitude_frequencies(contexts), rows)
        high = codes.copy()
        escaped = np.flatnonzero(codes == _ESCAPE)
        if escaped.size:
            lengths = self.bits(escaped.size, 5)
            excess = np.left_shift(1, lengths)
            for length in range(1, int(lengths.max()) + 1):
                at = np.flatnonzero(lengths == length)
                top = self.bits(at.size, min(max(length - 14, 0), 23))
                excess[at] += (top << 14) + self.bits(at.size, min(length, 14))
            high[escaped] = excess + _ESCAPE - 1
        magnitudes = (high << shift) + self.bits(rows, min(shift, 23))
        if magnitudes.max() >= LARGEST:
            raise ValueError("an integer is larger than any that is written")
        nonzero = magnitudes > 0
        signs = self._symbols(model.sign_frequencies(), int(nonzero.sum()))
        model.learn(index, contexts, codes, signs)
        magnitudes[nonzero] *= 1 - 2 * signs
        return magnitudes

    def _symbols(self, frequencies, num):
        if not num:
            return np.zeros(0, np.int64)
        table = np.broadcast_to(frequencies / _TOTAL, (num, frequencies.shape[-1]))
        return self._decode(_FLAT, np.ascontiguousarray(table))

    def _decode(self, model, what) -> np.ndarray:
        try:
            return self._coder.decode(model, what).astype(np.int64)
        except AssertionError as error:  # the library's word for impossible data
            raise ValueError("its integers are not what an encoder writes") from error


class _Model:
    """Counts of one matrix; takes the same steps while encoding and decoding."""

    def __init__(self, rows: int):
        means = (1, *_CONTEXT_EDGES.tolist())
        self.magnitudes = np.array([_geometric(mean) for mean in means])
        self.signs = np.full(2, 4 * _UNIT)
        self.classes = np.ones(_CLASSES, np.int64)
        self.previous = 0
        self.seen = np.zeros(rows, np.int64)  # summed magnitudes of every row
        self.expected = 0  # summed means of columns, in 1/64

    def class_frequencies(self) -> np.ndarray:
        distance = np.abs(np.arange(_CLASSES) - self.previous)
        near = (2 * _UNIT) >> np.minimum(distance, 7)
        return _frequencies(self.classes + near)

    def magnitude_frequencies(self, contexts: np.ndarray) -> np.ndarray:
        used, index = np.unique(contexts, return_inverse=True)
        return _frequencies(self.magnitudes[used])[index]

    def sign_frequencies(self) -> np.ndarray:
        return _frequencies(self.signs)

    def contexts(self, index: int) -> np.ndarray:
        """Which table each row of a column of this class uses, `[a]`."""
        mean = int(_CLASS_EDGES[index - 1])
        seen = _MEAN_UNIT * self.seen
        predicted = mean * (seen + _SHRINK) // (self.expected + _SHRINK)
        return np.searchsorted(_CONTEXT_EDGES, predicted, "right")

    def learn_class(self, index: int) -> None:
        self.classes[index] += _UNIT
        self.previous = index

    def learn(self, index: int, contexts, codes, signs) -> None:
        np.add.at(self.magnitudes, (contexts, codes), _UNIT)
        self.signs += _UNIT * np.bincount(signs, minlength=2)
        self.seen += codes
        self.expected += int(_CLASS_EDGES[index - 1])


def _class(high: np.ndarray, total: int) -> int:
    """Class of a column, by its mean in 1/64; 0 only where everything is zero."""
    mean = _MEAN_UNIT * int(high.sum()) // len(high)
    found = int(np.searchsorted(_CLASS_EDGES, mean, "right"))
    return max(found, 1) if total else 0


def _shift(magnitudes: np.ndarray) -> int:
    """Low bits that are sent as they are."""
    mean = int(magnitudes.sum()) // max(magnitudes.size, 1)
    return max((mean // _ROUGH).bit_length(), 0)


def _geometric(mean: int) -> list[int]:
    """Prior counts of magnitudes with this mean in 1/64; the rest is the escape's."""
    rest, counts = _PRIOR * _UNIT, []
    for _ in range(_ESCAPE):
        share = rest * _MEAN_UNIT // (_MEAN_UNIT + mean)
        counts.append(max(share, 1))
        rest = max(rest - share, 1)
    return [*counts, rest]


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Frequencies out of 2^16, each at least 1, in proportion to counts."""
    num = counts.shape[-1]
    free = _TOTAL - num
    total = counts.sum(-1, keepdims=True)
    found = counts * free // total + 1
    # What rounding leaves over goes to the first symbol.
    found[..., 0] += _TOTAL - found.sum(-1)
    return found


def order_0_bits(q: np.ndarray) -> float:
    """Order-0 entropy of integers in bits, without any table."""
    _, counts = np.unique(q, return_counts=True)
    return float(-np.sum(counts * np.log2(counts / counts.sum())))
