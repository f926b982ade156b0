"""Seeds side by side: several runs of one program, on one device or many.

Shapes: S seeds, axis 0 of every leaf. A seed has no axis inside its own step: alone on
a device it runs plainly, with others it is vmapped; devices run without talking to
each other. Numbers of one seed differ between layouts by rounding only.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxwm.types import PyTree

AXIS = "seeds"


def mesh_for(num_seeds: int, devices: Sequence | None = None) -> Mesh:
    """A mesh of as many devices as share the seeds evenly."""
    devices = jax.local_devices() if devices is None else devices
    num = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
    return jax.make_mesh((num,), (AXIS,), (AxisType.Auto,), devices=devices[:num])


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


def spread(mesh: Mesh, function: Callable, *, shared: int = 0) -> Callable:
    """Runs a function of batches on each device's part of the seeds.

    Args:
        mesh: from `mesh_for`.
        function: takes and returns trees with a leading seed axis; its last `shared`
            arguments have none and go to every device.
        shared: how many those are.
    """
    if mesh.size == 1:
        return function

    def apply(*args):
        own = (P(AXIS),) * (len(args) - shared)
        specs = own + (P(),) * shared
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False
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


def place(mesh: Mesh, tree: PyTree) -> PyTree:
    """Puts host arrays with a leading seed axis onto their devices, as copies.

    Copies, because the training loop overwrites its state in place.
    """
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda x: jax.device_put(x, sharding, may_alias=False), tree)
