"""Where a run's arrays live: several seeds, one device or many, one process or many.

Shapes: S seeds, axis 0 of every leaf. Three ways to use D devices, `shard`:

"seeds":  every device has some seeds to itself, and devices never talk. A seed alone
          on a device runs plainly, with others it is vmapped.
"batch":  all seeds lie on all devices; what a learner names in `Learner.axes`
          (environments, replay) is cut into D parts, the rest is copied. The compiler
          puts the sums over devices where gradients need them.
"params": as "batch", and large arrays of the rest are cut as well: each device holds
          a part of weights and optimiser and fetches the others as it needs them.

Numbers of one seed differ between layouts by rounding only.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxwm.core import shard as batches
from jaxwm.types import PyTree

SEEDS = "seeds"
WAYS = ("seeds", "batch", "params")
_LARGE = 1 << 16  # numbers of an array worth cutting


class Layout(NamedTuple):
    """Devices in a row, and what they share."""

    mesh: Mesh
    shard: str  # of WAYS

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, P())

    @property
    def per_seed(self) -> NamedSharding:
        """Of arrays `[S, ...]` that have no axis but the seeds' to cut."""
        cut = P(SEEDS) if self.shard == "seeds" else P()
        return NamedSharding(self.mesh, cut)

    def of_state(self, state: PyTree, axes: Callable | None) -> PyTree:
        """Shardings of a learner's state; leaves of `state` are `[S, ...]`.

        Args:
            state: arrays or shapes.
            axes: `Learner.axes`.

        Raises:
            ValueError: where the learner does not say what may be cut, or devices do
                not divide what it named.
        """
        if self.shard == "seeds":
            return jax.tree.map(lambda _: self.per_seed, state)
        if axes is None:
            raise ValueError(
                f'shard="{self.shard}" needs a learner with `axes`, which says which '
                'axis of its state counts environments; shard="seeds" needs none.'
            )
        return jax.tree_util.tree_map_with_path(self._cut, state, axes(state))

    def _cut(self, path, leaf, axis: int) -> NamedSharding:
        """The sharding of one leaf `[S, ...]` with its axis, -1 for none."""
        num = self.mesh.size
        if axis >= 0 and leaf.shape[axis + 1] % num:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} counts {leaf.shape[axis + 1]} "
                f"environments, which {num} devices cannot share evenly; choose "
                f"num_envs as a multiple of {num}."
            )
        if axis < 0 and self.shard == "params" and leaf.size >= _LARGE:
            fits = [i for i, n in enumerate(leaf.shape) if i and n % num == 0]
            if fits:
                axis = max(fits, key=lambda i: leaf.shape[i]) - 1
        spec = P() if axis < 0 else P(*(None,) * (axis + 1), batches.AXIS)
        return NamedSharding(self.mesh, spec)


def choose(num_seeds: int, shard: str = "seeds", devices: Sequence | None = None):
    """The layout of a run.

    Args:
        num_seeds: S.
        shard: one of `WAYS`. "seeds" takes as many devices of this process as share
            the seeds evenly, the others all devices of all processes.
        devices: others than jax's own.

    Raises:
        ValueError: for an unknown way, and for "seeds" over several processes.
    """
    if shard not in WAYS:
        raise ValueError(f"shard must be one of {', '.join(WAYS)}, got {shard!r}.")
    name = batches.AXIS
    if shard == "seeds":
        if jax.process_count() > 1:
            raise ValueError(
                f'shard must be "batch" or "params" where {jax.process_count()} '
                'processes work on one run, got "seeds".'
            )
        devices = jax.local_devices() if devices is None else devices
        num = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
        name, devices = SEEDS, devices[:num]
    devices = jax.devices() if devices is None else devices
    mesh = jax.make_mesh((len(devices),), (name,), (AxisType.Auto,), devices=devices)
    return Layout(mesh, shard)


def check(seeds: Sequence[int]) -> np.ndarray:
    """The seeds as `[S]` uint32.

    Raises:
        ValueError: for none, for repeated ones, and outside [0, 2^32).
    """
    if not len(seeds) or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be one or more different numbers, got {seeds}.")
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise ValueError(f"seeds must lie in [0, 2^32), got {seeds}.")
    return np.asarray(seeds, np.uint32)


def spread(layout: Layout, function: Callable, *, shared: int = 0) -> Callable:
    """Runs a function of batches of seeds on the layout's devices.

    Args:
        layout: from `choose`.
        function: takes and returns trees with a leading seed axis; its last `shared`
            arguments have none and go to every device.
        shared: how many those are.
    """
    if layout.shard != "seeds" or layout.mesh.size == 1:
        return function

    def anew(tree):
        """Empty leaves made anew: jaxlib 0.11.2 crashes where one is handed through."""
        return jax.tree.map(lambda x: x if x.size else jnp.zeros_like(x), tree)

    def apply(*args):
        own = (P(SEEDS),) * (len(args) - shared)
        specs = own + (P(),) * shared
        return jax.shard_map(
            lambda *args: anew(function(*anew(args))),
            mesh=layout.mesh,
            in_specs=specs,
            out_specs=P(SEEDS),
            check_vma=False,
        )(*args)

    return apply


def each(function: Callable, *, shared: int = 0) -> Callable:
    """Applies a function of one seed along axis 0 of all but the last arguments."""

    def apply(*args):
        split = len(args) - shared
        own, rest = args[:split], args[split:]
        if jax.tree.leaves(own)[0].shape[0] > 1:
            return jax.vmap(function, (0,) * split + (None,) * shared)(*args)
        out = function(*jax.tree.map(lambda x: jnp.squeeze(x, 0), own), *rest)
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), out)

    return apply


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts host arrays where their shardings say, as copies.

    Copies, because the training loop overwrites its state in place. With several
    processes each one hands in the whole arrays and keeps its devices' parts.

    Args:
        tree: of numpy arrays or numbers, the same in all processes.
        shardings: one per leaf, or one for all.
    """

    def put(leaf, sharding):
        leaf = np.asarray(leaf)
        parts = [
            jax.device_put(leaf[index], device, may_alias=False)
            for device, index in sharding.addressable_devices_indices_map(
                leaf.shape
            ).items()
        ]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)
    return jax.tree.map(put, tree, shardings)


def fetch(tree: PyTree) -> PyTree:
    """Arrays that this process can read in full; all processes must call it."""

    def whole(leaf):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)
