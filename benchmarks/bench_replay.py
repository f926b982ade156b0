"""The replay ring: writing, sampling windows, and bytes of a stored step.

Rows are those of halfcheetah with its simulator states (observation 17, action 6,
physics 27, float32). The peer stores the same rows and returns windows of the same
length; it does not keep windows within one episode, ours does.
"""

from collections.abc import Iterator
from importlib import metadata

import jax
import jax.numpy as jnp

from benchmarks.measure import Settings, compare, jitted, stopwatch, time_function
from benchmarks.peer import missing
from benchmarks.record import Row, timed_row
from jaxwm import data
from jaxwm.core import tree
from jaxwm.types import Transition

OBS, ACTION, PHYSICS, WINDOW = 17, 6, 27, 10


def example() -> Transition:
    """One step of one environment."""
    return Transition(
        obs=jnp.zeros(OBS),
        action=jnp.zeros(ACTION),
        reward=jnp.zeros(()),
        discount=jnp.ones(()),
        truncated=jnp.zeros((), bool),
        next_obs=jnp.zeros(OBS),
        mask=jnp.ones(()),
        extras={"physics": jnp.zeros(PHYSICS)},
    )


def rows(settings: Settings) -> Iterator[Row]:
    num_envs = settings.pick(64, 4)
    capacity = settings.pick(1_000_000 // 64, 32)
    num_steps = settings.pick(16, 2)
    batch = settings.pick(256, 8)

    ring = data.replay(num_envs, capacity, WINDOW)
    step = example()
    shape = (num_envs, num_steps)
    new = jax.tree.map(lambda x: jnp.ones((*shape, *x.shape), x.dtype), step)
    new = new._replace(truncated=jnp.zeros(shape, bool))
    buffer = ring.init(step)
    stored = num_envs * capacity

    def add(key, state):
        del key
        buffer, index = state
        return ring.add(buffer, index, new), index + num_steps

    def sample(key, buffer, index):
        return ring.sample(key, buffer, index, batch)

    full = (buffer, jnp.int32(capacity))
    adding = time_function(add, full, settings=settings, carry=True)
    sampling = time_function(sample, *full, settings=settings)
    size = f"{stored:,} rows"
    add_row = timed_row(
        "replay/add",
        f"{size}, {num_envs} x {num_steps} at once",
        num_envs * num_steps,
        "steps/s",
        adding,
        target=1.0,
    )
    sample_row = timed_row(
        "replay/sample",
        f"{size}, {batch} windows of {WINDOW}",
        batch * WINDOW,
        "steps/s",
        sampling,
        target=1.0,
    )

    reason = missing("flashbax")
    if reason:
        yield add_row._replace(target=None, note=reason)
        yield sample_row._replace(target=None, note=reason)
    else:
        peer = flashbax_calls(num_envs, capacity, batch, step, new)
        name = f"flashbax {metadata.version('flashbax')}"
        ours = (jitted(add, full, carry=True), jitted(sample, *full))
        for row, mine, theirs in zip((add_row, sample_row), ours, peer, strict=True):
            ratio = compare(
                stopwatch(mine), stopwatch(theirs), name=name, settings=settings
            )
            yield row._replace(ratio=ratio)

    yield Row(
        "replay/bytes",
        "halfcheetah, a stored step",
        tree.num_bytes(buffer) / stored,
        "B",
        higher_is_better=False,
        target=1000.0,
        note="at most 1000 B, so that a million steps fit in 1 GB",
    )


def flashbax_calls(num_envs, capacity, batch, step, new):
    """`add` and `sample` of flashbax's trajectory buffer, compiled."""
    import flashbax

    buffer = flashbax.make_trajectory_buffer(
        add_batch_size=num_envs,
        sample_batch_size=batch,
        sample_sequence_length=WINDOW,
        period=1,
        min_length_time_axis=WINDOW,
        max_length_time_axis=capacity,
    )
    rows = new._replace(mask=None)
    state = buffer.add(buffer.init(step._replace(mask=None)), rows)
    # Filled, as ours is; filling it step by step would take minutes.
    state = state.replace(is_full=jnp.array(True))

    def add(key, state):
        del key
        return buffer.add(state, rows)

    def sample(key, state):
        return buffer.sample(state, key)

    return jitted(add, state, carry=True), jitted(sample, state)
