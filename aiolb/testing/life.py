"""A member's life in a task of its own, as in a process of its own: from the start until it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiolb.address import Address
from aiolb.errors import ConfigurationError
from aiolb.listener import Listener
from aiolb.server import Server

Listen = Callable[[Address], Listener]


class Life:
    """Starts and stops a server. One task does both, so that ``shutdown()`` may leave what ``startup()`` entered.

    Raises ConfigurationError for a server that would change the user of this process.
    """

    def __init__(self, server: Server) -> None:
        if server.config.user is not None:
            raise ConfigurationError("a test keeps its user", hint="leave user= out")
        self.server = server
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, listen: Listen) -> None:
        """Run ``startup()`` and listen. Raises what :meth:`aiolb.server.Server.start` raises."""
        task = asyncio.create_task(self._live(listen), name=f"aiolb-member-{self.server.config.index}")
        starting = asyncio.ensure_future(self._started.wait())
        try:
            await asyncio.wait({task, starting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            starting.cancel()
        if task.done():
            task.result()
        self._task = task

    async def stop(self) -> None:
        """Stop gracefully what was started. Idempotent."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _live(self, listen: Listen) -> None:
        await self.server.prepare()
        await self.server.receive(listen)
        self._started.set()
        try:
            await self._stopping.wait()
        finally:
            await self.server.stop()
