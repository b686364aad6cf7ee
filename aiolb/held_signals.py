"""Signals that are held back while something runs that must end cleanly, and come through afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held(numbers: Iterable[signal.Signals] = STOPS) -> Iterator[list[signal.Signals]]:
    """Note the signals that come inside the block, in a list that it sees; they take effect when it ends.

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
        number: handler for number in numbers if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
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
