"""What `aiolb top` remembers: the last looks at a group, as rates of its members and its busiest sources; pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aiolb.address import IPAddress
from aiolb.bpf import snapshot
from aiolb.bpf.snapshot import GroupSnapshot, MemberRates, MemberSnapshot

LENGTH = 60
"""Looks that are remembered."""


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member and what it did since the look before; ``rates`` and ``p99_ns`` are None at the first look.

    ``rate`` and ``drops`` are the last ones per second, the newest at the end. ``p99_ns`` is of the handlers since
    then.
    """

    now: MemberSnapshot
    rates: MemberRates | None
    p99_ns: int | None
    rate: tuple[float, ...]
    drops: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source, the member that has most of it, and its datagrams: per second, and in total; at least so many."""

    source: IPAddress
    member: int
    rate: float
    received: int


SORTS: dict[str, Callable[[MemberRow], float]] = {
    "rate": lambda row: row.rate[-1] if row.rate else 0,
    "drops": lambda row: row.drops[-1] if row.drops else 0,
    "queue": lambda row: row.now.queue or 0,
    "errors": lambda row: row.rates.errors if row.rates else 0,
    "p99": lambda row: row.p99_ns or 0,
    "member": lambda row: -row.now.index,
}
"""What members can be sorted by, the largest first; ``member`` begins with 0."""


ELSEWHERE = {
    "failovers": ("failovers",),
    "unsteered": ("unsteered",),
    "dropped": ("dropped",),
    "guard drops": ("denied", "unlisted", "limited"),
}
"""The counters of a group that tell of packets which did not go to their slot's owner."""


class History:
    """The last looks at one group."""

    def __init__(self) -> None:
        self.now: GroupSnapshot | None = None
        self.rows: list[MemberRow] = []
        self.sources: list[SourceRow] = []
        self.rates: list[MemberRates] | None = None
        """Of the members by index, since the look before; None at the first look."""
        self.counters: dict[str, float] = {}
        """Packets per second, of those of ELSEWHERE that the group has counted since the first look."""
        self.rate: tuple[float, ...] = ()
        self.drops: tuple[float, ...] = ()

    def add(self, now: GroupSnapshot) -> None:
        """Take a later look in."""
        before, self.now = self.now, now
        self.sources = _sources(now)
        if before is None:
            self.rows = [MemberRow(member, None, None, (), ()) for member in now.members]
            return
        former = {row.now.index: row for row in self.rows}
        rates = self.rates = snapshot.rates(before, now)
        counters = _counters(before, now)
        self.counters = {name: rate for name, rate in counters.items() if rate or name in self.counters}
        self.rows = [_row(former.get(one.index), one, rate) for one, rate in zip(now.members, rates, strict=True)]
        self.rate = _longer(self.rate, sum(row.rate[-1] for row in self.rows))
        self.drops = _longer(self.drops, sum(row.drops[-1] for row in self.rows))

    def sorted(self, by: str) -> list[MemberRow]:
        """The members, those first that have most of it; one of SORTS."""
        return sorted(self.rows, key=lambda row: (-SORTS[by](row), row.now.index))


def _counters(before: GroupSnapshot, now: GroupSnapshot) -> dict[str, float]:
    def total(look: GroupSnapshot, names: tuple[str, ...]) -> int:
        return sum(getattr(look.kernel, name) for name in names)

    seconds = max(now.taken - before.taken, 1e-9)
    return {told: (total(now, names) - total(before, names)) / seconds for told, names in ELSEWHERE.items()}


def _row(former: MemberRow | None, now: MemberSnapshot, rates: MemberRates) -> MemberRow:
    # A member that tells nothing is known by what the kernel counts.
    rate = rates.datagrams if now.told else rates.packets
    return MemberRow(
        now,
        rates,
        _p99(former.now if former else None, now),
        _longer(former.rate if former else (), rate),
        _longer(former.drops if former else (), rates.kernel_drops),
    )


def _longer(values: tuple[float, ...], newest: float) -> tuple[float, ...]:
    return (*values, newest)[-LENGTH:]


def _p99(former: MemberSnapshot | None, now: MemberSnapshot) -> int | None:
    if now.told is None:
        return None
    times = now.told.handler_times
    if told := now.told_before(former):
        times = tuple(max(after - before, 0) for after, before in zip(times, told.handler_times, strict=True))
    return snapshot.quantile(times, 99)


def _sources(now: GroupSnapshot) -> list[SourceRow]:
    """The sources that the members name, by rate; one that several members name is the sum, shown at the main one."""
    found: dict[IPAddress, SourceRow] = {}
    for member in now.members:
        for top in member.top:
            row = SourceRow(top.source, member.index, top.rate, top.received)
            if other := found.get(row.source):
                main = max(row, other, key=lambda one: (one.rate, one.received))
                row = replace(main, rate=row.rate + other.rate, received=row.received + other.received)
            found[row.source] = row
    return sorted(found.values(), key=lambda row: (-row.rate, -row.received, row.source.version, row.source))
