"""jaxwm: world models, differentiable physics and learning theory in JAX.

The front door: everything below loads when it is first used.

    model, policy, env = jaxwm.load("runs/x")
"""

import importlib
from typing import TYPE_CHECKING

from jaxwm.version import __version__

if TYPE_CHECKING:
    from jaxwm import (
        agents,
        catalogue,
        core,
        data,
        diffusion,
        dynamics,
        envs,
        measures,
        nn,
        physics,
        recipes,
        rl,
        train,
        types,
    )
    from jaxwm.commands.exporting import export
    from jaxwm.commands.trained import load
    from jaxwm.envs import make
    from jaxwm.train.loop import fit
    from jaxwm.train.run import open_run

_ROOMS = (
    "agents",
    "catalogue",
    "core",
    "data",
    "diffusion",
    "dynamics",
    "envs",
    "measures",
    "nn",
    "physics",
    "recipes",
    "rl",
    "train",
    "types",
)
_NAMES = {
    "export": "jaxwm.commands.exporting",
    "fit": "jaxwm.train.loop",
    "load": "jaxwm.commands.trained",
    "make": "jaxwm.envs",
    "open_run": "jaxwm.train.run",
}

__all__ = [
    "__version__",
    "agents",
    "catalogue",
    "core",
    "data",
    "diffusion",
    "dynamics",
    "envs",
    "export",
    "fit",
    "load",
    "make",
    "measures",
    "nn",
    "open_run",
    "physics",
    "recipes",
    "rl",
    "train",
    "types",
]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"jaxwm.{name}")
    raise AttributeError(f"module 'jaxwm' has no attribute {name!r}")


def __dir__():
    return __all__
