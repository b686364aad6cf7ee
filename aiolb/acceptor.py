"""Accepts the connections of one listening socket while there is room for them."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from aiolb.sampling import Sampling

if TYPE_CHECKING:
    import structlog

    from aiolb.connections import Connections

BATCH = 64
"""Connections that are accepted before the loop turns to other things."""
RETRY = 1.0
"""Seconds until the next try where the kernel cannot give a connection, for lack of descriptors or memory."""


class Acceptor:
    """Accepts from a socket that listens, from the next turn of the loop on until ``stop``; does not own it.

    While ``connections`` has no room nothing is accepted: the kernel's queue holds what comes.
    """

    def __init__(
        self, sock: socket.socket, connections: Connections, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._sock = sock
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._sampling = Sampling()
        self._retry: asyncio.TimerHandle | None = None
        self._reading = False
        self._stopped = False
        self.make_room()

    def make_room(self) -> None:
        """Accept again, if there is room."""
        if not (self._reading or self._stopped or self._retry) and self._connections.has_room:
            self._reading = True
            self._loop.add_reader(self._sock, self.accept_now)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def accept_now(self) -> int:
        """Accept what waits, as far as there is room, and one batch at most; how many connections that were."""
        for number in range(BATCH):
            if not self._connections.has_room:
                self._pause()
                return number
            try:
                sock, addr = self._sock.accept()
            except ConnectionAbortedError:  # who connected has gone again
                continue
            except BlockingIOError:
                return number
            except OSError as error:
                self._failed(error)
                return number
            sock.setblocking(False)
            self._connections.take(sock, addr)
        return BATCH

    def _failed(self, error: OSError) -> None:
        """Wait a little: the queue still has the connection, so the socket stays readable (accept(2))."""
        suppressed = self._sampling.admit(self._loop.time())
        if suppressed is not None:
            self._log.error(
                "accept_failed",
                reason=error.strerror,
                suppressed=suppressed,
                hint="raise the limit of open files (ulimit -n), or lower --concurrency",
            )
        self._pause()
        if self._retry is None:
            self._retry = self._loop.call_later(RETRY, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.make_room()

    async def accept_all(self) -> None:
        """Accept until nothing waits any more, waiting for room where there is none."""
        while not self._stopped:
            await self._connections.room()
            if self.accept_now():
                continue
            if self._retry is None:
                return
            await asyncio.sleep(RETRY)

    def stop(self) -> None:
        """Accept no more. Idempotent."""
        self._stopped = True
        self._pause()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
