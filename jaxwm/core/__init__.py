"""Machinery that knows no learning problem."""

from jaxwm.core import (
    checks,
    constrained,
    dists,
    inner,
    loop,
    optimise,
    shard,
    stats,
    tree,
)

__all__ = [
    "checks",
    "constrained",
    "dists",
    "inner",
    "loop",
    "optimise",
    "shard",
    "stats",
    "tree",
]
