"""Round trips to a collector that echoes: numbered datagrams at a rate, and when their answers came."""

from __future__ import annotations

import asyncio
import math
import secrets
import select
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from types import TracebackType
from typing import Self

from aiolb.address import Address, IPNetwork
from aiolb.errors import AiolbError, ConfigurationError
from aiolb.histogram import Histogram, microseconds
from aiolb.pacing import Schedule
from aiolb.receive.plain import PlainReceiver
from aiolb.round_trips import PERCENTILES, EchoStatistics, RoundTrips
from aiolb.send.config import PublisherConfig, source_addresses
from aiolb.send.sources import Source, allow_descriptors, open_socket, resolve
from aiolb.send.statistics import rate_reached
from aiolb.send.timed import Planned, Timed
from aiolb.stamp import Stamp

PATIENCE = 1.0
"""Seconds without any answer after which those that are missing are lost."""

READY = 64
"""Sockets that are read before the event loop gets a turn."""

QUIET = 0.1
"""Seconds without any answer after which, with all of them there, no further one is waited for."""


class EchoPublisher:
    """Sends numbered datagrams to one target at a rate, and measures when they come back; entered and run once.

    The arguments are those of :class:`aiolb.publisher.Publisher`; the rate must be a number. A round trip is
    measured from the time when the datagram was due, not from when it left, so that a stall makes all that it
    holds up late (coordinated omission). Its end is when the kernel got the answer (SO_TIMESTAMPNS, socket(7)).
    Raises what a publisher raises.
    """

    def __init__(
        self,
        target: Address | str,
        *,
        rate: float | None,
        count: int | None = None,
        duration: float | None = None,
        size: int | None = None,
        payload: bytes | None = None,
        sources: int | str | IPNetwork = 1,
    ) -> None:
        self.config = PublisherConfig(target, rate, count, duration, size, payload, sources, stamp=True, gso="off")
        if rate is None or rate == math.inf:
            raise ConfigurationError(
                "round trips are measured from the time when a datagram is due, and without a rate there is none",
                hint="give a rate, e.g. --rate 1000",
            )
        self.run_id = secrets.randbits(64)
        """The random 64-bit number in the stamps of this publisher."""
        self._rate = rate
        self._stack = ExitStack()
        self._timed: Timed | None = None
        self._sources: list[Source] = []
        self._receivers: dict[int, tuple[Source, PlainReceiver]] = {}
        self._round_trips = RoundTrips(self.run_id)
        self._epoch_ns = 0
        self._news = asyncio.Event()
        self._started = self._waiting = self._given_up = False

    async def __aenter__(self) -> Self:
        if self._timed is not None:
            raise AiolbError("the publisher was entered before", hint="make another one")
        target, sockaddr = await resolve(self.config)
        number, addresses = source_addresses(self.config.source_set, target)
        allow_descriptors(number + 2)
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            self._timed = Timed()
            stack.callback(self._timed.close)
            # The loop watches this alone: uvloop silently stops to watch a socket to which an ICMP error comes.
            self._epoll = stack.enter_context(select.epoll())
            loop.add_reader(self._epoll, self._receive)
            stack.callback(loop.remove_reader, self._epoll)
            stack.callback(self._close)
            for n, address in enumerate(islice(cycle(addresses), number)):
                self._open(Source(n, open_socket(target, address, sockaddr)))
            self._stack = stack.pop_all()
        return self

    def _open(self, source: Source) -> None:
        self._sources.append(source)
        receiver = PlainReceiver(source.sock, size=self.config.datagram_size + 1, timestamps=True)
        self._receivers[source.sock.fileno()] = source, receiver
        self._epoll.register(source.sock, select.EPOLLIN)

    def _close(self) -> None:
        for source in self._sources:
            source.wake()
            source.sock.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._stack.close()

    async def run(self) -> EchoStatistics:
        """Send until the count or the duration is reached, or stop(); then wait for answers that are on their way.

        What was not answered when none came for PATIENCE is lost; stop() while it waits ends that.
        """
        if self._timed is None or self._started:
            raise AiolbError("the publisher is not open, or was run", hint="use it as `async with EchoPublisher(…)`")
        self._started = True
        start = time.monotonic()
        # Stamps hold times since 1970; one offset for the whole run keeps a clock that is set out of it.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        end = math.inf if self.config.duration is None else start + self.config.duration
        await self._timed.run(self._plan(start, end), end=end)
        await self._wait_for_answers(self._timed.sent)
        return self.statistics()

    def stop(self) -> None:
        """End the sending at once; called again, the waiting for answers too."""
        if self._timed is not None:
            self._timed.stop()
        self._given_up = self._waiting
        self._news.set()

    def statistics(self) -> EchoStatistics:
        """What was sent and answered so far; may be asked at any time, after the end too."""
        timed, trips = self._timed, self._round_trips
        sent, seconds = (timed.sent, timed.seconds) if timed else (0, 0.0)
        per_source: dict[str, int] = {}
        for source in self._sources:
            per_source[source.address] = per_source.get(source.address, 0) + source.sent
        return EchoStatistics(
            sent=sent,
            bytes=timed.bytes if timed else 0,
            seconds=seconds,
            rate_asked=self._rate,
            rate_reached=rate_reached(sent, seconds, self._rate),
            sources=len(per_source),
            sent_per_source=per_source,
            failed=timed.failed if timed else 0,
            trains=0,
            errors=dict(timed.errors) if timed else {},
            answered=trips.answered,
            duplicated=trips.duplicated,
            foreign=trips.foreign,
            round_trip_us=trips.microseconds(),
            late_us=microseconds(timed.late if timed else Histogram(), PERCENTILES),
        )

    def _plan(self, start: float, end: float) -> Iterator[Planned]:
        """Datagram n is due at n / rate and leaves from source n % sources; each is made when its turn comes."""
        schedule, sources = Schedule(self._rate, start), self._sources
        datagram = bytearray(self.config.datagram)
        for n in range(sys.maxsize if self.config.count is None else self.config.count):
            due = schedule.time_of(n)
            if due >= end:
                return
            sequence, place = divmod(n, len(sources))
            source = sources[place]
            Stamp(self.run_id, source.number, sequence, round(due * 1e9) + self._epoch_ns).pack_into(datagram)
            yield Planned(due, source, datagram)

    def _receive(self) -> None:
        for descriptor, _ in self._epoll.poll(0, READY):
            self._receive_from(*self._receivers[descriptor])

    def _receive_from(self, source: Source, receiver: PlainReceiver) -> None:
        """Take what came; an error tells of a datagram that was sent before."""
        try:
            batch = receiver.receive()
        except OSError as error:
            if self._timed is not None:
                self._timed.count_error(error.errno or -1)
            source.forget_errors()
            return
        now, since_1970 = time.monotonic_ns() + self._epoch_ns, time.time_ns()
        for item in batch:
            waited = max(since_1970 - getattr(item, "received_at", since_1970), 0)
            self._round_trips.record(item[0], source.number, now - waited)
        self._news.set()

    async def _wait_for_answers(self, sent: int) -> None:
        self._waiting = True
        while not self._given_up:
            self._news.clear()
            try:
                async with asyncio.timeout(PATIENCE if self._round_trips.answered < sent else QUIET):
                    await self._news.wait()
            except TimeoutError:
                self._receive()  # a loop that was late itself runs its timers first
                if not self._news.is_set():
                    return
