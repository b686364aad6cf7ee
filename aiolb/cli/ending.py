"""How a command that goes on until it is stopped ends by a signal: at a place of its own choice."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """Whether the command is to end: see :func:`until_signal`."""

    def __init__(self, wakeup: int) -> None:
        self.came = False
        self._wakeup = wakeup

    def wait(self, seconds: float | None, *, readable: int | None = None, writable: int | None = None) -> bool:
        """Wait until a descriptor is ready, and so long at most (None: for ever); False after the time or a signal."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if readable is not None:
            poll.register(readable, select.POLLIN)
        if writable is not None:
            poll.register(writable, select.POLLOUT)
        ready = {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}
        return bool(ready) and self._wakeup not in ready

    def write(self, fd: int, data: bytes) -> bytes:
        """Write to a pipe or a terminal; what is left when a signal comes, for nobody takes it. Raises OSError."""
        while data and self.wait(None, writable=fd):
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]
        return data


@contextmanager
def until_signal() -> Iterator[Ending]:
    """Inside the block SIGINT, SIGTERM and SIGHUP do nothing but set ``came``, and end a ``wait()``.

    So nothing that is cleaned up inside is interrupted. For the main thread, and without an event loop.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    ending = Ending(reading)

    def end(_: int, __: FrameType | None) -> None:
        ending.came = True

    wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, end) for number in ENDS}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(reading)
        os.close(writing)
