"""A member's listening TCP socket: accepted from, drained, handed over, closed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from aiolb import listening
from aiolb.acceptor import Acceptor
from aiolb.address import Address
from aiolb.bpf.state import cookie
from aiolb.bpf.steering import Joined
from aiolb.config import ServeConfig
from aiolb.connections import Connections, StreamHandlers
from aiolb.listener import DROPS_LOG_INTERVAL, Listener
from aiolb.remarks import AGAINST_FULL_QUEUES
from aiolb.reporter import Reporter
from aiolb.stats import StreamSocketStatistics
from aiolb.tally import Tally


class StreamListener(Listener):
    """Hands the connections of one socket to an application's handler, as many at a time as ``concurrency`` says."""

    def __init__(
        self, address: Address, joined: Joined, application: StreamHandlers, config: ServeConfig, *, forget: bool
    ) -> None:
        super().__init__(address, joined, application, config, forget=forget)
        self._closed = False
        self._refusing = False
        self._waiting_told = float("-inf")
        self._tell: Callable[[int], None] = _tell_nobody
        self.connections = Connections(application, config.concurrency)
        self._acceptor = Acceptor(self._sock, self.connections, self._log)
        self.connections.changed = self._changed
        self._queue_limit = listening.queue_limit(self._sock)
        self._reporter = Reporter(
            config.index,
            cookie(self._sock),
            joined.reports,
            self._counts,
            sources=self.connections.senders,
            times=self.connections.times,
        )

    @property
    def drops_hint(self) -> str:
        """What to do against the kernel's drops."""
        return AGAINST_FULL_QUEUES

    def _counts(self) -> dict[str, int]:
        """Connections, under the names of datagrams: accepted ones are received, open ones in flight."""
        counts = self.statistics()
        return {
            "received": counts.accepted,
            "received_bytes": counts.received_bytes,
            "handled": counts.closed,
            "errors": counts.errors,
            "in_flight": counts.open,
            "waiting": counts.waiting,
            "queue_limit": self._queue_limit,
            "abandoned": counts.abandoned,
            "kernel_drops": counts.kernel_drops,
        }

    def _changed(self) -> None:
        self._acceptor.make_room()
        self._tell(self.connections.open)

    def tell(self, tally: Tally, cell: int) -> None:
        """Keep count in ``tally`` of the open connections."""
        self._tell = lambda held: tally.update(cell, held)

    def held(self) -> int:
        """Open connections."""
        return self.connections.open

    def watch(self, now: float) -> bool:
        """As every listener does; and log when connections wait because as many are open as may be."""
        if not self.connections.has_room and now - self._waiting_told >= DROPS_LOG_INTERVAL and self._waiting():
            self._waiting_told = now
            hint = "raise --concurrency, or add members"
            self._log.warning("connections_wait", waiting=self._waiting(), open=self.connections.open, hint=hint)
        return super().watch(now)

    def _waiting(self) -> int:
        return listening.waiting_connections(self._sock) if self._sock.fileno() >= 0 else 0

    async def drain(self) -> None:
        """Accept every connection that the kernel took for this member, close the port, and wait for their handlers.

        Who wants to connect meanwhile is refused silently: a second later it tries again, and finds another member.
        Where this user may not refuse, it is accepted; what comes after the last look is lost, and counted.
        """
        await self._packets_in_flight()
        self._report_drops(time.monotonic(), last=True)
        self._refusing = listening.refuse_connections(self._sock)
        # And those that came past the filter before it was there.
        await self._packets_in_flight()
        await self._acceptor.accept_all()
        self._stop_listening()
        await self.connections.drained()

    def _stop_listening(self) -> int:
        """Close the port, also for others that have the socket; the connections that nobody will accept."""
        self._acceptor.stop()
        if self._sock.fileno() < 0:
            return 0
        lost = listening.stop_listening(self._sock)
        self.connections.lose(lost)
        self._close_socket()
        return lost

    def _close_socket(self) -> None:
        if self._refusing:
            self.memory()  # the last look; what was refused needs no remedy
        else:
            self._report_drops(time.monotonic(), last=True)
        self._sock.close()

    def release(self) -> bool:
        """Accept no more; another process may begin to, while the connections that are open go on here."""
        self._acceptor.stop()
        if self._sock.fileno() >= 0:
            self._close_socket()
        return True

    async def hand_over(self) -> None:
        """Accept no more, and wait until the connections that are open have ended."""
        self.release()
        await self.connections.drained()

    async def close(self) -> int:
        """Cancel the handlers, close their connections and the port; the connections that were abandoned."""
        if self._closed:
            return 0
        self._closed = True
        abandoned = self.connections.stop() + self._stop_listening()
        await self._ended(self.connections.aclose())
        self._reporter.write(last=True)
        self._place.close(forget=self._forget)
        return abandoned

    def statistics(self) -> StreamSocketStatistics:
        """What this socket accepted so far."""
        return StreamSocketStatistics(
            bind=str(self.address),
            balancer=self.balancer,
            **asdict(self.connections.statistics()),
            waiting=self._waiting(),
            kernel_drops=self.memory().drops,
        )


def _tell_nobody(_held: int) -> None:
    """Nobody wants to know."""
