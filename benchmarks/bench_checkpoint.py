"""Saving and reading a state, with digests and flushing, beside orbax alone.

The peer writes the same tree with the same handler, without manifest, verification,
flushing to disk or atomic pointer.
"""

import itertools
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata

import jax
import numpy as np

from benchmarks.measure import Ratio, Settings, compare, stopwatch
from benchmarks.record import Row
from jaxwm.core import tree
from jaxwm.train import checkpoint


def rows(settings: Settings) -> Iterator[Row]:
    sizes = (1, 10, 100) if settings.full else (settings.pick(10, 0.1),)
    for megabytes in sizes:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxwm-bench-"))
        try:
            yield from save_and_restore(settings, megabytes, folder)
        finally:
            shutil.rmtree(folder)


def state_of(megabytes: float):
    """Forty arrays of noise, as weights are."""
    key = jax.random.key(0)
    count = max(1, int(megabytes * 1e6 / 4 / 40))
    return {
        f"layer_{i}": jax.random.normal(jax.random.fold_in(key, i), (count,))
        for i in range(40)
    }


def save_and_restore(settings, megabytes, folder) -> Iterator[Row]:
    import orbax.checkpoint as ocp

    state = jax.block_until_ready(state_of(megabytes))
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), state)
    size = tree.num_bytes(state) / 1e6
    ours, peer = folder / "ours", folder / "orbax"
    step = itertools.count(1)
    handler = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
    name = f"orbax-checkpoint {metadata.version('orbax-checkpoint')} alone"

    def save():
        checkpoint.save(ours, next(step), state, config={}, keep=2)

    def orbax_save():
        handler.save(peer / "state", state, force=True)

    def restore():
        return checkpoint.restore(ours, template)[1]

    def orbax_restore():
        return handler.restore(peer / "state", restore_args=as_numpy)

    for what, call, other in (
        ("save", save, orbax_save),
        ("restore", restore, orbax_restore),
    ):
        call()
        other()
        ratio = compare(stopwatch(call), stopwatch(other), name=name, settings=settings)
        yield row(what, size, ratio)


def row(what: str, size: float, ratio: Ratio) -> Row:
    return Row(
        f"checkpoint/{what}",
        f"{size:.3g} MB, 40 arrays",
        size / ratio.ours_s,
        "MB/s",
        ratio=ratio,
        target=round(1 / 1.3, 2),
        note=f"{1e3 * ratio.ours_s:.0f} ms; may take 1.3 times as long as orbax",
    )
