"""What this machine can do at most; every other row is read against it.

Matrix products (float32, bfloat16), a copy into fresh and into donated memory (reads
and writes counted), and the cost of calling one jitted function.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Settings, compare, jitted, stopwatch, time_function
from benchmarks.record import Row, timed_row


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.pick(1024, 64)
    for dtype in (jnp.float32, jnp.bfloat16):
        yield matmul(settings, size, dtype)
    floats = settings.pick(1 << 26, 1 << 12)
    yield copy(settings, floats, donated=True)
    yield copy(settings, floats, donated=False)
    yield dispatch(settings)


def matmul(settings: Settings, size: int, dtype) -> Row:
    a = jax.random.normal(jax.random.key(1), (size, size), dtype)
    b = jax.random.normal(jax.random.key(2), (size, size), dtype)

    def product(key, a, b):
        del key
        return a @ b

    timing = time_function(product, a, b, settings=settings)
    name = f"machine/matmul_{jnp.dtype(dtype).name}"
    row = timed_row(name, f"{size} x {size}", 2e-9 * size**3, "GFLOP/s", timing)
    if dtype != jnp.float32:
        return row
    x, y = np.array(a), np.array(b)
    ratio = compare(
        stopwatch(jitted(product, a, b)),
        stopwatch(functools.partial(np.matmul, x, y)),
        name=f"numpy {np.__version__}",
        settings=settings,
    )
    return row._replace(ratio=ratio)


def copy(settings: Settings, floats: int, donated: bool) -> Row:
    x = jnp.zeros(floats)

    def increment(key, x):
        del key
        return x + 1

    timing = time_function(increment, x, settings=settings, carry=donated)
    name = "machine/copy_donated" if donated else "machine/copy_fresh"
    return timed_row(name, f"{4e-6 * floats:.3g} MB", 8e-9 * floats, "GB/s", timing)


def dispatch(settings: Settings) -> Row:
    """Microseconds from the call of a jitted scalar function to its result."""

    def increment(key, x):
        del key
        return x + 1

    timing = time_function(increment, jnp.zeros(()), settings=settings)
    row = timed_row("machine/dispatch", "scalar", 1.0, "us", timing)
    return row._replace(value=1e6 * timing.median_s, higher_is_better=False)
