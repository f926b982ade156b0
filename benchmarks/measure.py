"""Timing of one compiled function, and of two things against each other.

Rules: tracing, lowering, compiling, first run and steady state are told apart; inputs
lie on the device, every repetition has its own key, `block_until_ready` waits for the
whole output, and a checksum of it is kept; two warm-ups, then at least
`min_repeats` repetitions and `min_seconds`; a compilation in the timed part is counted
and fails the row. Peers run A B A B in turn on the same cores; the ratio is the median
of the paired ratios with a bootstrap interval.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.core import stats

NOISY = 0.1  # coefficient of variation from which a row is called noisy


class Settings(NamedTuple):
    """How long to measure, and at which sizes."""

    smoke: bool = False  # tiny sizes, two repetitions: does every row still run?
    full: bool = False
    min_seconds: float = 1.0
    min_repeats: int = 7
    max_repeats: int = 1000
    pairs: int = 5
    block_seconds: float = 0.2  # one side of one pair lasts at least this long

    def pick(self, usual, smoke):
        """`usual`, or `smoke` in a smoke run."""
        return smoke if self.smoke else usual


SMOKE = Settings(True, False, 0.0, 2, 2, 2, 0.0)


class Timing(NamedTuple):
    """Seconds of one jitted function; bytes as its compiled form states them."""

    trace_s: float
    lower_s: float
    compile_s: float
    first_run_s: float  # the first call of the compiled function
    median_s: float
    p10_s: float
    p90_s: float
    min_s: float
    variation: float  # standard deviation over mean
    repeats: int
    retraces: int  # compilations during the timed part; must be 0
    peak_bytes: int  # arguments + outputs + temporaries - what they share
    checksum: float
    # Processor time of a call over that of a fixed small program run in turn with it:
    # (median, p10, p90). Other work on the machine hardly moves it, neither by taking
    # cores away nor by slowing them; waiting does not count.
    work: tuple[float, float, float] | None = None

    @property
    def noisy(self) -> bool:
        return self.variation > NOISY


class Ratio(NamedTuple):
    """Peer's seconds over ours: above 1 we are faster."""

    median: float
    low: float  # ends of the 95 % bootstrap interval
    high: float
    ours_s: float  # median seconds a call
    peer_s: float
    peer: str
    pairs: int


class _Compilations:
    """Counts backend compilations; listeners stay for the life of the process."""

    count = 0

    def __call__(self, event: str, seconds: float, **kwargs):
        del seconds, kwargs
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1


_compilations = _Compilations()
jax.monitoring.register_event_duration_secs_listener(_compilations)


@functools.cache
def _small_program() -> Callable[[], object]:
    """A millisecond or two of small matrix products, compiled."""

    def work(x):
        return jax.lax.fori_loop(0, 200, lambda i, y: jnp.tanh(x @ y), x)

    x = jnp.eye(64)
    run = jax.jit(work).lower(x).compile()
    return lambda: jax.block_until_ready(run(x))


class _Yardstick:
    """Processor seconds of a fixed small program; measured anew after some time."""

    EVERY = 0.02  # seconds: short functions are called many times in between

    def __init__(self):
        self._when, self._seconds = -np.inf, 0.0

    def __call__(self) -> float:
        if time.perf_counter() - self._when > self.EVERY:
            run = _small_program()
            start = time.process_time()
            run()
            self._seconds = time.process_time() - start
            self._when = time.perf_counter()
        return self._seconds


def num_compilations() -> int:
    """Backend compilations of this process so far."""
    return _compilations.count


def peak_bytes(compiled) -> int:
    """Arguments, outputs and temporaries of a compiled function, shared ones once."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _checksum(tree) -> float:
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        total += float(np.sum(np.asarray(leaf, np.float64)))
    return total


def jitted(fn: Callable, *args, carry: bool = False) -> Callable[[], object]:
    """A function of nothing that runs `jit(fn)(key, *args)` to its end, compiled.

    With `carry`, `fn(key, state)` returns the next state; the old one is donated.
    """
    run = jax.jit(fn, donate_argnums=1 if carry else ())
    # Donated buffers are gone after a call: keep the caller's.
    state = [jax.tree.map(jnp.copy, args[0])] if carry else None
    base = jax.random.key(0)
    keys = [jax.random.fold_in(base, i) for i in range(8)]
    count = iter(range(1 << 62))

    def call():
        key = keys[next(count) % len(keys)]
        if state is None:
            return jax.block_until_ready(run(key, *args))
        state[0] = jax.block_until_ready(run(key, state[0]))
        return state[0]

    call()
    return call


def time_function(
    fn: Callable, *args, settings: Settings, carry: bool = False
) -> Timing:
    """Compiles and times `fn(key, *args)`.

    Args:
        fn: traced once; returns a pytree of arrays.
        *args: pytrees of arrays, put on the device before the clock starts.
        settings: how long.
        carry: `fn(key, state)` returns the next state, and the old one is donated.
    """
    return timed(fn, *args, settings=settings, carry=carry)[0]


def timed(
    fn: Callable, *args, settings: Settings, carry: bool = False
) -> tuple[Timing, Callable[[int], float]]:
    """As `time_function`, and a stopwatch of the same compiled program.

    The stopwatch is a side of `compare`; nothing is compiled a second time for it.
    """
    args = jax.block_until_ready(jax.device_put(args))
    base = jax.random.key(0)
    if carry:
        args = (jax.tree.map(jnp.copy, args[0]),)

    clock = [time.perf_counter()]
    traced = jax.jit(fn, donate_argnums=1 if carry else ()).trace(base, *args)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    run = lowered.compile()
    clock.append(time.perf_counter())
    out = jax.block_until_ready(run(base, *args))
    clock.append(time.perf_counter())

    next_key = iter(range(1, 1 << 62))

    def once():
        nonlocal out
        key = jax.block_until_ready(jax.random.fold_in(base, next(next_key)))
        inputs = (out,) if carry else args
        start, busy = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(run(key, *inputs))
        busy = time.process_time() - busy
        seconds = time.perf_counter() - start
        work.append(busy / yardstick())
        return seconds

    yardstick = _Yardstick()
    work: list[float] = []
    for _ in range(2):
        once()
    before = num_compilations()
    seconds: list[float] = []
    work.clear()
    while len(seconds) < settings.max_repeats and (
        len(seconds) < settings.min_repeats or sum(seconds) < settings.min_seconds
    ):
        seconds.append(once())
    retraces = num_compilations() - before
    p10, median, p90 = np.quantile(seconds, (0.1, 0.5, 0.9))
    timing = Timing(
        *np.diff(clock).tolist(),
        median_s=float(median),
        p10_s=float(p10),
        p90_s=float(p90),
        min_s=min(seconds),
        variation=float(np.std(seconds) / np.mean(seconds)),
        repeats=len(seconds),
        retraces=retraces,
        peak_bytes=peak_bytes(run),
        checksum=_checksum(out),
        work=tuple(np.quantile(work, (0.5, 0.1, 0.9)).tolist()),
    )
    return timing, lambda calls: sum(once() for _ in range(calls)) / calls


def stopwatch(call: Callable[[], object]) -> Callable[[int], float]:
    """`run(calls) -> seconds a call` from a function of nothing that blocks."""

    def run(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls

    return run


def compare(
    ours: Callable[[int], float],
    peer: Callable[[int], float],
    *,
    name: str,
    settings: Settings,
) -> Ratio:
    """Runs both in turn, A B A B, and forms the ratio pair by pair.

    Args:
        ours: `run(calls) -> seconds a call`, warm; see `stopwatch`.
        peer: the same; a peer in another process times itself.
        name: of the peer, with its version.
        settings: number of pairs, and seconds of one block.
    """
    calls = []
    for side in (ours, peer):
        seconds = max(side(1), 1e-7)
        calls.append(max(1, min(1000, round(settings.block_seconds / seconds))))
    rows = [(ours(calls[0]), peer(calls[1])) for _ in range(settings.pairs)]
    a, b = np.asarray(rows).T
    low, high = stats.bootstrap_interval(b / a, np.median)
    return Ratio(
        float(np.median(b / a)),
        float(low),
        float(high),
        float(np.median(a)),
        float(np.median(b)),
        name,
        settings.pairs,
    )
