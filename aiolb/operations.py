"""What a supervisor is asked to do while it is at work, done one thing after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from aiolb.errors import AiolbError
from aiolb.waiting import run_until

Operation = Callable[[], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Operations:
    """Does what it is asked for, in this order, until ``stopping`` is set; used in the loop's thread."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._waiting: deque[Operation] = deque()
        self._asked = asyncio.Event()

    def ask(self, operation: Operation, *, again: bool = True) -> None:
        """Let it be done after those that wait already; without ``again`` not if it is one of them."""
        if again or operation not in self._waiting:
            self._waiting.append(operation)
            self._asked.set()

    async def run(self) -> None:
        """Do what was asked for, and what will be; what is under way when ``stopping`` is set is done to its end.

        An AiolbError is logged, and costs the one operation; any other error is raised, and sets ``stopping``.
        """
        try:
            while not self._stopping.is_set():
                if self._waiting:
                    await self._do(self._waiting.popleft())
                else:
                    self._asked.clear()
                    await run_until(self._stopping, self._asked.wait())
        finally:
            self._stopping.set()

    async def _do(self, operation: Operation) -> None:
        try:
            await operation()
        except AiolbError as error:
            _log.error("operation_failed", reason=str(error), hint=error.hint)
