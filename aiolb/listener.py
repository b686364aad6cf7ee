"""One bound socket in its group: joined, received from, drained, left, closed."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Self

import structlog

from aiolb import logs, remarks, sockets
from aiolb.address import Address
from aiolb.bpf import steering
from aiolb.bpf.steering import Joined, JoinOptions
from aiolb.config import ServeConfig
from aiolb.protocol import Application, CollectorProtocol
from aiolb.receive import choose
from aiolb.stats import SocketStatistics
from aiolb.tally import Tally
from aiolb.transport import create_transport

CANCEL_TIMEOUT = 5.0
"""Seconds that a cancelled handler has to clean up."""
DROPS_LOG_INTERVAL = 5.0
"""Seconds between two log lines about the kernel's drops on one socket."""


class Listener:
    """A member's socket on one address, from ``open`` to ``close``; owns the socket and the place in the group."""

    def __init__(
        self, address: Address, joined: Joined, application: Application, config: ServeConfig, *, forget: bool
    ) -> None:
        self.address = address
        self.balancer = joined.balancer
        self._place = joined.place
        self._sock = joined.sock
        self._index = config.index
        self._count = joined.place.count
        self._left = False
        self._handed_over = False
        self._forget = forget
        self._log = structlog.get_logger().bind(bind=str(address))
        self._memory = sockets.memory(self._sock)
        # An inherited socket may have drops that another worker has told of.
        self._drops_reported = (self._memory.drops, float("-inf"))
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

    @classmethod
    def open(cls, address: Address, application: Application, config: ServeConfig) -> Self:
        """Bind, join and begin to receive with the next turn of the running loop.

        Raises what :func:`aiolb.bpf.steering.join` raises; nothing is left behind then.
        """
        bind = partial(sockets.bind_buffered, size=config.rcvbuf)
        with sockets.reserved_port(address) as numbered:
            joined = steering.join(numbered, bind, JoinOptions.of(config))
        try:
            remarks.on_joined(numbered, joined, joined.sock, config.rcvbuf)
            # Nobody comes back to a port that the kernel chose.
            return cls(numbered, joined, application, config, forget=address.port == 0)
        except BaseException:
            joined.sock.close()
            joined.place.close()
            raise

    @classmethod
    def inherited(cls, address: Address, joined: Joined, application: Application, config: ServeConfig) -> Self:
        """Receive, from the next turn of the running loop on, from a socket whose place somebody else takes care of."""
        sockets.accept_datagrams(joined.sock)  # a worker before this one may have drained it
        return cls(address, joined, application, config, forget=False)

    def tell(self, tally: Tally, cell: int) -> None:
        """Keep count in ``tally`` of what was taken and is not handled yet."""
        protocol = self.protocol
        protocol.datagrams_received = tally.counting(cell, protocol.datagrams_received, protocol.held)
        self.transport.set_protocol(protocol)

    @property
    def count(self) -> int:
        """The group's number of members when it was last looked at."""
        return self._count

    def watch(self, now: float) -> bool:
        """Look at the group and at the kernel's drops, log what changed; whether the place was taken over.

        ``now``: seconds of the loop's clock.
        """
        self._report_drops(now)
        if (count := self._place.count) != self._count:
            self._log.info("count_changed", before=self._count, now=count)
            self._count = count
            logs.MEMBER.get({})["count"] = count
            if self._index >= count:
                self._log.warning("outside", hint=f"the group has no index {self._index} any more: nothing comes here")
        if self._place.restore():
            self._log.warning("place_restored", reason="it was taken over by a socket that has died")
        return self._place.displaced

    def _report_drops(self, now: float, *, last: bool = False) -> None:
        reported, at = self._drops_reported
        drops = self.memory().drops
        if drops > reported and (last or now - at >= DROPS_LOG_INTERVAL):
            self._drops_reported = (drops, now)
            self._log.warning(
                "kernel_drops",
                packets=drops - reported,
                total=drops,
                hint="raise --rcvbuf and net.core.rmem_max, or add members",
            )

    def memory(self) -> sockets.SocketMemory:
        """The socket's queue and drops in the kernel; the last known ones once it is closed."""
        if self._sock.fileno() >= 0:
            self._memory = sockets.memory(self._sock)
        return self._memory

    def leave(self) -> None:
        """Stop being selected by the balancer; what is queued or in flight still arrives. Idempotent."""
        if not self._left:
            self._left = True
            self._place.leave()

    async def drain(self) -> None:
        """Hand on everything that was sent to this member before it left, and wait until it is handled.

        Where the kernel goes on selecting the socket (a last member, no eBPF balancer), what arrives from now
        on is dropped and counted by it, so that the drain ends under load too.
        """
        await asyncio.get_running_loop().run_in_executor(None, steering.wait_for_packets_in_flight)
        sockets.refuse_datagrams(self._sock)
        while True:
            await self.protocol.has_room()
            if not self.transport.receive_now():
                break
        await self.protocol.drained()

    async def hand_over(self) -> None:
        """Read no more, and wait until what was read is handled; the kernel's queue is for the socket's next reader."""
        self._handed_over = True
        self.protocol.stop_reading()
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
        await self._end_handlers()
        self._report_drops(time.monotonic(), last=True)
        self.transport.close()
        await self.protocol.closed()
        self._place.close(forget=self._forget)
        return abandoned

    async def _end_handlers(self) -> None:
        """Wait for the cancelled handlers, but not for ever for one that will not be cancelled."""
        ending = asyncio.ensure_future(self.protocol.aclose())
        await asyncio.wait({ending}, timeout=CANCEL_TIMEOUT)
        if not ending.cancel():
            ending.result()
        else:
            self._log.error("handlers_stuck", seconds=CANCEL_TIMEOUT, hint="a handler keeps on after CancelledError")

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
