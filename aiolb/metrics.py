"""The groups of a collector or a supervisor as Prometheus metrics: one table of names, and the samples for a scrape."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from threading import Lock
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from aiolb.bpf import spec
from aiolb.bpf.snapshot import State
from aiolb.observed import Member, Observed
from aiolb.receive import choose
from aiolb.sketch import union

SECOND = 1e9
"""Nanoseconds."""
SHORTEST, LONGEST = 10, 34
"""Powers of two of nanoseconds, 1 µs and 17 s: the bounds of the histogram of handler times."""


@dataclass(frozen=True, slots=True)
class Described:
    """One metric: its name without ``aiolb_`` and ``_total``, what it says, and its value; None is left out."""

    name: str
    kind: str
    help: str
    value: Callable[[Any], float | None] = lambda _: None
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As a query names it."""
        suffix = {"counter": "_total", "info": "_info"}.get(self.kind, "")
        return f"aiolb_{self.name}{suffix}"


def _told(name: str, divisor: float = 1) -> Callable[[Member], float | None]:
    def value(member: Member) -> float | None:
        return None if member.told is None else getattr(member.told, name) / divisor

    return value


def _kernel(name: str, divisor: float = 1) -> Callable[[Member], float | None]:
    def value(member: Member) -> float | None:
        return None if member.kernel is None else getattr(member.kernel, name) / divisor

    return value


def _only(protocol: str, name: str) -> Callable[[Member], float | None]:
    """What was told, of members of one protocol."""
    return lambda member: _told(name)(member) if member.protocol == protocol else None


def _group(name: str) -> Callable[[Observed], float | None]:
    def value(observed: Observed) -> float | None:
        return None if observed.group is None else float(getattr(observed.group.kernel, name))

    return value


def _of_all(value: Callable[[Sequence[Member]], float]) -> Callable[[Observed], float | None]:
    """What all members make together."""

    def of(observed: Observed) -> float | None:
        members = observed.all_members
        return None if members is None else value(members)

    return of


def _since(name: str) -> Callable[[Member], float | None]:
    """A time that may be unknown."""
    return lambda member: _kernel(name, SECOND)(member) or None


GROUPS = (
    Described("group_members", "gauge", "Members that the group is to have.", _of_all(len)),
    Described(
        "group_members_alive",
        "gauge",
        "Members whose place a socket holds.",
        _of_all(lambda members: sum(one.state is not State.DEAD for one in members)),
    ),
    Described(
        "group_members_silent",
        "gauge",
        "Members whose socket is there but whose collector has told nothing for 3 seconds.",
        _of_all(lambda members: sum(one.state is State.SILENT for one in members)),
    ),
    Described(
        "group_sources",
        "gauge",
        "Different sources that all members have seen: exact while no member has more than 512 and all together 4,096,"
        " else an estimate with a standard error of 2.3 %.",
        _of_all(lambda members: union(*(one.sketch for one in members)).count),
    ),
    Described(
        "group_created_time_seconds",
        "gauge",
        "When the group was made, since the epoch.",
        lambda one: None if one.group is None else one.group.created_ns / SECOND,
    ),
    Described("group_strict", "gauge", "1 if packets are dropped while nobody is alive.", _group("strict")),
    Described(
        "group_generation",
        "gauge",
        "Grows whenever slots or members are changed.",
        lambda one: None if one.group is None else one.group.generation,
    ),
    Described("group_failovers", "counter", "Packets for a dead member that another one got.", _group("failovers")),
    Described("group_unsteered", "counter", "Packets left to the kernel's own hash.", _group("unsteered")),
    Described("group_dropped", "counter", "Packets dropped because nobody was alive (strict).", _group("dropped")),
    Described("group_denied", "counter", "Packets that the guard's rules dropped.", _group("denied")),
    Described("group_unlisted", "counter", "Packets dropped because no rule allows them.", _group("unlisted")),
    Described("group_limited", "counter", "Packets dropped because of the limit of a source.", _group("limited")),
    Described(
        "group_migrated", "counter", "Waiting connections that were moved from a closed listener.", _group("migrated")
    ),
    Described(
        "group_events_lost", "counter", "Events of steering that found the ring buffer full.", _group("events_lost")
    ),
)

MEMBERS = (
    Described(
        "member_alive", "gauge", "1 if a socket holds the place.", lambda member: float(member.state is not State.DEAD)
    ),
    Described(
        "member_silent",
        "gauge",
        "1 if its collector has told nothing for 3 seconds.",
        lambda member: float(member.state is State.SILENT),
    ),
    Described("member_slots", "gauge", "Slots that it owns, of 16,384.", _kernel("slots")),
    Described("member_weight", "gauge", "Its part of the slots beside the others' weights.", _kernel("weight")),
    Described("member_drained", "gauge", "1 while it is to own no slots.", _kernel("drained")),
    Described("member_joined_time_seconds", "gauge", "When its socket joined, since the epoch.", _since("joined_ns")),
    Described(
        "member_start_time_seconds",
        "gauge",
        "When its process began to receive, since the epoch.",
        _told("started_ns", SECOND),
    ),
    Described(
        "member_report_time_seconds",
        "gauge",
        "When its collector last told of itself, since the epoch.",
        _told("written_ns", SECOND),
    ),
    Described("member_packets", "counter", "Packets steered to it; a train is one.", _kernel("packets")),
    Described("member_packet_bytes", "counter", "Bytes of payload in them.", _kernel("bytes")),
    Described(
        "member_failovers", "counter", "Packets that it got in the place of a dead member.", _kernel("failovers")
    ),
    Described("member_received", "counter", "Datagrams received; with tcp, connections accepted.", _told("received")),
    Described("member_received_bytes", "counter", "Bytes of payload received.", _told("received_bytes")),
    Described("member_messages", "counter", "Datagrams and trains that the kernel handed over.", _told("messages")),
    Described("member_truncated", "counter", "Datagrams that the kernel had to cut.", _told("truncated")),
    Described("member_handled", "counter", "Handlers that returned.", _told("handled")),
    Described("member_handler_errors", "counter", "Handlers that raised.", _told("errors")),
    Described("member_abandoned", "counter", "Given up at the end of the graceful timeout.", _told("abandoned")),
    Described("member_sent", "counter", "Datagrams that were replied and left.", _told("sent")),
    Described("member_sent_bytes", "counter", "Bytes of payload in them.", _told("sent_bytes")),
    Described("member_send_errors", "counter", "Replies that the kernel refused.", _told("send_errors")),
    Described(
        "member_kernel_drops",
        "counter",
        "Packets that the kernel dropped because the receive queue was full; a train is one. With tcp, attempts to"
        " connect.",
        _told("kernel_drops"),
    ),
    Described(
        "member_in_flight", "gauge", "Handlers that run now; with tcp, connections that are open.", _told("in_flight")
    ),
    Described(
        "member_waiting",
        "gauge",
        "Received, and not yet with a handler; with tcp, connections in the accept queue.",
        _told("waiting"),
    ),
    Described(
        "member_queue_bytes",
        "gauge",
        "Bytes in the receive queue, with their overhead; not with tcp.",
        _only("udp", "queued_bytes"),
    ),
    Described(
        "member_queue_limit_bytes",
        "gauge",
        "Bytes that the receive queue may hold; not with tcp.",
        _only("udp", "queue_limit"),
    ),
    Described(
        "member_waiting_limit",
        "gauge",
        "Connections that the accept queue may hold; with tcp only.",
        _only("tcp", "queue_limit"),
    ),
    Described(
        "member_sources",
        "gauge",
        "Different sources that it has seen: exact up to 512, else an estimate with a standard error of 2.3 %.",
        lambda member: member.sketch.count if member.told else None,
    ),
)

_GROUP, _MEMBER = ("group",), ("group", "member")
_BUILD = Described(
    "build", "info", "What runs: digest of the balancer's bytecode, and whether the receiver is compiled or plain."
)
_GROUP_INFO = Described("group", "info", "How the group steers.")
_MEMBER_INFO = Described("member", "info", "Whose its socket is: process and user, as they see themselves, and cookie.")
_TIMES = Described(
    "member_handler_duration_seconds",
    "histogram",
    "How long handlers took, of about four a second that are timed; a batch is one. With tcp, of all connections.",
)
_BATCHES = Described(
    "member_batch_datagrams", "histogram", "Datagrams that one look at the socket handed over; their sum is exact."
)


class GroupMetrics(Collector):
    """The samples of all metrics, from what ``observe`` tells at that moment; any thread may ask.

    After ``close()`` there are none, and ``observe`` is not called any more.
    """

    def __init__(self, observe: Callable[[], Sequence[Observed]]) -> None:
        self._observe = observe
        self._lock = Lock()
        self._closed = False

    def close(self) -> None:
        """Wait for who is asking, then tell nothing more. Idempotent."""
        with self._lock:
            self._closed = True

    def describe(self) -> Iterable[Metric]:
        """Nothing: whoever registers it need not look at groups for that."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All metrics, each name once."""
        with self._lock:
            if self._closed:
                return []
            observed = self._observe()
        return [_build(), *_of_groups(observed), *_of_members(observed)]


def _build() -> Metric:
    try:
        choose.compiled()
    except ImportError:
        receiver = "plain"
    else:
        receiver = "compiled"
    values = {
        "version": version("aiolb"),
        "python": platform.python_version(),
        "balancer": f"{spec.shipped().digest:016x}",
        "receiver": receiver,
    }
    return InfoMetricFamily("aiolb_build", _BUILD.help, value=values)


def _of_groups(observed: Sequence[Observed]) -> Iterator[Metric]:
    info = InfoMetricFamily("aiolb_group", _GROUP_INFO.help, labels=_GROUP)
    for one in observed:
        hashed = one.group.kernel.key if one.group else one.key
        key = {"key": hashed} if hashed else {}
        info.add_metric([str(one.name)], {"protocol": one.name.protocol, "balancer": one.balancer, **key})
    yield info
    groups = [((str(one.name),), one) for one in observed]
    for metric in GROUPS:
        yield _family(metric, _GROUP, groups)


def _of_members(observed: Sequence[Observed]) -> Iterator[Metric]:
    members = [((str(one.name), str(member.index)), member) for one in observed for member in one.members]
    for metric in MEMBERS:
        yield _family(metric, _MEMBER, members)
    info = InfoMetricFamily("aiolb_member", _MEMBER_INFO.help, labels=_MEMBER)
    times = HistogramMetricFamily(f"aiolb_{_TIMES.name}", _TIMES.help, labels=_MEMBER)
    batches = HistogramMetricFamily(f"aiolb_{_BATCHES.name}", _BATCHES.help, labels=_MEMBER)
    for labels, member in members:
        if (told := member.told) is None:
            continue
        info.add_metric(labels, {"pid": str(told.pid), "uid": str(told.uid), "cookie": str(told.cookie)})
        times.add_metric(labels, _time_buckets(told.handler_times), told.handler_ns / SECOND)
        if member.protocol == "udp":  # connections come one by one
            batches.add_metric(labels, _size_buckets(told.batch_sizes), told.received)
    yield from (info, times, batches)


def _family(metric: Described, labels: Sequence[str], of: Iterable[tuple[Sequence[str], Any]]) -> Metric:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(f"aiolb_{metric.name}", metric.help, labels=labels)
    for values, found in of:
        if (value := metric.value(found)) is not None:
            family.add_metric(values, value)
    return family


def _time_buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Bucket i counts times below 2^i ns; all that is below the first bound is in the first."""
    bounds = [(str((1 << power) / SECOND), sum(counts[: power + 1])) for power in range(SHORTEST, LONGEST + 1)]
    return [*bounds, ("+Inf", sum(counts))]


def _size_buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Bucket i counts fewer than 2^i datagrams, so 2^i - 1 at most; the last one is open, and none is empty."""
    bounds = [(str(float((1 << power) - 1)), sum(counts[: power + 1])) for power in range(1, len(counts) - 1)]
    return [*bounds, ("+Inf", sum(counts))]


def described() -> list[Described]:
    """Every metric, with its labels, for the reference."""
    infos = [
        (_BUILD, ("version", "python", "balancer", "receiver")),
        (_GROUP_INFO, ("group", "protocol", "balancer", "key")),
    ]
    found = [Described(one.name, one.kind, one.help, labels=labels) for one, labels in infos]
    found += [Described(one.name, one.kind, one.help, labels=_GROUP) for one in GROUPS]
    found += [Described(one.name, one.kind, one.help, labels=_MEMBER) for one in (*MEMBERS, _TIMES, _BATCHES)]
    return [*found, Described("member", "info", _MEMBER_INFO.help, labels=(*_MEMBER, "pid", "uid", "cookie"))]


def table() -> str:
    """The same as a table in Markdown."""
    rows = [f"| `{one.full_name}` | {one.kind} | {', '.join(one.labels)} | {one.help} |" for one in described()]
    return "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows, ""])
