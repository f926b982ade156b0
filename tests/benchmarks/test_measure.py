"""The stopwatch tells the truth: about sleeping, recompiling and paired runs."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import measure
from benchmarks.measure import SMOKE, Settings


def test_a_sleep_of_20_ms_takes_at_least_20_ms():
    def sleeper(key, x):
        del key

        def nap(x):
            time.sleep(0.02)
            return np.asarray(x)

        return jax.pure_callback(nap, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    timing = measure.time_function(sleeper, jnp.ones(3), settings=SMOKE)
    assert 0.02 <= timing.min_s <= timing.median_s <= timing.p90_s
    assert timing.repeats == 2
    assert timing.checksum == 3.0


def test_a_warm_function_is_not_compiled_again():
    timing = measure.time_function(
        lambda key, x: x + jax.random.normal(key), jnp.zeros(()), settings=SMOKE
    )
    assert timing.retraces == 0
    assert timing.compile_s > 0


def test_compilations_are_counted():
    before = measure.num_compilations()
    jax.jit(lambda x: x * 1.2345)(jnp.zeros(7))
    assert measure.num_compilations() > before


def test_a_compilation_in_the_timed_part_is_reported():
    def compiles_inside(key, x):
        del key

        def recompile(x):
            scale = time.perf_counter()  # a new constant, hence a new program
            jax.jit(lambda y: y * scale).lower(np.ones(2, np.float32)).compile()
            return np.asarray(x)

        return jax.pure_callback(recompile, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    timing = measure.time_function(compiles_inside, jnp.ones(()), settings=SMOKE)
    assert timing.retraces == timing.repeats


def test_a_carried_state_advances_and_the_callers_copy_survives():
    start = jnp.zeros(4)
    timing = measure.time_function(
        lambda key, x: x + 1, start, settings=SMOKE, carry=True
    )
    # One first run, two warm-ups, two repetitions; four entries.
    assert timing.checksum == 4 * 5
    assert float(start.sum()) == 0


def test_peak_bytes_count_arguments_outputs_and_temporaries():
    compiled = jax.jit(lambda x: x + 1).lower(jnp.zeros(1000)).compile()
    assert measure.peak_bytes(compiled) == 8000
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros(1000))
    assert measure.peak_bytes(donated.compile()) == 4000


def test_the_ratio_is_two_when_the_peer_takes_twice_as_long():
    ratio = measure.compare(
        lambda calls: 0.5,
        lambda calls: 1.0,
        name="slow",
        settings=SMOKE._replace(pairs=5),
    )
    assert ratio.median == ratio.low == ratio.high == 2.0
    assert (ratio.ours_s, ratio.peer_s, ratio.pairs) == (0.5, 1.0, 5)


def test_sides_alternate_and_blocks_last_equally_long():
    order = []

    def side(name, seconds):
        def run(calls):
            order.append((name, calls))
            return seconds

        return run

    settings = Settings(pairs=3, block_seconds=1.0)
    measure.compare(side("a", 0.1), side("b", 0.5), name="b", settings=settings)
    assert order == [("a", 1), ("b", 1)] + 3 * [("a", 10), ("b", 2)]


def test_pairs_cancel_a_drift_that_separate_runs_would_not():
    clock = iter(np.repeat([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], 2))  # ever slower machine
    ratio = measure.compare(
        lambda calls: next(clock),
        lambda calls: 1.5 * next(clock),
        name="peer",
        settings=SMOKE._replace(pairs=5),
    )
    assert ratio.median == pytest.approx(1.5)
    assert ratio.high - ratio.low == pytest.approx(0)
