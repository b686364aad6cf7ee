"""What one socket of a member tells its group of itself, several times a second and at its end."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from aiolb import sketch
from aiolb.bpf.abi import SIZE_BUCKETS, TOP_SOURCES, Report
from aiolb.bpf.told_sources import sketch_of, sketch_words, top_of, top_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aiolb.bpf.shared_reports import SharedReports
    from aiolb.handler_times import Times
    from aiolb.receive.contract import Senders

LOOKS = 4
"""Reports between two looks at who sent what: with thousands of senders one takes a millisecond or two."""
_NO_BATCHES = (0,) * SIZE_BUCKETS

_ADDED = (
    "received",
    "received_bytes",
    "messages",
    "truncated",
    "handled",
    "errors",
    "abandoned",
    "sent",
    "sent_bytes",
    "send_errors",
)


class Reporter:
    """Writes the reports about one socket, each with all that was counted since the socket joined.

    What another process has told of the same socket, as the worker before this one, is added to; what that one counts
    from now on is not. ``counts`` gives the counters by their names in :class:`aiolb.bpf.abi.Report`. ``reports`` is
    None where there is no group to tell: then only ``latest`` has the report.
    """

    def __init__(
        self,
        index: int,
        cookie: int,
        reports: SharedReports | None,
        counts: Callable[[], Mapping[str, int]],
        *,
        sources: Senders,
        times: Times,
        batch_sizes: Callable[[], Sequence[int]] = lambda: _NO_BATCHES,
    ) -> None:
        self._index = index
        self._reports = reports
        self._counts = counts
        self._senders = sources
        self._times = times
        self._batch_sizes = batch_sizes
        self._calls = 0
        former = reports.read(index) if reports is not None else None
        if former is None or former.cookie != cookie:
            former = replace(Report.unpack(bytes(Report.STRUCT.size)), cookie=cookie)
        self._former = former
        self._top = _top_of(former)
        self._looked_ns = time.monotonic_ns()
        self._sources = sketch_of(former)
        now = time.time_ns()
        self.latest = replace(former, pid=os.getpid(), uid=os.geteuid(), started_ns=now, written_ns=now)
        """The last report."""
        self._times.sample()
        self.claim()

    def claim(self) -> None:
        """Make the member's entry ours, as who has just joined or come back."""
        if self._reports is not None:
            self._reports.write(self._index, self.latest)

    def write(self, *, last: bool = False) -> None:
        """Tell what was counted so far, unless somebody else has claimed the entry, and time the next handlers."""
        if last or self._calls % LOOKS == 0:
            self._look_at_sources()
        self._calls += 1
        changes: dict[str, Any] = {
            name: count + (getattr(self._former, name) if name in _ADDED else 0)
            for name, count in self._counts().items()
        }
        # The user may have changed since the start.
        changes |= {"written_ns": time.time_ns(), "uid": os.geteuid(), **self._histograms()}
        self.latest = replace(self.latest, **changes)
        self._times.sample()
        if self._reports is not None and self._reports.is_of(self._index, self.latest):
            self._reports.write(self._index, self.latest)

    def _histograms(self) -> dict[str, Any]:
        former = self._former
        return {
            "handler_ns": former.handler_ns + self._times.total_ns,
            "handler_times": _sums(former.handler_times, self._times.buckets),
            "batch_sizes": _sums(former.batch_sizes, self._batch_sizes()),
        }

    def _look_at_sources(self) -> None:
        counts, missed = self._senders.senders()
        self._top.add(counts, missed)
        before, self._looked_ns = self._looked_ns, time.monotonic_ns()
        top = self._top.busiest(counts, TOP_SOURCES)
        sources = sketch.union(self._sources, sketch.Sketch(*self._senders.sketch)).fitted()
        self.latest = replace(
            self.latest,
            sources=len(sources.marks or ()),
            top_error=self._top.error,
            top_others=self._top.most_without({host for host, _, _ in top}),
            top=_words_of(top, max(self._looked_ns - before, 1)),
            sketch=sketch_words(sources),
        )


def _sums(one: Iterable[int], other: Iterable[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _top_of(report: Report) -> sketch.TopSources:
    """Go on from the sources that a report names; others may have sent what it says of them."""
    counts = {str(one.source): one.received for one in top_of(report)}
    return sketch.TopSources(counts, report.top_error + report.top_others)


def _words_of(top: Sequence[tuple[str, int, int]], nanoseconds: int) -> tuple[int, ...]:
    return top_words((ip_address(host), count, recent * 10**12 // nanoseconds) for host, count, recent in top)
