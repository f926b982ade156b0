"""What the spectral-entropy penalty adds to a training step.

The reduced grokking network in chunks of steps, with the penalty on every k-th step and
without, in turn. Longer runs, other methods and the effect: `spectral_penalty.py`.
"""

import dataclasses
from collections.abc import Iterator

import jax

from benchmarks.measure import Settings, compare, stopwatch
from benchmarks.record import Row
from benchmarks.spectral_penalty import chunk_of
from jaxwm.recipes import complexity_grokking as recipe

EVERY = 20  # steps from one penalty to the next


def rows(settings: Settings) -> Iterator[Row]:
    small = dict(p=7, embed=8, hidden=(8,), every=2) if settings.smoke else {}
    base = recipe.Config(**{"every": EVERY, "method": "svd", **small})
    num_steps = settings.pick(100, 2)
    sides = {}
    for name, spectral in (("plain", 0.0), ("penalised", 0.1)):
        config = dataclasses.replace(base, spectral=spectral)
        chunk, state = chunk_of(config, num_steps)
        sides[name] = stopwatch(
            lambda chunk=chunk, state=state: jax.block_until_ready(chunk(state))
        )
    ratio = compare(
        sides["penalised"], sides["plain"], name="no penalty", settings=settings
    )
    extra = [100 * (1 / r - 1) for r in (ratio.median, ratio.high, ratio.low)]
    yield Row(
        "spectral/penalty",
        f"every {base.every}th step, {base.method}",
        extra[0],
        "% of a step",
        higher_is_better=False,
        target=15.0,
        note=f"95 % interval {extra[1]:.1f} to {extra[2]:.1f}",
    )
