"""One member of connections without a socket: what a test does as the other end of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from aiolb.errors import AiolbError
from aiolb.server import Server
from aiolb.stats import StreamStatistics
from aiolb.testing.fake_base import SOURCE, FakeBase
from aiolb.testing.fake_stream_listener import FakeStream, FakeStreamListener
from aiolb.testing.outcomes import Outcomes, UnhandledError
from aiolb.testing.watched import S, WatchedStream


class FakeConnection:
    """The other end of a connection that a collector handles; see :meth:`FakeStreamMember.connect`."""

    def __init__(self, stream: FakeStream, outcomes: Outcomes) -> None:
        self._stream = stream
        self._outcomes = outcomes
        self._outcome = outcomes.expect(stream)
        self._outcome.add_done_callback(lambda _: stream.progress.set())
        self._half_closed = False

    @property
    def written(self) -> bytes:
        """What the collector wrote so far."""
        return bytes(self._stream.written)

    @property
    def closed(self) -> bool:
        """Whether the collector writes no more, or the connection is broken."""
        return self._stream.finished

    def put(self, data: bytes) -> None:
        """Let bytes arrive as one piece, and do not wait. Raises AiolbError when one side has closed before."""
        if self._half_closed or self._outcome.done() or self._stream.is_closing():
            raise AiolbError("the connection is closed", hint="connect() makes another one")
        self._stream.put(bytes(data))

    async def feed(self, data: bytes) -> None:
        """``put`` bytes, and wait until the handler asks for more of them, or has ended.

        Raises what the handler raised; UnhandledError when the deadline is over.
        """
        __tracebackhide__ = True
        self.put(data)
        await self._until(lambda: self._stream.waits, "asks for no more")
        if self._outcome.done():
            await self._outcomes.wait([self._outcome])

    async def end(self, data: bytes = b"") -> bytes:
        """Send the last bytes and no more, and wait until the handler has ended; all that the collector wrote.

        Raises what the handler raised; UnhandledError when the deadline is over, or the collector stopped before.
        """
        __tracebackhide__ = True
        if data:
            self.put(data)
        self.close()
        await self._until(lambda: False, "does not end")
        await self._outcomes.wait([self._outcome])
        return self.written

    def close(self) -> None:
        """Send no more; what the collector writes is still taken. Does not wait. Idempotent."""
        if not self._half_closed:
            self._half_closed = True
            self._stream.put(None)

    def reset(self) -> None:
        """Break the connection, as when the other machine has restarted: reading raises ConnectionResetError."""
        self._half_closed = True
        self._stream.reset()

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Return when the condition holds, or the handler has ended."""
        __tracebackhide__ = True
        deadline = self._outcomes.deadline
        try:
            async with asyncio.timeout(deadline):
                while not (self._outcome.done() or condition()):
                    self._stream.progress.clear()
                    await self._stream.progress.wait()
        except TimeoutError:
            raise UnhandledError(
                f"the handler {otherwise} after {deadline:g} s",
                hint="it waits for something, or deadline= is too short",
            ) from None


class FakeStreamMember(FakeBase[S, FakeStreamListener]):
    """A started collector that gets its connections from a test; see :func:`aiolb.testing.collector`."""

    _app: WatchedStream[S]

    def __init__(self, app: WatchedStream[S], server: Server, outcomes: Outcomes) -> None:
        super().__init__(app, server, outcomes)
        self._connections: list[FakeConnection] = []

    def connect(self, addr: Any = SOURCE) -> FakeConnection:
        """Let a connection come, and do not wait: its handler begins when the loop turns.

        With ``concurrency`` of them open it waits to be accepted. ``addr`` is what the handler finds as ``peername``.
        What the test leaves open is closed at the end of the block. Raises AiolbError after the stop.
        """
        if not self._opened.listening:
            raise AiolbError(f"{type(self.collector).__name__} has stopped, and accepts nothing")
        stream = FakeStream(addr)
        connection = FakeConnection(stream, self._outcomes)
        self._connections.append(connection)
        self._opened.connect(stream, addr)
        return connection

    async def feed(self, data: bytes, addr: Any = SOURCE) -> bytes:
        """A whole connection: it comes, sends bytes and no more, and its handler ends; all that was written to it.

        Raises what the handler raised; UnhandledError when the deadline is over, or the collector stopped before.
        """
        __tracebackhide__ = True
        try:
            return await self.connect(addr).end(data)
        finally:
            await self._counted()

    async def drained(self) -> None:
        """Wait until all connections have ended. Raises what handlers raised, and UnhandledError."""
        __tracebackhide__ = True
        await self._outcomes.settled()
        await self._counted()

    def statistics(self) -> StreamStatistics:
        """What became of the connections so far."""
        return cast("StreamStatistics", self._life.server.statistics())

    def hang_up(self) -> None:
        """Close what the test left open."""
        for connection in self._connections:
            connection.close()

    async def _counted(self) -> None:
        """Wait until the connections whose handlers have ended are closed and counted, which comes a moment later."""
        await self._opened.connections.ended(self._app.ended)

    def _make_listener(self) -> FakeStreamListener:
        return FakeStreamListener(self._app, self._life.server.config)
