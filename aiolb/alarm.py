"""Waiting for a moment to a tenth of a millisecond; the timers of event loops round to whole ones."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from aiolb.bpf import syscall


class Alarm:
    """A timer of the kernel that one task at a time waits for; close it in the loop that waited.

    Raises OSError where there is no descriptor left for it.
    """

    def __init__(self) -> None:
        self._fd = syscall.timer_create()
        self._waiting: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, seconds: float) -> None:
        """Wait that long, or until ``ring()``."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, self._expired)
        syscall.timer_set(self._fd, max(round(seconds * 1e9), 1))
        self._waiting = self._loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None
            syscall.timer_set(self._fd, 0)

    def ring(self) -> None:
        """Wake up who waits, if somebody does."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Give the timer back."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _expired(self) -> None:
        with suppress(BlockingIOError):  # it was set anew since the loop found it readable
            os.read(self._fd, 8)
            self.ring()
