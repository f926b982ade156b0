"""Machinery that knows no learning problem."""

from jaxwm.core import dists, loop, optimise, stats, tree

__all__ = ["dists", "loop", "optimise", "stats", "tree"]
