"""Tables of group operations, split at random: the tasks that networks grok.

Source: Power et al., "Grokking: Generalization Beyond Overfitting on Small Algorithmic
Datasets", 2022; the operations and splits of DeMoss et al., "The Complexity Dynamics of
Grokking", 2024.
Shapes: n examples.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

OPERATIONS: dict[str, Callable] = {
    "add": lambda a, b, p: (a + b) % p,
    "sub": lambda a, b, p: (a - b) % p,
    "mul": lambda a, b, p: (a * b) % p,
    "div": lambda a, b, p: (a * _inverses(p)[b]) % p,  # b != 0
    "squares": lambda a, b, p: (a**2 + b**2) % p,
    "quadratic": lambda a, b, p: (a**2 + a * b + b**2) % p,
}


class Examples(NamedTuple):
    """Inputs and labels."""

    x: Int[Array, "n I"]  # symbols: I = 2 operands, or I = 4 tokens
    y: Int[Array, " n"]


class Task(NamedTuple):
    """A table in two parts that have no pair in common."""

    train: Examples
    test: Examples


def modular_task(
    key: Key[Array, ""],
    p: int,
    op: str = "add",
    fraction: float = 0.4,
    *,
    tokens: bool = False,
) -> Task:
    """All pairs (a, b) with `c = a op b` mod p, the first `fraction` for training.

    Args:
        key: of the one permutation that splits the table.
        p: modulus; prime for "div", which leaves out b = 0.
        op: "squares" is a^2 + b^2, "quadratic" a^2 + a b + b^2.
        fraction: share of the pairs to train on, in (0, 1), rounded down.
        tokens: whether inputs are `[a, op, b, =]` with op = p and = = p + 1, so that
            there are p + 2 symbols, instead of `[a, b]`.

    Raises:
        ValueError: for an unknown operation, p below 2, a division by a p that is not
            prime, a fraction that leaves either part empty.
    """
    if op not in OPERATIONS:
        raise ValueError(f"op must be one of {', '.join(OPERATIONS)}, got {op!r}.")
    if not 2 <= p <= 2000:
        raise ValueError(f"p must be in 2 ... 2000 (the table has p^2 rows), got {p}.")
    if op == "div" and not _is_prime(p):
        raise ValueError(
            f"p must be prime for division, got {p}: not every number has an inverse; "
            f"take {next(q for q in itertools.count(p) if _is_prime(q))}."
        )
    a, b = np.divmod(np.arange(p * p), p)
    if op == "div":
        a, b = a[b != 0], b[b != 0]
    return _split(key, a, b, OPERATIONS[op](a, b, p), p, fraction, tokens)


def permutation_task(
    key: Key[Array, ""], k: int = 5, fraction: float = 0.5, *, tokens: bool = False
) -> Task:
    """All pairs of permutations of k things with their composition.

    Symbols 0 ... k! - 1 number the permutations in lexicographic order; c = a after b,
    `c(i) = a(b(i))`. The table has (k!)^2 rows: 14 400 for k = 5.

    Args:
        key: of the split.
        k: things, 2 to 6.
        fraction: share to train on, in (0, 1).
        tokens: as in `modular_task`, with p = k!.

    Raises:
        ValueError: for k outside 2 ... 6 or a fraction that leaves either part empty.
    """
    if not 2 <= k <= 6:
        raise ValueError(f"k must be in 2 ... 6, got {k}; the table has (k!)^2 rows.")
    elements = np.array(list(itertools.permutations(range(k))))
    num = len(elements)
    # Written in base k, permutations keep their lexicographic order.
    place = k ** np.arange(k)[::-1]
    a, b = np.divmod(np.arange(num * num), num)
    composed = np.take_along_axis(elements[a], elements[b], 1)
    c = np.searchsorted(elements @ place, composed @ place)
    return _split(key, a, b, c, num, fraction, tokens)


def _split(key, a, b, c, p: int, fraction: float, tokens: bool) -> Task:
    num_train = int(fraction * len(a)) if 0 < fraction < 1 else 0
    if not 0 < num_train < len(a):
        raise ValueError(
            f"fraction must be in (0, 1) and leave pairs on both sides, got {fraction} "
            f"of {len(a)} pairs."
        )
    if tokens:
        inputs = np.stack([a, np.full_like(a, p), b, np.full_like(a, p + 1)], 1)
    else:
        inputs = np.stack([a, b], 1)
    order = jax.random.permutation(key, len(a))
    x = jnp.asarray(inputs, np.int32)[order]
    y = jnp.asarray(c, np.int32)[order]
    return Task(
        Examples(x[:num_train], y[:num_train]), Examples(x[num_train:], y[num_train:])
    )


def _is_prime(p: int) -> bool:
    return p >= 2 and all(p % q for q in range(2, math.isqrt(p) + 1))


def _inverses(p: int) -> np.ndarray:
    """Inverse of every number mod a prime; 0 at 0."""
    return np.array([pow(b, p - 2, p) for b in range(p)])
