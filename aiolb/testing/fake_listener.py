"""What stands where the kernel would be: a transport whose receive queue and network are lists, and its listener."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from typing import Any

from aiolb.address import DEFAULT_PORT, Address
from aiolb.config import ServeConfig
from aiolb.protocol import Application, CollectorProtocol
from aiolb.receive import choose
from aiolb.receive.contract import BATCH, Datagram
from aiolb.stats import SocketStatistics

BIND = Address("192.0.2.254", DEFAULT_PORT)
"""Where the member seems to be bound: an address that is nobody's (RFC 5737)."""
MAX_DATAGRAM = 65507
"""Bytes of payload that fit into one UDP datagram over IPv4."""


class FakeTransport(asyncio.DatagramTransport):
    """A transport whose receive queue and whose network are lists."""

    def __init__(self, protocol: CollectorProtocol) -> None:
        super().__init__({"sockname": (BIND.host, BIND.port), "peername": None})
        self.queue: deque[Datagram] = deque()
        self.sent: list[Datagram] = []
        self.send_errors = 0
        self.taken_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._reading = True
        self._looking = False
        self._closing = False
        protocol.connection_made(self)

    def put(self, item: Datagram) -> None:
        """Queue a datagram; it is taken with the next turn of the loop, when reading is not paused."""
        self.queue.append(item)
        self._look()

    def _look(self) -> None:
        """Take one batch with the next turn of the loop, as from a socket that is readable then."""
        if self._reading and self.queue and not self._looking:
            self._looking = True
            self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        self._looking = False
        if self._reading:
            self.receive_now()
            self._look()

    def receive_now(self) -> int:
        """Hand one batch on, also while reading is paused; how many datagrams it was."""
        batch = [self.queue.popleft() for _ in range(min(BATCH, len(self.queue)))]
        self.taken_bytes += sum(len(datagram) for datagram, _ in batch)
        if batch:
            self._protocol.datagrams_received(batch)
        return len(batch)

    def is_reading(self) -> bool:
        """Whether datagrams are taken."""
        return self._reading

    def pause_reading(self) -> None:
        """Leave datagrams in the queue."""
        self._reading = False

    def resume_reading(self) -> None:
        """Take datagrams again."""
        if not self._closing:
            self._reading = True
            self._look()

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Keep what is sent; a datagram that is too long is refused as the kernel does."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be a bytes-like object, not {type(data).__name__}")
        if addr is None:
            raise ValueError("addr is missing, the socket is not connected")
        if len(data) > MAX_DATAGRAM:
            self.send_errors += 1
            self._protocol.error_received(OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE)))
        elif not self._closing:
            self.sent.append((bytes(data), addr))

    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._closing

    def close(self) -> None:
        """Take and send nothing more."""
        if not self._closing:
            self._closing, self._reading = True, False
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """Nothing is buffered, so it is the same."""
        self.close()


class FakeListenerBase:
    """What a server sees of :class:`aiolb.listener.Listener` where there is no group."""

    address = BIND
    balancer = "none"
    key = None

    def __init__(self, config: ServeConfig) -> None:
        self.count = config.count or 1

    def leave(self) -> None:
        """There is no group."""


class FakeListener(FakeListenerBase):
    """What a server sees of :class:`aiolb.datagram_listener.DatagramListener`, over a fake transport."""

    def __init__(self, application: Application, config: ServeConfig) -> None:
        super().__init__(config)
        self.protocol = CollectorProtocol(
            application,
            concurrency=config.concurrency,
            backlog=config.backlog,
            batches=application.takes_batches,
            stepper=choose.best().stepper,
            loop=asyncio.get_running_loop(),
        )
        self.transport = FakeTransport(self.protocol)

    async def drain(self) -> None:
        """Hand on what is queued, and wait until it is handled."""
        while True:
            await self.protocol.has_room()
            if not self.transport.receive_now():
                break
        await self.protocol.drained()

    async def close(self) -> int:
        """Cancel what is still being handled; the datagrams that were abandoned."""
        abandoned = self.protocol.stop()
        while given_up := self.transport.receive_now():
            abandoned += given_up
        await self.protocol.aclose()
        self.transport.close()
        await self.protocol.closed()
        return abandoned

    def statistics(self) -> SocketStatistics:
        """What was received and sent so far."""
        lanes, transport = self.protocol.statistics(), self.transport
        return SocketStatistics(
            bind=str(self.address),
            balancer=self.balancer,
            received=lanes.received,
            received_bytes=transport.taken_bytes,
            messages=lanes.received,
            truncated=0,
            handled=lanes.handled,
            errors=lanes.errors,
            in_flight=lanes.in_flight,
            waiting=lanes.waiting + lanes.pending,
            abandoned=lanes.abandoned,
            sent=len(transport.sent),
            sent_bytes=sum(len(data) for data, _ in transport.sent),
            send_errors=transport.send_errors,
            queued_bytes=sum(len(datagram) for datagram, _ in transport.queue),
            kernel_drops=0,
        )
