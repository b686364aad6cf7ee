"""Replaying a capture: its UDP payloads leave as they came, from a source for each source that it has."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aiolb.address import Address, IPNetwork
from aiolb.capture import Packet, open_capture, read_packets
from aiolb.errors import AiolbError, CaptureError
from aiolb.histogram import Histogram, microseconds
from aiolb.pacing import Beat, Timeline
from aiolb.replay_config import ReplayConfig, ReplayStatistics
from aiolb.send.captured import CapturedSources
from aiolb.send.sources import resolve
from aiolb.send.statistics import rate_reached
from aiolb.send.timed import Planned, Timed

if TYPE_CHECKING:
    from aiolb.frames import Datagram

OTHER_PORT = "to other ports"
"""Why a datagram of the capture is skipped that a replay with a port does not want."""

_LATE = (50, 99)


class Replay:
    """Sends the UDP payloads of a capture to one target; an async context manager, entered and run once.

    They are as far apart as they were recorded, ``speed`` times as fast; or they leave at a ``rate`` in datagrams
    per second, infinity for as fast as possible. ``rounds`` is how often the capture is replayed. Each source of
    the capture becomes a source of its own, in the order in which they appear: 127.0.0.2 and up, or the host
    addresses of the network ``sources``, or so many as it is a number; when they are used up, the first gets the
    next source of the capture too. With ``port``, only what went to that port is replayed. ``count`` datagrams or
    ``duration`` seconds end it before its end.

    The file is read while it is replayed, one packet at a time. Sockets are opened when a source appears, and the
    soft limit of open files is raised to the hard one for that. Raises ConfigurationError; entering raises
    StartError and KernelError, too.
    """

    def __init__(
        self,
        target: Address | str,
        file: str | Path,
        *,
        speed: float | None = None,
        rate: float | None = None,
        rounds: int = 1,
        sources: int | str | IPNetwork | None = None,
        port: int | None = None,
        count: int | None = None,
        duration: float | None = None,
    ) -> None:
        self.config = ReplayConfig(target, Path(file), speed, rate, rounds, sources, port, count, duration)
        self._stack = ExitStack()
        self._timed: Timed | None = None
        self._sources: CapturedSources | None = None
        self._rounds = 0
        self._planned = 0
        self._ports: Counter[int] = Counter()
        self._skipped: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        if self._timed is not None:
            raise AiolbError("the replay was entered before", hint="make another one")
        target, sockaddr = await resolve(self.config.sending)
        room, addresses = self.config.addresses(target)
        with ExitStack() as stack:
            self._file = stack.enter_context(open_capture(self.config.file))
            self._sources = CapturedSources(target, sockaddr, room, addresses)
            stack.callback(self._sources.close)
            self._timed = Timed()
            stack.callback(self._timed.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._stack.close()

    async def run(self) -> ReplayStatistics:
        """Replay the capture.

        Raises CaptureError where the file is broken, KernelError or StartError where a source can have no socket;
        what came before that is sent.
        """
        if self._timed is None or self._rounds:
            raise AiolbError("the replay is not open, or was run", hint="use it as `async with Replay(…) as replay`")
        start = time.monotonic()
        end = math.inf if self.config.duration is None else start + self.config.duration
        try:
            await self._timed.run(self._plan(start, end), end=end)
        except CaptureError as error:
            raise CaptureError(f"{error}; {self._timed.sent:,} datagrams of it were sent") from None
        return self.statistics()

    def stop(self) -> None:
        """End run() at once."""
        if self._timed is not None:
            self._timed.stop()

    def statistics(self) -> ReplayStatistics:
        """What was replayed so far; may be asked at any time, after the end too."""
        timed, sources, rate = self._timed, self._sources, self.config.rate_asked
        sent, seconds = (timed.sent, timed.seconds) if timed else (0, 0.0)
        per_source = sources.sent_per_source() if sources else {}
        return ReplayStatistics(
            sent=sent,
            bytes=timed.bytes if timed else 0,
            seconds=seconds,
            rate_asked=rate,
            rate_reached=rate_reached(sent, seconds, rate),
            sources=len(per_source),
            sent_per_source=per_source,
            failed=timed.failed if timed else 0,
            trains=0,
            errors=dict(timed.errors) if timed else {},
            rounds=self._rounds,
            packets=self._planned + self._skipped.total(),
            captured_sources=len(sources) if sources else 0,
            captured_ports=dict(self._ports),
            skipped=dict(self._skipped),
            late_us={} if self.config.rate == math.inf else microseconds(timed.late if timed else Histogram(), _LATE),
        )

    def _plan(self, start: float, end: float) -> Iterator[Planned | None]:
        """What is to be sent; None for what is skipped, so that the event loop gets its turns meanwhile."""
        assert self._sources is not None  # noqa: S101 - what types cannot say
        count = math.inf if self.config.count is None else self.config.count
        config = self.config
        times = Timeline(start, speed=config.speed or 1.0) if config.rate is None else Beat(start, config.rate)
        for packet in self._packets(times) if count else ():
            datagram = self._wanted(packet)
            if datagram is None:
                yield None
                continue
            due = times.due(packet.recorded)
            if due >= end:
                return
            source = self._sources.of(datagram.source)
            self._ports[datagram.port] += 1
            self._planned += 1
            yield Planned(due, source, datagram.payload)
            if self._planned >= count:
                return

    def _packets(self, times: Timeline | Beat) -> Iterator[Packet]:
        while self._rounds < self.config.rounds:
            planned = self._planned
            self._file.seek(0)
            times.rewind()
            self._rounds += 1
            yield from read_packets(self._file)
            if self._planned == planned:
                return  # another round would find nothing either

    def _wanted(self, packet: Packet) -> Datagram | None:
        """The packet's datagram, or None, and then the reason is counted."""
        datagram = packet.datagram
        if isinstance(datagram, str):
            self._skipped[datagram] += 1
        elif self.config.port is not None and datagram.port != self.config.port:
            self._skipped[OTHER_PORT] += 1
        else:
            return datagram
        return None
