"""Dynamics: MuJoCo compiled by XLA (`mjx`)."""

from jaxwm.physics import mjx

__all__ = ["mjx"]
