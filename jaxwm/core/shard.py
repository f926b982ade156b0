"""Batches spread over devices: what a pure function says about its own arrays.

A function that is compiled for a mesh with the axis `"data"` may say which axis of an
array counts independent things (environments, trajectories of a batch); each device
then works on its part and gradients are summed over devices by the compiler. Without
such a mesh nothing happens, so one code path runs on one device and on many processes.
"""

import jax
from jax.sharding import PartitionSpec as P

from jaxwm.types import PyTree

AXIS = "data"


def split(tree: PyTree, axis: int = 0) -> PyTree:
    """Spreads an axis of every leaf over the devices, where it divides evenly.

    Args:
        tree: of arrays that have this axis.
        axis: counts things that do not depend on each other.
    """
    num = num_devices()
    if num == 1:
        return tree

    def one(leaf):
        if leaf.shape[axis] % num:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, P(*(None,) * axis, AXIS))

    return jax.tree.map(one, tree)


def num_devices() -> int:
    """Devices that share the batch of what is being compiled; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.axis_names else 1
