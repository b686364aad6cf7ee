"""What came back of numbered datagrams, and how long after they were due; pure bookkeeping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiolb.errors import WireError
from aiolb.histogram import Histogram, microseconds
from aiolb.send.statistics import PublisherStatistics
from aiolb.stamp import stamp_from_wire
from aiolb.verification import SequenceRanges

PERCENTILES = (50, 90, 99, 99.9)
"""The round trips that are told, besides the longest."""


class RoundTrips:
    """Counts the answers to the datagrams of one run; each source numbers its own from 0.

    The bookkeeping is as large as the number of sources and holes.
    """

    def __init__(self, run: int) -> None:
        self.answered = 0
        """Datagrams of which an answer came."""
        self.duplicated = 0
        """Further answers to them."""
        self.foreign = 0
        """What came and was no answer: no stamp, that of another run, or that of another source."""
        self.times = Histogram()
        """Nanoseconds from the time when an answered datagram was due to its first answer."""
        self._run = run
        self._numbers: dict[int, SequenceRanges] = {}

    def record(self, answer: bytes, source: int, now_ns: int) -> None:
        """Count what came to a source at ``now_ns``, on the clock that made the stamps."""
        try:
            stamp = stamp_from_wire(answer)
        except WireError:
            self.foreign += 1
            return
        if (stamp.run, stamp.source) != (self._run, source):
            self.foreign += 1
        elif self._numbers.setdefault(source, SequenceRanges()).add(stamp.sequence):
            self.answered += 1
            self.times.record(now_ns - stamp.sent_ns)
        else:
            self.duplicated += 1

    def microseconds(self) -> dict[str, float]:
        """Percentiles in microseconds by name, and ``max``."""
        return microseconds(self.times, PERCENTILES)


@dataclass(frozen=True, slots=True)
class EchoStatistics(PublisherStatistics):
    """What an echo run did so far, beside what a publisher tells.

    Of the datagrams sent, ``answered`` were answered, ``duplicated`` counts further answers, and ``foreign`` what
    was no answer. ``round_trip_us`` holds percentiles from the time when a datagram was due to its answer, in
    microseconds, and ``late_us`` those of how long after they were due datagrams left.
    """

    answered: int
    duplicated: int
    foreign: int
    round_trip_us: Mapping[str, float]
    late_us: Mapping[str, float]

    @property
    def lost(self) -> int:
        """Datagrams that were sent and not answered, so far."""
        return self.sent - self.answered
