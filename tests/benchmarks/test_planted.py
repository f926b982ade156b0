"""The bench finds a planted slowdown and raises no false alarm, however busy it is."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import measure, record

BUSY = 6.0  # load per core from which nothing can be told


def row_of(turns):
    """A row of `turns` small matrix products in a loop."""

    def work(key, x):
        x = x + 1e-3 * jax.random.normal(key, x.shape)
        return jax.lax.fori_loop(0, turns, lambda i, y: jnp.tanh(x @ y), x)

    timing = measure.time_function(work, jnp.eye(64), settings=measure.Settings())
    return record.timed_row("planted", "64 x 64", 1, "calls/s", timing)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_planted_slowdown_is_found_and_nothing_else():
    if (record.load() or 0) > BUSY * record.num_cores():
        pytest.skip("the machine is busy")
    base = row_of(2000)
    for _ in range(10):
        # In turn with the one that must be found: load drifts.
        again, slower = row_of(2000), row_of(2400)
        assert not any(change.worse for change in record.changes([again], [base]))
        assert all(change.worse for change in record.changes([slower], [base]))
