"""Signals that end a process, held back while something runs that must end cleanly; they come through afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held() -> Iterator[list[signal.Signals]]:
    """Note each SIGINT and SIGTERM that comes inside the block, in a list that it sees; they take effect when it ends.

    Then each is raised once: an event loop's own handler calls what it was given, and Python's raises
    KeyboardInterrupt. Ignored signals stay so. Outside of the main thread, where Python takes none, it does nothing.
    """
    came: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, _: FrameType | None) -> None:
        came.append(signal.Signals(number))

    # A running loop's wake-up would tell it of each signal a second time.
    wakeup = signal.set_wakeup_fd(-1)
    # None: somebody else than Python handles it.
    before = {
        number: handler for number in _STOPS if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
