"""The metrics that there are: each with its name, what it says, and how it is taken from what was observed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from operator import attrgetter
from typing import Any

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
    """One metric: its name without ``aiolb_`` and ``_total``, what it says, and its value; None is left out.

    The value of a histogram is its buckets and its sum, that of an info its own labels, which come last in ``labels``.
    """

    name: str
    kind: str
    help: str
    value: Callable[[Any], Any]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As a query names it."""
        suffix = {"counter": "_total", "info": "_info"}.get(self.kind, "")
        return f"aiolb_{self.name}{suffix}"


_OfGroup = partial(Described, labels=("group",))
_OfMember = partial(Described, labels=("group", "member"))


def _part(part: str, name: str, divisor: float = 1) -> Callable[[Any], float | None]:
    """A number, by its path in a part of what was observed that may not be known."""
    part_of, number_of = attrgetter(part), attrgetter(name)

    def value(found: Any) -> float | None:
        return None if (known := part_of(found)) is None else number_of(known) / divisor

    return value


_group, _kernel, _told = partial(_part, "group"), partial(_part, "kernel"), partial(_part, "told")


def _since(time: Callable[[Member], float | None]) -> Callable[[Member], float | None]:
    """A time that is 0 while it is not known."""
    return lambda member: time(member) or None


def _only(protocol: str, value: Callable[[Member], Any]) -> Callable[[Member], Any]:
    """What members of one protocol have."""
    return lambda member: value(member) if member.protocol == protocol else None


def _of_all(value: Callable[[Sequence[Member]], float]) -> Callable[[Observed], float | None]:
    """What all members make together."""

    def of(observed: Observed) -> float | None:
        members = observed.all_members
        return None if members is None else value(members)

    return of


def _group_info(observed: Observed) -> dict[str, str]:
    key = observed.group.kernel.key if observed.group else observed.key
    known = {"key": key} if key else {}
    return {"protocol": observed.name.protocol, "balancer": observed.balancer, **known}


def _handler_times(member: Member) -> tuple[list[tuple[str, float]], float] | None:
    """Bucket i counts times below 2^i ns; all that is below the first bound is in the first."""
    if (told := member.told) is None:
        return None
    counts = told.handler_times
    bounds = [(str((1 << power) / SECOND), sum(counts[: power + 1])) for power in range(SHORTEST, LONGEST + 1)]
    return [*bounds, ("+Inf", sum(counts))], told.handler_ns / SECOND


def _batch_sizes(member: Member) -> tuple[list[tuple[str, float]], float] | None:
    """Bucket i counts fewer than 2^i datagrams, so 2^i - 1 at most; the last one is open, and none is empty."""
    if (told := member.told) is None:
        return None
    counts = told.batch_sizes
    bounds = [(str(float((1 << power) - 1)), sum(counts[: power + 1])) for power in range(1, len(counts) - 1)]
    return [*bounds, ("+Inf", sum(counts))], told.received


def _member_info(member: Member) -> dict[str, str] | None:
    told = member.told
    return None if told is None else {"pid": str(told.pid), "uid": str(told.uid), "cookie": str(told.cookie)}


@cache
def _build() -> dict[str, str]:
    try:
        choose.compiled()
    except ImportError:
        receiver = "plain"
    else:
        receiver = "compiled"
    return {
        "version": version("aiolb"),
        "python": platform.python_version(),
        "balancer": f"{spec.shipped().digest:016x}",
        "receiver": receiver,
    }


PROCESS = (
    Described(
        "build",
        "info",
        "What runs: digest of the balancer's bytecode, and whether the receiver is compiled or plain.",
        lambda _: _build(),
        labels=("version", "python", "balancer", "receiver"),
    ),
)
"""Those of the process that is asked."""

GROUPS = (
    Described("group", "info", "How the group steers.", _group_info, labels=("group", "protocol", "balancer", "key")),
    _OfGroup("group_members", "gauge", "Members that the group is to have.", _of_all(len)),
    _OfGroup(
        "group_members_alive",
        "gauge",
        "Members whose place a socket holds.",
        _of_all(lambda members: sum(one.state is not State.DEAD for one in members)),
    ),
    _OfGroup(
        "group_members_silent",
        "gauge",
        "Members whose socket is there but whose collector has told nothing for 3 seconds.",
        _of_all(lambda members: sum(one.state is State.SILENT for one in members)),
    ),
    _OfGroup(
        "group_sources",
        "gauge",
        "Different sources that all members have seen: exact while no member has more than 512 and all together 4,096,"
        " else an estimate with a standard error of 2.3 %.",
        _of_all(lambda members: union(*(one.sketch for one in members)).count),
    ),
    _OfGroup(
        "group_created_time_seconds",
        "gauge",
        "When the group was made, since the epoch.",
        _group("created_ns", SECOND),
    ),
    _OfGroup("group_strict", "gauge", "1 if packets are dropped while nobody is alive.", _group("kernel.strict")),
    _OfGroup(
        "group_generation",
        "gauge",
        "Grows whenever slots or members are changed.",
        _group("generation"),
    ),
    _OfGroup(
        "group_failovers", "counter", "Packets for a dead member that another one got.", _group("kernel.failovers")
    ),
    _OfGroup("group_unsteered", "counter", "Packets left to the kernel's own hash.", _group("kernel.unsteered")),
    _OfGroup(
        "group_dropped", "counter", "Packets dropped because nobody was alive (strict).", _group("kernel.dropped")
    ),
    _OfGroup("group_denied", "counter", "Packets that the guard's rules dropped.", _group("kernel.denied")),
    _OfGroup("group_unlisted", "counter", "Packets dropped because no rule allows them.", _group("kernel.unlisted")),
    _OfGroup("group_limited", "counter", "Packets dropped because of the limit of a source.", _group("kernel.limited")),
    _OfGroup(
        "group_migrated",
        "counter",
        "Waiting connections that were moved from a closed listener.",
        _group("kernel.migrated"),
    ),
    _OfGroup(
        "group_events_lost",
        "counter",
        "Events of steering that found the ring buffer full.",
        _group("kernel.events_lost"),
    ),
)
"""Those of an :class:`aiolb.observed.Observed`."""

MEMBERS = (
    _OfMember(
        "member_alive", "gauge", "1 if a socket holds the place.", lambda member: float(member.state is not State.DEAD)
    ),
    _OfMember(
        "member_silent",
        "gauge",
        "1 if its collector has told nothing for 3 seconds.",
        lambda member: float(member.state is State.SILENT),
    ),
    _OfMember("member_slots", "gauge", "Slots that it owns, of 16,384.", _kernel("slots")),
    _OfMember("member_weight", "gauge", "Its part of the slots beside the others' weights.", _kernel("weight")),
    _OfMember("member_drained", "gauge", "1 while it is to own no slots.", _kernel("drained")),
    _OfMember(
        "member_joined_time_seconds",
        "gauge",
        "When its socket joined, since the epoch.",
        _since(_kernel("joined_ns", SECOND)),
    ),
    _OfMember(
        "member_start_time_seconds",
        "gauge",
        "When its process began to receive, since the epoch.",
        _told("started_ns", SECOND),
    ),
    _OfMember(
        "member_report_time_seconds",
        "gauge",
        "When its collector last told of itself, since the epoch.",
        _told("written_ns", SECOND),
    ),
    _OfMember("member_packets", "counter", "Packets steered to it; a train is one.", _kernel("packets")),
    _OfMember("member_packet_bytes", "counter", "Bytes of payload in them.", _kernel("bytes")),
    _OfMember(
        "member_failovers", "counter", "Packets that it got in the place of a dead member.", _kernel("failovers")
    ),
    _OfMember("member_received", "counter", "Datagrams received; with tcp, connections accepted.", _told("received")),
    _OfMember("member_received_bytes", "counter", "Bytes of payload received.", _told("received_bytes")),
    _OfMember("member_messages", "counter", "Datagrams and trains that the kernel handed over.", _told("messages")),
    _OfMember("member_truncated", "counter", "Datagrams that the kernel had to cut.", _told("truncated")),
    _OfMember("member_handled", "counter", "Handlers that returned.", _told("handled")),
    _OfMember("member_handler_errors", "counter", "Handlers that raised.", _told("errors")),
    _OfMember("member_abandoned", "counter", "Given up at the end of the graceful timeout.", _told("abandoned")),
    _OfMember("member_sent", "counter", "Datagrams that were replied and left.", _told("sent")),
    _OfMember("member_sent_bytes", "counter", "Bytes of payload in them.", _told("sent_bytes")),
    _OfMember("member_send_errors", "counter", "Replies that the kernel refused.", _told("send_errors")),
    _OfMember(
        "member_kernel_drops",
        "counter",
        "Packets that the kernel dropped because the receive queue was full; a train is one. With tcp, attempts to"
        " connect.",
        _told("kernel_drops"),
    ),
    _OfMember(
        "member_in_flight", "gauge", "Handlers that run now; with tcp, connections that are open.", _told("in_flight")
    ),
    _OfMember(
        "member_waiting",
        "gauge",
        "Received, and not yet with a handler; with tcp, connections in the accept queue.",
        _told("waiting"),
    ),
    _OfMember(
        "member_queue_bytes",
        "gauge",
        "Bytes in the receive queue, with their overhead; not with tcp.",
        _only("udp", _told("queued_bytes")),
    ),
    _OfMember(
        "member_queue_limit_bytes",
        "gauge",
        "Bytes that the receive queue may hold; not with tcp.",
        _only("udp", _told("queue_limit")),
    ),
    _OfMember(
        "member_waiting_limit",
        "gauge",
        "Connections that the accept queue may hold; with tcp only.",
        _only("tcp", _told("queue_limit")),
    ),
    _OfMember(
        "member_sources",
        "gauge",
        "Different sources that it has seen: exact up to 512, else an estimate with a standard error of 2.3 %.",
        lambda member: member.sketch.count if member.told else None,
    ),
    _OfMember(
        "member_handler_duration_seconds",
        "histogram",
        "How long handlers took, of about four a second that are timed; a batch is one. With tcp, of all connections.",
        _handler_times,
    ),
    _OfMember(
        "member_batch_datagrams",
        "histogram",
        "Datagrams that one look at the socket handed over; their sum is exact.",
        _only("udp", _batch_sizes),  # connections come one by one
    ),
    Described(
        "member",
        "info",
        "Whose its socket is: process and user, as they see themselves, and cookie.",
        _member_info,
        labels=("group", "member", "pid", "uid", "cookie"),
    ),
)
"""Those of each of its members."""

METRICS = (*PROCESS, *GROUPS, *MEMBERS)
"""All of them."""
