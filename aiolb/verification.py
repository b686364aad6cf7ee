"""What stamped datagrams prove: nothing lost, nothing twice, each source with one member; pure bookkeeping.

Every source counts its datagrams from 0, so a hole in the numbers is a loss. The bookkeeping is as large as
the number of sources and holes: it is meant for traffic of one's own publishers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiolb.address import parse_ip
from aiolb.errors import WireError
from aiolb.histogram import Histogram, microseconds
from aiolb.stamp import Stamp, stamp_from_wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PERCENTILES = (50, 90, 99)
"""The latencies in a report, besides the largest."""


class SequenceRanges:
    """A set of sequence numbers as ranges, both ends included; adding the next number in order is O(1)."""

    __slots__ = ("_firsts", "_lasts", "count")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self.count = 0
        """How many numbers are in it."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The ranges in ascending order; between two of them at least one number is missing."""
        return zip(self._firsts, self._lasts, strict=True)

    @property
    def first(self) -> int | None:
        """The lowest number, or None."""
        return self._firsts[0] if self._firsts else None

    @property
    def last(self) -> int | None:
        """The highest number, or None."""
        return self._lasts[-1] if self._lasts else None

    def add(self, number: int) -> bool:
        """Put a number in; False when it was there already."""
        if self._lasts and number == self._lasts[-1] + 1:
            self._lasts[-1] = number
        elif not self._lasts or number > self._lasts[-1]:
            self._firsts.append(number)
            self._lasts.append(number)
        elif not self._insert(number):
            return False
        self.count += 1
        return True

    def _insert(self, number: int) -> bool:
        """Put in a number below the highest: grow a range, join two, or start one of its own."""
        after = bisect_right(self._firsts, number)
        before = after - 1
        if before >= 0 and number <= self._lasts[before]:
            return False
        grows_before = before >= 0 and self._lasts[before] + 1 == number
        grows_after = self._firsts[after] - 1 == number
        if grows_before and grows_after:
            self._lasts[before] = self._lasts.pop(after)
            del self._firsts[after]
        elif grows_before:
            self._lasts[before] = number
        elif grows_after:
            self._firsts[after] = number
        else:
            self._firsts.insert(after, number)
            self._lasts.insert(after, number)
        return True

    def missing(self) -> Iterator[tuple[int, int]]:
        """The holes, from 0 to the highest number, as ranges in ascending order."""
        expected = 0
        for first, last in self:
            if first > expected:
                yield expected, first - 1
            expected = last + 1


class SourceRecord:
    """What arrived from one source of one run; ``address`` is where its first datagram came from."""

    __slots__ = ("address", "duplicated", "latency", "ranges", "reordered", "run", "source")

    def __init__(self, run: int, source: int, address: str) -> None:
        self.run = run
        self.source = source
        self.address = address
        self.ranges = SequenceRanges()
        self.duplicated = 0
        self.reordered = 0
        self.latency = Histogram()

    @property
    def lost(self) -> int:
        """Numbers missing below the highest that arrived. What another member got counts here too."""
        return 0 if self.ranges.last is None else self.ranges.last + 1 - self.ranges.count

    def record(self, stamp: Stamp, now_ns: int) -> None:
        """Count one datagram. Reordered is what arrives after a higher number (RFC 4737, section 3.3)."""
        highest = self.ranges.last
        if not self.ranges.add(stamp.sequence):
            self.duplicated += 1
            return
        if highest is not None and stamp.sequence < highest:
            self.reordered += 1
        self.latency.record(now_ns - stamp.sent_ns)

    def report(self) -> dict[str, Any]:
        """What arrived, for JSON."""
        return {
            "run": f"{self.run:016x}",
            "source": self.source,
            "address": self.address,
            "received": self.ranges.count,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "first": self.ranges.first,
            "last": self.ranges.last,
            "latency_us": microseconds(self.latency, PERCENTILES),
            "ranges": [[first, last] for first, last in self.ranges],
        }


class Verifier:
    """Counts the stamped datagrams that one member receives; ``member`` is its index, where it has one."""

    def __init__(self, member: int | None = None) -> None:
        self.member = member
        self.unstamped = 0
        """Datagrams that carry no stamp; they count nowhere else."""
        self._records: dict[tuple[int, int], SourceRecord] = {}

    @property
    def records(self) -> list[SourceRecord]:
        """One record per run and source, in order of appearance."""
        return list(self._records.values())

    def record(self, datagram: bytes, addr: tuple[Any, ...], now_ns: int) -> None:
        """Count one datagram from ``addr``, as the socket module gives it, that arrived at ``now_ns``.

        ``now_ns`` is in nanoseconds since the epoch. A latency below 0, from clocks that differ, counts as 0.
        """
        try:
            stamp = stamp_from_wire(datagram)
        except WireError:
            self.unstamped += 1
            return
        key = (stamp.run, stamp.source)
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = SourceRecord(*key, str(parse_ip(addr[0])))
        record.record(stamp, now_ns)

    def report(self) -> dict[str, Any]:
        """Everything counted so far, for JSON: totals, and one entry per run and source.

        Latencies are in microseconds. ``ranges`` holds the sequence numbers received as [first, last], both
        included, so that :func:`merge_reports` is exact.
        """
        records = self.records
        latency = Histogram()
        for record in records:
            latency.merge(record.latency)
        return {
            "member": self.member,
            "sources": len({record.address for record in records}),
            "received": sum(record.ranges.count for record in records),
            "lost": sum(record.lost for record in records),
            "duplicated": sum(record.duplicated for record in records),
            "reordered": sum(record.reordered for record in records),
            "unstamped": self.unstamped,
            "latency_us": microseconds(latency, PERCENTILES),
            "per_source": [record.report() for record in records],
        }


@dataclass(frozen=True, slots=True)
class MemberSummary:
    """What one member got: stamped datagrams, duplicates included, and the sources they came from."""

    member: int | None
    sources: int
    datagrams: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What all members got together.

    ``sources`` counts addresses; ``split_addresses`` are the ones that more than one member saw, and
    ``split_sources`` is their number. ``received`` counts distinct datagrams, ``duplicated`` further copies
    of them, within a member or across members. When it is known what was sent, ``sent`` is its number,
    ``lost`` what of it never arrived, and ``unexpected`` what arrived beyond it, so that
    ``received - unexpected + lost == sent``. Otherwise ``sent`` is None and ``lost`` counts the holes below
    the highest number of each source.
    """

    members: tuple[MemberSummary, ...]
    sources: int
    split_sources: int
    split_addresses: tuple[str, ...]
    sent: int | None
    received: int
    lost: int
    unexpected: int
    duplicated: int
    reordered: int
    unstamped: int


def merge_reports(reports: Iterable[Mapping[str, Any]], sent_per_source: Mapping[str, int] | None = None) -> Summary:
    """Put the reports of several members together.

    Reports with the same member index are one member, e.g. its workers before and after a restart; a report
    without an index is a member of its own. ``sent_per_source`` is what publishers sent, by source address.
    """
    reports = list(reports)
    members = _members(reports)
    entries = [entry for report in reports for entry in report["per_source"]]
    merged = _merged_ranges(entries)
    received: Counter[str] = Counter()
    for address, ranges in merged:
        received[address] += _size(ranges)
    holes = sum(ranges[-1][1] + 1 - _size(ranges) for _, ranges in merged)
    sent = sent_per_source
    seen_by = Counter(address for member in members.values() for address in member)
    split = tuple(sorted(address for address, seen in seen_by.items() if seen > 1))
    return Summary(
        members=tuple(
            MemberSummary(index, len(addresses), sum(addresses.values())) for (index, _), addresses in members.items()
        ),
        sources=len(seen_by),
        split_sources=len(split),
        split_addresses=split,
        sent=None if sent is None else sum(sent.values()),
        received=received.total(),
        lost=holes if sent is None else (Counter(sent) - received).total(),
        unexpected=0 if sent is None else (received - Counter(sent)).total(),
        duplicated=sum(_datagrams(entry) for entry in entries) - received.total(),
        reordered=sum(entry["reordered"] for entry in entries),
        unstamped=sum(report["unstamped"] for report in reports),
    )


def _members(reports: list[Mapping[str, Any]]) -> dict[tuple[int | None, int], Counter[str]]:
    """Datagrams per source address, for each member; the second part of a key tells the nameless apart."""
    members: dict[tuple[int | None, int], Counter[str]] = {}
    for position, report in enumerate(reports):
        index = report.get("member")
        datagrams = members.setdefault((index, position if index is None else 0), Counter())
        for entry in report["per_source"]:
            datagrams[entry["address"]] += _datagrams(entry)
    return members


def _datagrams(entry: Mapping[str, Any]) -> int:
    datagrams: int = entry["received"] + entry["duplicated"]
    return datagrams


def _merged_ranges(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[list[int]]]]:
    """For each run and source: the address seen first, and the union of the ranges in ascending order."""
    collected: dict[tuple[str, int], tuple[str, list[list[int]]]] = {}
    for entry in entries:
        key = (entry["run"], entry["source"])
        collected.setdefault(key, (entry["address"], []))[1].extend(entry["ranges"])
    return [(address, _union(ranges)) for address, ranges in collected.values() if ranges]


def _union(ranges: list[list[int]]) -> list[list[int]]:
    union: list[list[int]] = []
    for first, last in sorted(ranges):
        if union and first <= union[-1][1] + 1:
            union[-1][1] = max(union[-1][1], last)
        else:
            union.append([first, last])
    return union


def _size(ranges: list[list[int]]) -> int:
    return sum(last + 1 - first for first, last in ranges)
