"""The async publisher: datagrams from one or many sources, at a rate that does not drift."""

from __future__ import annotations

import asyncio
import secrets
import time
from itertools import cycle, islice
from types import TracebackType
from typing import Self

from aiolb.address import Address, IPNetwork
from aiolb.errors import AiolbError, KernelError
from aiolb.pacing import WHOLE, Pacer, Share
from aiolb.send.bursts import Bursts
from aiolb.send.config import PublisherConfig, source_addresses
from aiolb.send.refusals import BLOCKED
from aiolb.send.sources import Source, allow_descriptors, finish, open_socket, resolve
from aiolb.send.statistics import PublisherStatistics, rate_reached

TURN = 0.001
"""Seconds of sending after which the event loop gets a turn; a burst that began before is finished."""


class Publisher:
    """Sends datagrams to one target, round robin over its sources; an async context manager.

    The arguments are those of :class:`PublisherConfig`, which raises ConfigurationError. Entering resolves
    the target (of a name's addresses it takes an IPv4 one if there is, unless the sources are IPv6) and opens
    one socket per source; where that takes more open files than the soft limit, it raises the limit and
    leaves it raised. It fails with StartError or, where the kernel says no, KernelError. Leaving closes the
    sockets, and the publisher cannot be entered again.
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
        gso: str | int = "auto",
        worker: int = 0,
        workers: int = 1,
    ) -> None:
        self.config = PublisherConfig(
            target, rate, count, duration, size, payload, sources, stamp, gso, worker, workers
        )
        self.run_id = secrets.randbits(64)
        """The random 64-bit number in the stamps of this publisher."""
        self._clock = time.monotonic  # not loop.time(), which uvloop rounds to milliseconds
        self._open = False
        self._sources: list[Source] = []
        self._bursts: Bursts | None = None
        self._share = WHOLE
        self._rate = self.config.rate
        self._next = 0
        self._bytes = 0
        self._run_started: float | None = None
        self._run_seconds = 0.0
        self._stopping = False
        self._pausing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        if self._bursts is not None:
            raise AiolbError("the publisher was entered before", hint="make another one")
        target, sockaddr = await resolve(self.config)
        number, addresses = source_addresses(self.config.source_set, target)
        self._take_share(number)
        allow_descriptors(self._share.own_sources)
        own = range(self._share.index, self._share.sources, self._share.workers)
        own_addresses = islice(cycle(addresses), own.start, own.stop, own.step)
        try:
            for n, address in zip(own, own_addresses, strict=True):
                self._sources.append(Source(n, open_socket(target, address, sockaddr)))
            self._bursts = Bursts(self.config, self._sources, self._rate, self.run_id)
        except BaseException:
            self._close()
            raise
        self._open = True
        return self

    def _take_share(self, sources: int) -> None:
        """Where there are fewer sources than workers, each source has as many sockets as it takes."""
        workers = self.config.workers
        self._share = Share(self.config.worker, workers, sources * -(-workers // sources))
        if self.config.rate is not None:
            self._rate = self.config.rate * self._share.own_sources / self._share.sources

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
        bursts = self._opened()
        while True:
            source = self._sources[self._next]
            try:
                self._send(bursts, source, datagram)
            except OSError as error:
                if error.errno not in BLOCKED:
                    raise KernelError(
                        f"cannot send {len(datagram):,} bytes to {self.config.target}: {error.strerror}",
                        errno=error.errno,
                    ) from None
                bursts.count_blocked()
                await source.wait_for_room(error.errno)
                self._opened()
            else:
                return

    async def run(self) -> PublisherStatistics:
        """Send datagrams at the configured rate until the count or the duration is reached, or stop().

        The rate is open-loop: datagram n goes out at n / rate seconds or right after, however late the ones
        before it were, and a train when its last datagram is due. May be called again afterwards; statistics and
        stamps go on. Raises AiolbError when closed or already running, and KernelError when the kernel refuses the
        trains that ``gso`` asks for.
        """
        bursts = self._opened()
        if self._run_started is not None:
            raise AiolbError("the publisher is running already")
        started = self._run_started = self._clock()
        pacer = self._pacer(started)
        bursts.restart()
        done, sent_until = 0, started
        try:
            while not self._stopping and (step := pacer.step(self._clock(), done)) is not None:
                pause = step.pause
                if step.datagrams:
                    sent = await self._burst(step.datagrams, pacer.end)
                    sent_until = self._clock()
                    done += sent
                    pause = pause if sent == step.datagrams else 0.0
                await self._pause(pause)
        finally:
            # Waking up a little after the end is not time spent on sending.
            self._run_seconds += min(self._clock(), max(sent_until, pacer.end)) - started
            self._run_started = None
            self._stopping = False
        return self.statistics()

    def _pacer(self, now: float) -> Pacer:
        config = self.config
        return Pacer(
            config.rate, now, count=config.count, duration=config.duration, train=config.train, share=self._share
        )

    def stop(self) -> None:
        """End run() at once, or the next one before it sends when none is running."""
        self._stopping = True
        if self._pausing is not None:
            finish(self._pausing)
        for source in self._sources:
            source.wake()

    def statistics(self) -> PublisherStatistics:
        """What was sent so far; may be asked at any time, after the end too."""
        bursts, seconds, rate = self._bursts, self._run_seconds, self._rate
        if self._run_started is not None:
            seconds += self._clock() - self._run_started
        sent_in_runs = bursts.sent if bursts else []
        run_sent = sum(sent_in_runs)
        per_source: dict[str, int] = {}
        for source, sent in zip(self._sources, sent_in_runs, strict=False):
            per_source[source.address] = per_source.get(source.address, 0) + source.sent + sent
        return PublisherStatistics(
            sent=sum(per_source.values()),
            bytes=self._bytes + run_sent * self.config.datagram_size,
            seconds=seconds,
            rate_asked=rate,
            rate_reached=rate_reached(run_sent, seconds, rate),
            sources=len(per_source),
            sent_per_source=per_source,
            failed=bursts.failed if bursts else 0,
            trains=bursts.trains if bursts else 0,
            errors=dict(bursts.errors) if bursts else {},
        )

    async def _burst(self, due: int, end: float) -> int:
        """Send some of what is due, and return how many datagrams are behind us; waits where a queue is full."""
        bursts = self._opened()
        turn_ends = self._clock() + TURN
        done = bursts.send(due)
        while done < due and bursts.blocked is None and self._clock() < turn_ends:
            done += bursts.send(due - done)
        if bursts.blocked is not None:
            source, error = bursts.blocked
            await source.wait_for_room(error, end - self._clock())
        return done

    def _opened(self) -> Bursts:
        if self._bursts is None or not self._open:
            raise AiolbError("the publisher is not open", hint="use it as `async with Publisher(…) as publisher`")
        return self._bursts

    def _send(self, bursts: Bursts, source: Source, datagram: bytes) -> None:
        source.send_settled(datagram, bursts.count_error)
        self._bytes += len(datagram)
        self._next = (self._next + 1) % len(self._sources)

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
