"""Machinery that knows no learning problem."""

from jaxwm.core import checks, dists, inner, loop, optimise, stats, tree

__all__ = ["checks", "dists", "inner", "loop", "optimise", "stats", "tree"]
