"""Cheap numbers beside the complexity: sizes of compressed files and norms.

None of them follows what a network has learnt, which is why they stand beside it.
Sizes are in bytes. Compressors run on the host, behind a callback, so every function
works in `jit`, `vmap` and loops.
"""

import bz2
import gzip
import lzma
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxwm.measures import coarse, leaves
from jaxwm.types import Params

_CODECS = {
    "bz2": bz2.compress,
    # With a fixed time stamp, equal weights give equal files.
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "lzma": lzma.compress,
}


def raw_byte_size(params: Params, codec: str = "bz2") -> Float[Array, ""]:
    """Size of the compressed floating-point weights, as they lie in memory."""
    compress = _compressor(codec)

    def measure(*arrays):
        return compress(b"".join(np.asarray(a).tobytes() for a in arrays))

    return _on_the_host(measure, *leaves.flatten(params).arrays)


def integer_byte_size(
    params: Params,
    tau: Float[Array, ""] | float,
    delta: Float[Array, ""] | float,
    codec: str = "bz2",
    *,
    stacked: leaves.Stacked = False,
) -> Float[Array, ""]:
    """Size of the compressed integers of a coarse-graining.

    The integers are those of `coarse_grain` at the same threshold and bin (balanced
    factors), leaf after leaf as int8 or int16: a general compressor beside the entropy
    that `complexity` reports. A bin of 0 (nothing feasible) gives the raw size.
    """
    compress = _compressor(codec)
    cache = coarse.svd_cache(params, stacked=stacked)
    arrays = leaves.flatten(params).arrays
    ranks = [
        None if svd is None else jax.vmap(lambda s: coarse.kept_rank(s, tau))(svd.s)
        for svd in cache
    ]

    def measure(arrays, cache, ranks, delta):
        if delta <= 0:
            return compress(b"".join(np.asarray(a).tobytes() for a in arrays))
        parts = []
        for array, svd, rank in zip(arrays, cache, ranks, strict=True):
            if svd is None:
                parts.append(np.asarray(array))
                continue
            batch, m, _ = svd.u.shape
            n = svd.vt.shape[-1]
            matrices = np.asarray(array).reshape(batch, m, n)
            for i, k in enumerate(np.asarray(rank)):
                root = np.sqrt(np.asarray(svd.s[i, :k]))
                if k * (m + n) < m * n:
                    parts.append(np.asarray(svd.u[i, :, :k]) * root)
                    parts.append(root[:, None] * np.asarray(svd.vt[i, :k]))
                else:
                    parts.append(matrices[i])
        integers = [np.rint(part / delta) for part in parts]
        return compress(b"".join(_narrow(q).tobytes() for q in integers))

    return _on_the_host(measure, arrays, cache, ranks, jnp.asarray(delta))


def l2_norm(params: Params) -> Float[Array, ""]:
    """Square root of the sum of all squared floating-point weights."""
    squares = [jnp.sum(jnp.square(a)) for a in leaves.flatten(params).arrays]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def _narrow(q: np.ndarray) -> np.ndarray:
    """The shortest type that holds integers of a coarse-graining, all below 512."""
    return q.astype(np.int8 if np.abs(q).max(initial=0) < 128 else np.int16)


def _compressor(codec: str) -> Callable[[bytes], bytes]:
    if codec not in _CODECS:
        raise ValueError(f"codec must be one of {', '.join(_CODECS)}, got {codec!r}.")
    return _CODECS[codec]


def _on_the_host(measure: Callable, *operands) -> Float[Array, ""]:
    """Length of what `measure` returns for the operands."""
    return jax.pure_callback(
        lambda *args: np.float32(len(measure(*args))),
        jax.ShapeDtypeStruct((), jnp.float32),
        *operands,
        vmap_method="sequential",
    )
