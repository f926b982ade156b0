"""How often XLA has compiled, to notice programs that are compiled again and again."""

import functools

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


def count() -> int:
    """Compilations in this process since the first call."""
    return len(_heard())


@functools.cache
def _heard() -> list[float]:
    """Filled by jax's own monitoring; the listener is registered once."""
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **_) -> None:
        if event == _EVENT:
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return durations
