"""Data at rest: the replay ring, windows of fixed datasets, Minari files, tables.

`modular_task` and `permutation_task` are the small tables that networks grok.
"""

from jaxwm.data import minari
from jaxwm.data.dataset import (
    concatenate,
    from_replay,
    split_episodes,
    to_replay,
)
from jaxwm.data.modular import Examples, Task, modular_task, permutation_task
from jaxwm.data.replay import Replay, replay, windows_at
from jaxwm.data.windows import Windows, windows

__all__ = [
    "Examples",
    "Replay",
    "Task",
    "Windows",
    "concatenate",
    "from_replay",
    "minari",
    "modular_task",
    "permutation_task",
    "replay",
    "split_episodes",
    "to_replay",
    "windows",
    "windows_at",
]
