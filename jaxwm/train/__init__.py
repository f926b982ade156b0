"""Runs: training loops with files, signals and a console around pure functions.

The only room that touches files, clocks and the console. Names load on first use, so
that settings and errors cost no import of jax.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxwm.train import (
        checkpoint,
        chunk,
        doctor,
        errors,
        evaluate,
        fidelity,
        guard,
        plots,
        progress,
        report,
        residuals,
        settings,
        sinks,
    )
    from jaxwm.train.loop import Fitted, fit
    from jaxwm.train.run import RunDir, open_run
    from jaxwm.train.settings import RunConfig

_MODULES = (
    "checkpoint",
    "chunk",
    "doctor",
    "errors",
    "evaluate",
    "fidelity",
    "guard",
    "plots",
    "progress",
    "report",
    "residuals",
    "settings",
    "sinks",
)
_NAMES = {
    "Fitted": "loop",
    "fit": "loop",
    "RunDir": "run",
    "open_run": "run",
    "RunConfig": "settings",
}

__all__ = [
    "Fitted",
    "RunConfig",
    "RunDir",
    "checkpoint",
    "chunk",
    "doctor",
    "errors",
    "evaluate",
    "fidelity",
    "fit",
    "guard",
    "open_run",
    "plots",
    "progress",
    "report",
    "residuals",
    "settings",
    "sinks",
]


def __getattr__(name: str):
    if name in _NAMES:
        module = importlib.import_module(f"{__name__}.{_NAMES[name]}")
        return getattr(module, name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
