"""The open connections of one socket: a task that handles each, how many may be, what became of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import perf_counter_ns
from typing import Any, Protocol

import structlog

from aiolb.handler_times import Times
from aiolb.receive.senders import PlainSenders
from aiolb.sampling import Sampling
from aiolb.stats import ConnectionStatistics

_log = structlog.get_logger(__name__)


class StreamHandlers(Protocol):
    """What is done with connections."""

    async def handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection until it returns."""
        ...

    def on_error(self, error: BaseException, addr: Any) -> None:
        """Told of each connection whose handler raised."""
        ...


class Connected(Protocol):
    """A connection that nobody reads from yet."""

    async def open(self, protocol: asyncio.StreamReaderProtocol) -> asyncio.Transport:
        """Begin to read and write."""
        ...

    def close(self) -> None:
        """Let go of it, whether it was opened or not, when its handler has ended."""
        ...


class Connections:
    """Runs a handler for each connection that it is given, until ``stop``; owns the sockets.

    ``changed`` is called whenever a connection has come or ended; it may be set later. ``reader`` is what handlers
    read from.
    """

    def __init__(
        self, handlers: StreamHandlers, concurrency: int, *, reader: type[CountingReader] | None = None
    ) -> None:
        self.changed: Callable[[], None] = _nothing
        self.received_bytes = 0
        self.senders = PlainSenders()
        """Who connected, by connections."""
        self.times = Times()
        """How long the handlers took that have ended."""
        self._reader = reader or CountingReader
        self._handlers = handlers
        self._concurrency = concurrency
        self._loop = asyncio.get_running_loop()
        self._open: set[asyncio.Task[bool]] = set()
        self._given_up: set[asyncio.Task[bool]] = set()
        self._accepted = self._closed = self._errors = self._abandoned = 0
        self._progress = asyncio.Event()
        self._sampling = Sampling()

    def take(self, sock: socket.socket, addr: Any) -> None:
        """Handle a connection that was accepted; its handler starts with the next turn of the loop."""
        self.handle(_Accepted(sock), addr)

    def handle(self, connected: Connected, addr: Any) -> None:
        """As ``take``, for a connection that need not be a socket."""
        self._accepted += 1
        self.senders.note(((b"", addr),))
        task = self._loop.create_task(self._serve(connected, addr))
        self._open.add(task)
        task.add_done_callback(partial(self._ended, connected))
        self.changed()

    @property
    def open(self) -> int:
        """Connections whose handler runs, or whose last bytes are on their way."""
        return len(self._open)

    @property
    def has_room(self) -> bool:
        """Whether one more may be taken."""
        return len(self._open) < self._concurrency

    async def room(self) -> None:
        """Return when one more may be taken."""
        await self._until(lambda: self.has_room)

    async def drained(self) -> None:
        """Return when no connection is open."""
        await self._until(lambda: not self._open)

    async def ended(self, number: int) -> None:
        """Return when so many connections have ended, and are counted."""
        await self._until(lambda: self._accepted - len(self._open) >= number)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._progress.clear()
            await self._progress.wait()

    async def _serve(self, connected: Connected, addr: Any) -> bool:
        """Handle a connection and close it; whether the handler returned."""
        reader = self._reader(self, self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport = await connected.open(protocol)
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        try:
            returned = await self._handle(reader, writer, addr)
            writer.close()
            with suppress(OSError):  # the other end has gone, and does not want the rest
                await writer.wait_closed()
        except BaseException:  # stopped; asyncio's transport takes no abort() after its end
            transport.abort()
            raise
        return returned

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, addr: Any) -> bool:
        began = perf_counter_ns()
        try:
            await self._handlers.handle_stream(reader, writer)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # it was stopped
            self._report(error, addr)
            return False
        finally:
            self.times.record(perf_counter_ns() - began)
        return True

    def _report(self, error: BaseException, addr: Any) -> None:
        """Log what a handler raised, at most once a second, and tell the application."""
        suppressed = self._sampling.admit(self._loop.time())
        if suppressed is not None:
            _log.error("handler_error", error=repr(error), addr=addr, suppressed=suppressed, exc_info=error)
        try:
            self._handlers.on_error(error, addr)
        except (Exception, asyncio.CancelledError) as second:  # noqa: BLE001 - users' code, logged
            _log.error("on_error_failed", error=repr(second), addr=addr, exc_info=second)

    def _ended(self, connected: Connected, task: asyncio.Task[bool]) -> None:
        connected.close()  # a task that was cancelled before its first step has not made a transport of it
        self._given_up.discard(task)
        if task in self._open:
            self._open.remove(task)
            if task.cancelled():
                self._abandoned += 1
            elif task.exception() is None and task.result():
                self._closed += 1
            else:
                self._errors += 1
        self._progress.set()
        self.changed()
        if not task.cancelled():
            task.result()  # what no handler raised is for the loop's exception handler

    def stop(self) -> int:
        """Cancel all handlers; the number of connections given up by this call. ``aclose`` waits for their end."""
        abandoned = len(self._open)
        self._abandoned += abandoned
        self._given_up |= self._open
        self._open.clear()
        for task in self._given_up:
            task.cancel()
        self._progress.set()
        self.changed()
        return abandoned

    def lose(self, number: int) -> None:
        """Count connections that the kernel had established, and nobody will accept."""
        self._accepted += number
        self._abandoned += number

    async def aclose(self) -> None:
        """Stop, and wait until every cancelled handler has ended."""
        self.stop()
        if self._given_up:
            await asyncio.wait(self._given_up)

    def statistics(self) -> ConnectionStatistics:
        """What became of every connection so far."""
        return ConnectionStatistics(
            accepted=self._accepted,
            open=len(self._open),
            closed=self._closed,
            errors=self._errors,
            abandoned=self._abandoned,
            received_bytes=self.received_bytes,
        )


class _Accepted:
    """A connection that the kernel gave."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def open(self, protocol: asyncio.StreamReaderProtocol) -> asyncio.Transport:
        """Make a transport of the socket."""
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, self._sock)
        return transport

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class CountingReader(asyncio.StreamReader):
    """Counts what comes in."""

    def __init__(self, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._connections = connections

    def feed_data(self, data: Any) -> None:
        """Take the bytes that the transport received."""
        self._connections.received_bytes += len(data)
        super().feed_data(data)


def _nothing() -> None:
    """Nobody wants to know."""
