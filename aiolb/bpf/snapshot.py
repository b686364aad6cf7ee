"""A group and its members at one moment, from its maps and from what its members tell; two of them make rates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aiolb.bpf.abi import Member, Report
from aiolb.bpf.statistics import GroupStatistics, MemberStatistics
from aiolb.bpf.told_sources import TopSource, sketch_of, top_of
from aiolb.sketch import Sketch, union

if TYPE_CHECKING:
    from aiolb.bpf.group_name import GroupName
    from aiolb.bpf.state import GroupState

SILENT_AFTER = 3.0
"""Seconds without a report from which a collector counts as silent; it writes four a second."""

_TOLD = (
    "received",
    "received_bytes",
    "messages",
    "truncated",
    "handled",
    "errors",
    "in_flight",
    "waiting",
    "abandoned",
    "sent",
    "sent_bytes",
    "send_errors",
    "queued_bytes",
    "queue_limit",
    "kernel_drops",
)


class State(StrEnum):
    """What a member is.

    SILENT: its socket is there, but its collector has told nothing for SILENT_AFTER seconds. It is stuck, or it was
    killed and its supervisor has not started another yet.
    """

    ALIVE = "alive"
    SILENT = "silent"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    """One member: what the kernel counted for its place, and what its collector told of its socket.

    ``kernel`` counts packets since the group was made, whoever held the place; ``told`` counts datagrams since the
    socket joined. ``told`` is None where no collector has told anything, as of sockets that a program joined with
    by itself. Of a dead member it is what the last one told at its end.
    """

    kernel: MemberStatistics
    told: Report | None
    state: State
    owner: int
    """The user that joined."""
    protocol: str = "udp"

    @property
    def index(self) -> int:
        """Its place in the group."""
        return self.kernel.index

    @property
    def pid(self) -> int:
        """The process that reads from its socket, as that process sees itself; else the one that joined."""
        return self.told.pid if self.told else self.kernel.pid

    @property
    def uid(self) -> int:
        """The user of that process."""
        return self.told.uid if self.told else self.owner

    @property
    def sources(self) -> int | None:
        """Different sources that it has seen: exactly up to 512, about beyond (see :mod:`aiolb.sketch`)."""
        return self.sketch.count if self.told else None

    @property
    def sketch(self) -> Sketch:
        """The sketch of its sources; ``sketch.union`` of several members' counts each source once."""
        return sketch_of(self.told) if self.told else Sketch()

    @property
    def top(self) -> list[TopSource]:
        """The sources that send most now, the busiest first."""
        if self.told is None:
            return []
        top = top_of(self.told)
        return top if self.state is State.ALIVE else [replace(one, rate=0.0) for one in top]

    @property
    def queue(self) -> float | None:
        """How full the receive queue of its socket is, or with TCP its accept queue, 0 … 1; None where nobody told."""
        told = self.told
        if told is None or not told.queue_limit:
            return None
        return (told.waiting if self.protocol == "tcp" else told.queued_bytes) / told.queue_limit

    def told_before(self, former: MemberSnapshot | None) -> Report | None:
        """What was told of the same socket in a former snapshot, and can be subtracted; None where that is nothing."""
        told = former.told if former else None
        return told if told and self.told and told.cookie == self.told.cookie else None

    def handler_ns(self, percent: float) -> int | None:
        """The time in nanoseconds that so many percent of the sampled handlers stayed below, as a power of two."""
        return quantile(self.told.handler_times, percent) if self.told else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the same names as in the report file of a collector, None for what nobody told."""
        kernel, told, sketch = self.kernel, self.told, self.sketch
        return {
            "index": kernel.index,
            "state": self.state.value,
            "cookie": kernel.cookie,
            "pid": self.pid,
            "uid": self.uid,
            "joined_ns": kernel.joined_ns,
            "started_ns": told.started_ns if told else None,
            "told_ns": told.written_ns if told else None,
            "slots": kernel.slots,
            "weight": kernel.weight,
            "drained": kernel.drained,
            "packets": kernel.packets,
            "bytes": kernel.bytes,
            "failovers": kernel.failovers,
            **{name: getattr(told, name) if told else None for name in _TOLD},
            "sources": sketch.count if told else None,
            "sources_exact": sketch.exact if told else None,
            "handler_p50_ns": self.handler_ns(50),
            "handler_p99_ns": self.handler_ns(99),
            "top_sources": [
                {"source": str(one.source), "received": one.received, "rate": one.rate} for one in self.top
            ],
            "top_error": told.top_error if told else None,
        }


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """A group: its settings, its counters, its members by index. ``taken`` is in seconds of the monotonic clock."""

    name: GroupName
    kernel: GroupStatistics
    created_ns: int
    generation: int
    members: tuple[MemberSnapshot, ...]
    taken: float
    prepared: str | None = None
    """The user that the group was prepared for, and waits for."""

    balancer = "ebpf"

    @property
    def empty(self) -> bool:
        """Whether nobody is alive in it."""
        return not any(member.kernel.alive for member in self.members)

    @property
    def stale(self) -> bool:
        """Whether only its pins are left: it is empty, and waits for nobody."""
        return self.empty and self.prepared is None

    @property
    def told(self) -> bool:
        """Whether any member tells of itself, and so of its sources."""
        return any(member.told for member in self.members)

    @property
    def sketch(self) -> Sketch:
        """The sketch of the sources that its members have seen together; each counts once."""
        return union(*(member.sketch for member in self.members))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        kernel, sketch = self.kernel, self.sketch
        return {
            "group": str(self.name),
            "protocol": self.name.protocol,
            "address": str(self.name.address),
            "balancer": self.balancer,
            "key": kernel.key,
            "count": kernel.count,
            "seed": str(kernel.seed),  # many a reader of JSON would lose half of its 128 bits
            "strict": kernel.strict,
            "created_ns": self.created_ns,
            "generation": self.generation,
            "stale": self.stale,
            "prepared": self.prepared,
            "sources": sketch.count,
            "sources_exact": sketch.exact,
            **{name: getattr(kernel, name) for name in COUNTERS},
            "members": [member.as_dict() for member in self.members],
        }


COUNTERS = ("failovers", "unsteered", "dropped", "denied", "unlisted", "limited", "migrated", "events_lost")
"""The counters of a group, by their names in :class:`aiolb.bpf.statistics.GroupStatistics`."""


@dataclass(frozen=True, slots=True)
class MemberRates:
    """What one member did between two snapshots, per second; ``share`` of the group's datagrams, 0 … 1."""

    datagrams: float
    bytes: float
    packets: float
    failovers: float
    kernel_drops: float
    errors: float
    share: float


def take(group: GroupState) -> GroupSnapshot:
    """Look at a group once; needs no lock and asks no member."""
    statistics, config, reports = group.statistics(), group.config, group.reports
    now = time.time_ns()
    members = tuple(
        _member(member, reports.read(member.index), group.holder(member.index), now, group.name.protocol)
        for member in statistics.members
    )
    prepared = None
    with suppress(OSError):  # whose pins are gone
        prepared = str(group.owner) if group.owner.prepared else None
    return GroupSnapshot(
        group.name, statistics, config.created_ns, config.generation, members, time.monotonic(), prepared
    )


def state_of(told: Report | None, now_ns: int) -> State:
    """ALIVE or SILENT: what a member is whose socket is there. ``now_ns``: of CLOCK_REALTIME."""
    silent = told is not None and now_ns - told.written_ns > SILENT_AFTER * 1e9
    return State.SILENT if silent else State.ALIVE


def _member(
    kernel: MemberStatistics, report: Report | None, holder: Member, now_ns: int, protocol: str
) -> MemberSnapshot:
    cookie = kernel.cookie or holder.cookie
    told = report if report is not None and report.cookie == cookie else None
    state = state_of(told, now_ns) if kernel.alive else State.DEAD
    return MemberSnapshot(kernel, told, state, holder.uid, protocol)


def rates(before: GroupSnapshot, after: GroupSnapshot) -> list[MemberRates]:
    """The rates of each member of ``after``, from two snapshots of one group.

    What members told is divided by the time between their reports, what the kernel counted by that between the
    snapshots. A member that was not in ``before``, or whose socket is another one, began at 0.
    """
    former = {member.index: member for member in before.members}
    seconds = max(after.taken - before.taken, 1e-9)
    found = [_rates(former.get(member.index), member, seconds) for member in after.members]
    total = sum(one.datagrams for one in found)
    return [replace(one, share=one.datagrams / total) if total else one for one in found]


def _rates(former: MemberSnapshot | None, after: MemberSnapshot, seconds: float) -> MemberRates:
    kernel, told = after.kernel, after.told
    first = former.kernel if former else None
    # Datagrams, bytes, drops, errors: of the same socket, or from nothing.
    mine = after.told_before(former)
    between = (told.written_ns - mine.written_ns) / 1e9 if told and mine else seconds

    def told_rate(name: str) -> float:
        if told is None or between <= 0:
            return 0.0
        before: int = getattr(mine, name) if mine else 0
        now: int = getattr(told, name)
        return max(now - before, 0) / between

    return MemberRates(
        datagrams=told_rate("received"),
        bytes=told_rate("received_bytes"),
        packets=(kernel.packets - (first.packets if first else 0)) / seconds,
        failovers=(kernel.failovers - (first.failovers if first else 0)) / seconds,
        kernel_drops=told_rate("kernel_drops"),
        errors=told_rate("errors"),
        share=0.0,
    )


def quantile(buckets: Sequence[int], percent: float) -> int | None:
    """What so many percent of the values stayed below, where bucket i counts values below 2^i; None without any."""
    total, seen = sum(buckets), 0
    for power, count in enumerate(buckets):
        seen += count
        if count and seen * 100 >= total * percent:
            return 1 << power
    return None
