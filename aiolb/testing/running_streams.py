"""A group of connections in a test: clients with any source of this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import cast

from aiolb.bpf.members import Members
from aiolb.stats import StreamStatistics
from aiolb.stream_listener import StreamListener
from aiolb.testing.life import Life
from aiolb.testing.outcomes import Outcome, Outcomes, UnhandledError
from aiolb.testing.running_base import RunningBase
from aiolb.testing.watched import S, WatchedStream


class RunningStreamGroup(RunningBase[S]):
    """The members of one group of connections, and clients with any source; see :func:`aiolb.testing.group`."""

    _members: Sequence[WatchedStream[S]]

    def __init__(
        self, joined: Members, watched: Sequence[WatchedStream[S]], lives: Sequence[Life], outcomes: Outcomes
    ) -> None:
        super().__init__(joined, watched, lives, outcomes)
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def connect(
        self, source: str | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection from a source; closed at the end of the block, which waits until its handler has ended.

        ``source`` is an address of this machine, such as any in 127.0.0.0/8; by default the group's own.

        Raises ConfigurationError for a source that is no address of this machine, ConnectionError where nobody
        accepts, what the handler raised, and UnhandledError when the deadline is over.
        """
        reader, writer, outcome = await self._opened(self._host(source))
        self._writers.add(writer)
        try:
            yield reader, writer
        finally:
            self._writers.discard(writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        try:
            await self._outcomes.wait([outcome])
        finally:
            await self._counted()

    async def send(self, data: bytes, *, source: str | None = None) -> bytes:
        """A whole connection: bytes and no more, until its handler has ended; all that was written to it.

        Raises as :meth:`connect` does.
        """
        __tracebackhide__ = True
        async with self.connect(source) as (reader, writer):
            writer.write(data)
            writer.write_eof()
            deadline = self._outcomes.deadline
            try:
                async with asyncio.timeout(deadline):
                    return await reader.read()
            except TimeoutError:
                raise UnhandledError(
                    f"the connection was not closed within {deadline:g} s",
                    hint="a handler waits for something, or deadline= is too short",
                ) from None
            except ConnectionError:  # the handler raised: that is what the end of the block raises
                return b""

    async def drained(self) -> None:
        """Wait until all connections have ended. Raises what handlers raised, and UnhandledError."""
        __tracebackhide__ = True
        await self._outcomes.settled()
        await self._counted()

    def statistics(self) -> tuple[StreamStatistics, ...]:
        """What became of each member's connections so far."""
        return tuple(cast("StreamStatistics", life.server.statistics()) for life in self._lives)

    def close(self) -> None:
        """Break the connections that are open."""
        while self._writers:
            self._writers.pop().transport.abort()
        self._outcomes.give_up_all()

    async def _opened(self, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Outcome]:
        target, sock = self._target, self._bound(socket.SOCK_STREAM, host)
        with ExitStack() as on_error:
            on_error.callback(sock.close)
            # A handler that does not read may have ended before this knows that it is connected.
            outcome = self._outcomes.expect(unit := sock.getsockname())
            on_error.callback(self._outcomes.given_up, [unit])
            try:
                await asyncio.get_running_loop().sock_connect(sock, (target.host, target.port))
            except ConnectionError:
                raise
            except OSError as error:
                raise self._cannot_send(host, error) from error
            reader, writer = await asyncio.open_connection(sock=sock)
            on_error.pop_all()
        return reader, writer, outcome

    async def _counted(self) -> None:
        """Wait until the connections whose handlers have ended are closed and counted, which comes a moment later."""
        for life, member in zip(self._lives, self._members, strict=True):
            for listener in life.server.listeners:
                await cast("StreamListener", listener).connections.ended(member.ended)
