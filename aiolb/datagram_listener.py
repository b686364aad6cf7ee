"""A member's UDP socket: received from, drained, handed over, closed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from functools import partial

from aiolb import remarks, sockets
from aiolb.address import Address
from aiolb.bpf.state import cookie
from aiolb.bpf.steering import Joined
from aiolb.config import ServeConfig
from aiolb.listener import Listener
from aiolb.protocol import Application, CollectorProtocol
from aiolb.receive import choose
from aiolb.reporter import Reporter
from aiolb.stats import SocketStatistics
from aiolb.tally import Tally
from aiolb.transport import create_transport

COUNTED = (
    "received",
    "received_bytes",
    "messages",
    "truncated",
    "handled",
    "errors",
    "in_flight",
    "waiting",
    "abandoned",
    "sent",
    "sent_bytes",
    "send_errors",
    "queued_bytes",
    "kernel_drops",
)
"""The counters of SocketStatistics that a report has under the same names."""


class DatagramListener(Listener):
    """Hands the datagrams of one socket to an application's handlers, in lanes."""

    def __init__(
        self, address: Address, joined: Joined, application: Application, config: ServeConfig, *, forget: bool
    ) -> None:
        super().__init__(address, joined, application, config, forget=forget)
        self._handed_over = False
        parts = choose.best()
        if parts.trains:
            sockets.enable_gro(self._sock)
        protocol_factory = partial(
            CollectorProtocol,
            application,
            concurrency=config.concurrency,
            backlog=config.backlog,
            batches=application.takes_batches,
            stepper=parts.stepper,
            loop=asyncio.get_running_loop(),
        )
        receiver_factory = partial(parts.receiver, timestamps=application.timestamps)
        self.transport, self.protocol = create_transport(
            asyncio.get_running_loop(), self._sock, protocol_factory, receiver_factory, parts.replies
        )
        self._reporter = Reporter(
            config.index,
            cookie(self._sock),
            joined.reports,
            self._counts,
            sources=self.transport.receiver,
            times=self.protocol.handler_times,
            batch_sizes=lambda: self.transport.receiver.batch_sizes,
        )

    @property
    def drops_hint(self) -> str:
        """What to do against the kernel's drops."""
        return remarks.against_drops(self._memory.limit)

    def _counts(self) -> dict[str, int]:
        counts = asdict(self.statistics())
        return {name: counts[name] for name in COUNTED} | {"queue_limit": self._memory.limit}

    def tell(self, tally: Tally, cell: int) -> None:
        """Keep count in ``tally`` of what was taken and is not handled yet."""
        protocol = self.protocol
        protocol.datagrams_received = tally.counting(cell, protocol.datagrams_received, protocol.held)
        self.transport.set_protocol(protocol)

    def held(self) -> int:
        """Datagrams that were taken and are not handled yet."""
        return self.protocol.held()

    async def drain(self) -> None:
        """Hand on everything that was sent to this member before it left, and wait until it is handled.

        Where the kernel goes on selecting the socket (a last member, no eBPF balancer), what arrives from now
        on is dropped and counted by it, so that the drain ends under load too.
        """
        await self._packets_in_flight()
        sockets.refuse_datagrams(self._sock)
        while True:
            await self.protocol.has_room()
            if not self.transport.receive_now():
                break
        await self.protocol.drained()

    def release(self) -> bool:
        """Read no more; the next owner would overtake what was read, so it must wait for ``hand_over``."""
        self._handed_over = True
        self.protocol.stop_reading()
        return False

    async def hand_over(self) -> None:
        """Read no more, and wait until what was read is handled; the kernel's queue is for the socket's next reader."""
        self.release()
        await self.protocol.drained()

    async def close(self) -> int:
        """Cancel what is still being handled, send what was replied, close; the datagrams that were abandoned.

        What still waits in the kernel's queue counts among them, unless it was handed over. Idempotent.
        """
        if self._sock.fileno() < 0:
            return 0
        abandoned = self.protocol.stop()
        if not self._handed_over:
            sockets.refuse_datagrams(self._sock)
            while given_up := self.transport.receive_now():
                abandoned += given_up
        await self._ended(self.protocol.aclose())
        self._report_drops(time.monotonic(), last=True)
        self.transport.close()
        await self.protocol.closed()
        self._reporter.write(last=True)
        self._place.close(forget=self._forget)
        return abandoned

    def statistics(self) -> SocketStatistics:
        """What this socket received and sent so far."""
        lanes, receiver, memory = self.protocol.statistics(), self.transport.receiver, self.memory()
        return SocketStatistics(
            bind=str(self.address),
            balancer=self.balancer,
            received=lanes.received,
            received_bytes=receiver.bytes,
            messages=receiver.messages,
            truncated=receiver.truncated,
            handled=lanes.handled,
            errors=lanes.errors,
            in_flight=lanes.in_flight,
            waiting=lanes.waiting + lanes.pending,
            abandoned=lanes.abandoned,
            sent=self.transport.datagrams_sent,
            sent_bytes=self.transport.bytes_sent,
            send_errors=self.transport.send_errors,
            queued_bytes=memory.queued,
            kernel_drops=memory.drops,
        )
