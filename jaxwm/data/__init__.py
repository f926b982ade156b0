"""Experience at rest: the replay ring, windows of fixed datasets, Minari files."""

from jaxwm.data import minari
from jaxwm.data.dataset import (
    concatenate,
    from_replay,
    split_episodes,
    to_replay,
)
from jaxwm.data.replay import Replay, replay, windows_at
from jaxwm.data.windows import Windows, windows

__all__ = [
    "Replay",
    "Windows",
    "concatenate",
    "from_replay",
    "minari",
    "replay",
    "split_episodes",
    "to_replay",
    "windows",
    "windows_at",
]
