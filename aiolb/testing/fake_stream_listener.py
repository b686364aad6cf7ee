"""What stands where the kernel would be for connections: transports whose network is memory, and their listener."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import asdict
from typing import Any

from aiolb.config import ServeConfig
from aiolb.connections import Connections, CountingReader, StreamHandlers
from aiolb.stats import StreamSocketStatistics
from aiolb.testing.fake_listener import BIND, FakeListenerBase
from aiolb.testing.watched import UNIT


class FakeStream(asyncio.Transport):
    """A connection (:class:`aiolb.connections.Connected`), and the transport that its handler gets."""

    def __init__(self, addr: Any) -> None:
        super().__init__({"peername": addr, "sockname": (BIND.host, BIND.port)})
        self.written = bytearray()
        self.finished = False
        """Whether the collector writes no more: it has closed the connection, or its half of it."""
        self.progress = asyncio.Event()
        """Set whenever the handler may have got further."""
        self._incoming: deque[bytes | None] = deque()  # None is the end
        self._protocol: asyncio.StreamReaderProtocol | None = None
        self._reader: WaitingReader | None = None
        self._reading = True
        self._closing = False

    # What comes from the other end

    def put(self, data: bytes | None) -> None:
        """Let bytes arrive as one piece, or, with None, the end of them."""
        self._incoming.append(data)
        self._deliver()

    def reset(self) -> None:
        """Let the other end break the connection."""
        self._incoming.clear()
        self._lose(ConnectionResetError("Connection reset by peer"))

    @property
    def waits(self) -> bool:
        """Whether the handler has got all that was put, and asks for more."""
        return not self._incoming and self._reader is not None and self._reader.waits

    def _deliver(self) -> None:
        while self._protocol is not None and self._reading and not self._closing and self._incoming:
            piece = self._incoming.popleft()
            if piece is None:
                self._protocol.eof_received()
            else:
                self._protocol.data_received(piece)

    # What connections are asked for

    async def open(self, protocol: asyncio.StreamReaderProtocol) -> asyncio.Transport:
        """Begin to read and write."""
        self._protocol = protocol
        protocol.connection_made(self)
        if self._closing:  # it was broken before it was accepted
            protocol.connection_lost(ConnectionResetError("Connection reset by peer"))
        self._deliver()
        return self

    def began(self, reader: WaitingReader) -> None:
        """A handler has begun to read."""
        self._reader = reader

    def close(self) -> None:
        """Read and write no more. Idempotent."""
        self._lose(None)

    def abort(self) -> None:
        """Nothing is buffered, so it is the same."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._closing:
            self._closing = self.finished = True
            if self._protocol is not None:
                asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)
        self.progress.set()

    # What writers and readers ask for

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Who is at the two ends; and itself, which no other connection is."""
        return self if name == UNIT else super().get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._closing

    def is_reading(self) -> bool:
        """Whether bytes are taken."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Leave bytes where they are."""
        self._reading = False

    def resume_reading(self) -> None:
        """Take bytes again; with the next turn of the loop, as a socket would give them."""
        self._reading = True
        asyncio.get_running_loop().call_soon(self._deliver)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Keep what is written."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be a bytes-like object, not {type(data).__name__}")
        if self.finished and not self._closing:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not self._closing:
            self.written += data
            self.progress.set()

    def can_write_eof(self) -> bool:
        """It can be closed by halves, as TCP can."""
        return True

    def write_eof(self) -> None:
        """Write no more."""
        self.finished = True
        self.progress.set()

    def get_write_buffer_size(self) -> int:
        """Nothing is buffered: the other end takes everything at once."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered, so there is nothing to limit."""


class WaitingReader(CountingReader):
    """A reader that knows when its handler asks for more than it has got."""

    waits = False

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Get the transport, and let it know who reads."""
        super().set_transport(transport)
        if isinstance(transport, FakeStream):
            transport.began(self)
            self._progress = transport.progress

    def feed_data(self, data: Any) -> None:
        """Take bytes: then a handler that waits goes on."""
        self.waits = False
        super().feed_data(data)

    def feed_eof(self) -> None:
        """Take the end."""
        self.waits = False
        super().feed_eof()

    async def _wait_for_data(self, func_name: str) -> None:
        # There is no public place where every way to read comes along; asyncio has had this one since Python 3.4.
        self.waits = True
        self._progress.set()
        try:
            await super()._wait_for_data(func_name)  # type: ignore[misc] # typeshed has public names only
        finally:
            self.waits = False


class FakeStreamListener(FakeListenerBase):
    """What a server sees of :class:`aiolb.stream_listener.StreamListener`, over connections from a test."""

    def __init__(self, application: StreamHandlers, config: ServeConfig) -> None:
        super().__init__(config)
        self.listening = True
        self.connections = Connections(application, config.concurrency, reader=WaitingReader)
        self.connections.changed = self._accept
        self._waiting: deque[tuple[FakeStream, Any]] = deque()

    def connect(self, stream: FakeStream, addr: Any) -> None:
        """Let a connection come; it waits to be accepted while as many are open as may be."""
        self._waiting.append((stream, addr))
        self._accept()

    def _accept(self) -> None:
        while self._waiting and self.connections.has_room:
            self.connections.handle(*self._waiting.popleft())

    async def drain(self) -> None:
        """Accept what waits, and wait until all connections have ended."""
        while self._waiting:
            await self.connections.room()
            self._accept()
        self.listening = False
        await self.connections.drained()

    async def close(self) -> int:
        """Cancel the handlers and close their connections; the connections that were abandoned."""
        self.listening = False
        lost = [stream for stream, _ in self._waiting]
        self._waiting.clear()
        abandoned = self.connections.stop() + len(lost)
        self.connections.lose(len(lost))
        for stream in lost:
            stream.abort()
        await self.connections.aclose()
        return abandoned

    def statistics(self) -> StreamSocketStatistics:
        """What was accepted so far."""
        return StreamSocketStatistics(
            bind=str(self.address),
            balancer=self.balancer,
            **asdict(self.connections.statistics()),
            waiting=len(self._waiting),
            kernel_drops=0,
        )
