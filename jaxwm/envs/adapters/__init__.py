"""Environments of other libraries as ours, and ours as theirs.

| | in | out |
| --- | --- | --- |
| brax | `from_brax` | `to_brax` |
| MuJoCo Playground | `from_playground` | `to_playground` |
| Gymnasium | | `to_gymnasium`, a `VectorEnv` |

Each loads its library when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxwm.envs.adapters.brax import from_brax, to_brax
    from jaxwm.envs.adapters.gymnasium import to_gymnasium
    from jaxwm.envs.adapters.playground import from_playground, to_playground

__all__ = [
    "from_brax",
    "from_playground",
    "to_brax",
    "to_gymnasium",
    "to_playground",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    library = name.partition("_")[2]
    try:
        return getattr(importlib.import_module(f"{__name__}.{library}"), name)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ImportError(f"{name} needs {library}: pip install {library}.") from error


def __dir__():
    return sorted([*globals(), *__all__])
