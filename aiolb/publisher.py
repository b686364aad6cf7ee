"""The async publisher: datagrams from one or many sources, at a rate that does not drift."""

from __future__ import annotations

import asyncio
import errno
import math
import secrets
import time
from collections import Counter
from types import TracebackType
from typing import Self

from aiolb.address import Address, IPNetwork, parse_ip
from aiolb.errors import AiolbError, KernelError
from aiolb.pacing import SHORTEST_PAUSE, Pacer
from aiolb.send.config import PublisherConfig, source_addresses
from aiolb.send.sources import Source, allow_descriptors, finish, open_socket, resolve
from aiolb.send.statistics import PublisherStatistics
from aiolb.stamp import Stamp

_BLOCKED = frozenset({errno.EAGAIN, errno.ENOBUFS})
_ERROR_NAMES = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EPERM: "forbidden",
    errno.EACCES: "forbidden",
    errno.EMSGSIZE: "too_long",
}


class Publisher:
    """Sends datagrams to one target, round robin over its sources; an async context manager.

    The arguments are those of :class:`PublisherConfig`, which raises ConfigurationError. Entering resolves
    the target (of a name's addresses it takes an IPv4 one if there is, unless the sources are IPv6) and opens
    one socket per source; where that takes more open files than the soft limit, it raises the limit and
    leaves it raised. It fails with StartError or, where the kernel says no, KernelError. Leaving closes the
    sockets.
    """

    def __init__(
        self,
        target: Address | str,
        *,
        rate: float | None = None,
        count: int | None = None,
        duration: float | None = None,
        size: int | None = None,
        payload: bytes | None = None,
        sources: int | str | IPNetwork = 1,
        stamp: bool = False,
    ) -> None:
        self.config = PublisherConfig(target, rate, count, duration, size, payload, sources, stamp)
        self.run_id = secrets.randbits(64)
        """The random 64-bit number in the stamps of this publisher."""
        self._clock = time.monotonic  # not loop.time(), which uvloop rounds to milliseconds
        self._datagram = bytearray(self.config.datagram)
        self._open = False
        self._sources: list[Source] = []
        self._next = 0
        self._bytes = 0
        self._failed = 0
        self._errors: Counter[str] = Counter()
        self._run_started: float | None = None
        self._run_seconds = 0.0
        self._run_sent = 0
        self._stopping = False
        self._pausing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        sockaddr = await resolve(self.config)
        target = Address(str(parse_ip(sockaddr[0])), sockaddr[1])
        number, addresses = source_addresses(self.config.source_set, target)
        allow_descriptors(number)
        try:
            for n, address in enumerate(addresses):
                self._sources.append(Source(n, open_socket(target, address, sockaddr)))
        except BaseException:
            self._close()
            raise
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._close()

    def _close(self) -> None:
        self._open = False
        for source in self._sources:
            source.wake()
            source.sock.close()

    async def send(self, datagram: bytes) -> None:
        """Send one datagram, as it is, from the next source; waits while the kernel's queue is full.

        Raises KernelError when the kernel refuses it, e.g. for its length, and AiolbError when closed.
        """
        while True:
            source = self._next_source()
            try:
                self._send(source, datagram)
            except OSError as error:
                if error.errno not in _BLOCKED:
                    raise KernelError(
                        f"cannot send {len(datagram):,} bytes to {self.config.target}: {error.strerror}",
                        errno=error.errno,
                    ) from None
                await self._wait_until_writable(source, error, math.inf)
            else:
                return

    async def run(self) -> PublisherStatistics:
        """Send datagrams at the configured rate until the count or the duration is reached, or stop().

        The rate is open-loop: datagram n goes out at n / rate seconds or right after, however late the ones
        before it were. May be called again afterwards; statistics and stamps go on. Raises AiolbError when
        closed or already running.
        """
        if self._run_started is not None:
            raise AiolbError("the publisher is running already")
        started = self._run_started = self._clock()
        pacer = Pacer(self.config.rate, started, count=self.config.count, duration=self.config.duration)
        done, sent_until = 0, started
        try:
            while not self._stopping and (step := pacer.step(self._clock(), done)) is not None:
                if step.datagrams:
                    done += await self._burst(step.datagrams, pacer.end)
                    sent_until = self._clock()
                await self._pause(step.pause)
        finally:
            # Waking up a little after the end is not time spent on sending.
            self._run_seconds += min(self._clock(), max(sent_until, pacer.end)) - started
            self._run_started = None
            self._stopping = False
        return self.statistics()

    def stop(self) -> None:
        """End run() at once, or the next one before it sends when none is running."""
        self._stopping = True
        if self._pausing is not None:
            finish(self._pausing)
        for source in self._sources:
            source.wake()

    def statistics(self) -> PublisherStatistics:
        """What was sent so far; may be asked at any time, after the end too."""
        seconds, rate = self._run_seconds, self.config.rate
        if self._run_started is not None:
            seconds += self._clock() - self._run_started
        # Each datagram stands for its interval: 10 datagrams at 10/s take 0.9 s, and are 10/s all the same.
        spent = seconds if rate is None else max(seconds, self._run_sent / rate)
        sent_per_source = {source.address: source.sent for source in self._sources}
        return PublisherStatistics(
            sent=sum(sent_per_source.values()),
            bytes=self._bytes,
            seconds=seconds,
            rate_asked=rate,
            rate_reached=self._run_sent / spent if spent else 0.0,
            sources=len(self._sources),
            sent_per_source=sent_per_source,
            failed=self._failed,
            errors=dict(self._errors),
        )

    async def _burst(self, datagrams: int, end: float) -> int:
        """Send up to that many, and return how many are behind us; a full queue ends the burst early."""
        for done in range(datagrams):
            source = self._next_source()
            try:
                self._send_stamped(source)
            except OSError as error:
                if error.errno in _BLOCKED:
                    await self._wait_until_writable(source, error, end)
                    return done
                self._count_failed(error)
            else:
                self._run_sent += 1
        return datagrams

    def _next_source(self) -> Source:
        if not self._open:
            raise AiolbError("the publisher is not open", hint="use it as `async with Publisher(…) as publisher`")
        return self._sources[self._next]

    def _send_stamped(self, source: Source) -> None:
        if self.config.stamp:
            stamp = Stamp(self.run_id, source.number, source.sequence, time.time_ns())
            stamp.pack_into(self._datagram)
        self._send(source, self._datagram)
        source.sequence += 1

    def _send(self, source: Source, datagram: bytes | bytearray) -> None:
        """Send from this source and move on to the next; raises what the kernel says about this datagram.

        A connected socket reports what became of an earlier datagram (an ICMP error) in place of sending this
        one: such an error is counted, and the datagram sent again.
        """
        earlier: OSError | None = None
        while True:
            try:
                self._bytes += source.sock.send(datagram)
                break
            except ConnectionRefusedError:
                self._errors["refused"] += 1
            except OSError as error:
                if error.errno in _BLOCKED or earlier is not None:
                    raise
                earlier = error
        if earlier is not None:
            self._errors[_error_name(earlier)] += 1
        source.sent += 1
        self._next = (self._next + 1) % len(self._sources)

    def _count_failed(self, error: OSError) -> None:
        self._failed += 1
        self._errors[_error_name(error)] += 1
        self._next = (self._next + 1) % len(self._sources)

    async def _wait_until_writable(self, source: Source, error: OSError, end: float) -> None:
        """Wait for room in the queue, for stop(), or for the end of the run."""
        self._errors["blocked"] += 1
        if error.errno == errno.ENOBUFS:  # the device's queue, which nothing watches
            await asyncio.sleep(SHORTEST_PAUSE)
            return
        left = None if end == math.inf else max(end - self._clock(), 0.0) + SHORTEST_PAUSE
        await asyncio.wait([source.wait_until_writable()], timeout=left)

    async def _pause(self, seconds: float) -> None:
        """Wait that long, or until stop(); 0 seconds give the event loop one turn."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        if self._stopping:
            return
        loop = asyncio.get_running_loop()
        self._pausing = loop.create_future()
        timer = loop.call_later(seconds, finish, self._pausing)
        try:
            await self._pausing
        finally:
            timer.cancel()
            self._pausing = None


def _error_name(error: OSError) -> str:
    number = error.errno or 0
    return _ERROR_NAMES.get(number) or errno.errorcode.get(number, str(number)).lower()
