"""Stopping politely: the first SIGTERM or SIGINT asks, the second one ends.

Python runs its handlers only between byte codes, so during a long compiled call a
second signal would go unheard. The interpreter's wake-up pipe is written the moment a
signal arrives; a thread reads it.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def polite(note: Callable[[str], None]) -> Iterator[threading.Event]:
    """Yields an event that the first signal sets; the second ends the process.

    Args:
        note: is told, once, what happens now. Called from another thread.

    Outside the main thread, where Python allows no handlers, the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen():
        while received := reader.recv(1):
            number = received[0]
            if number not in _SIGNALS:
                continue
            if stop.is_set():
                os._exit(128 + number)
            stop.set()
            name = signal.Signals(number).name
            note(f"{name}: finishing this chunk and saving; once more ends at once")

    thread = threading.Thread(target=listen, name="jaxwm-signals", daemon=True)
    thread.start()
    # A handler must exist, or the default action ends the process.
    before = {s: signal.signal(s, lambda *_: None) for s in _SIGNALS}
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # ends the thread
        thread.join()
        reader.close()
