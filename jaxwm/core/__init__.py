"""Machinery that knows no learning problem."""

from jaxwm.core import checks, dists, loop, optimise, stats, tree

__all__ = ["checks", "dists", "loop", "optimise", "stats", "tree"]
