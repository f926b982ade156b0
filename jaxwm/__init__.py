"""jaxwm: world models, differentiable physics and learning theory in JAX."""

from jaxwm.version import __version__

__all__ = ["__version__"]
