"""Frozen snapshots of what a collector counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class ProtocolStatistics:
    """What became of the datagrams that one protocol received.

    Every datagram is counted once:
    ``received == handled + errors + pending + waiting + in_flight + abandoned``.
    """

    received: int
    """Datagrams that the transport delivered."""
    handled: int
    """Datagrams whose handler returned."""
    errors: int
    """Datagrams whose handler raised."""
    pending: int
    """Datagrams that no lane has looked at yet."""
    waiting: int
    """Datagrams that wait behind a blocked handler of their source."""
    in_flight: int
    """Datagrams whose handler runs now."""
    abandoned: int
    """Datagrams given up by ``stop()``, or delivered after it."""
    lanes: int
    """Lanes that exist now, parked ones included."""
    socket_errors: int
    """Errors that the socket reported, such as ICMP errors; no datagram belongs to them."""


@dataclass(frozen=True, slots=True)
class SocketStatistics:
    """What one socket of a member received and sent, as the member counts it."""

    bind: str
    """The address that it is bound to."""
    balancer: str
    """``ebpf``, ``classic`` or ``none``."""
    received: int
    """Datagrams taken from the socket."""
    received_bytes: int
    """Bytes of payload in them."""
    messages: int
    """What the kernel handed over: a datagram, or a train of them, which is one."""
    truncated: int
    """Datagrams that the kernel had to cut."""
    handled: int
    """Datagrams whose handler returned."""
    errors: int
    """Datagrams whose handler raised."""
    in_flight: int
    """Datagrams whose handler runs now."""
    waiting: int
    """Datagrams received that no handler has got yet."""
    abandoned: int
    """Datagrams given up at the end of the graceful timeout."""
    sent: int
    """Datagrams that were replied and left."""
    sent_bytes: int
    """Bytes of payload in them."""
    send_errors: int
    """Replies that the kernel refused."""
    queued_bytes: int
    """Bytes in the kernel's receive queue, with its overhead (SO_MEMINFO)."""
    kernel_drops: int
    """Packets that the kernel dropped for lack of room, or that came after a lone member stopped; a train is one."""


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """What became of the connections of one socket.

    Every connection is counted once: ``accepted == open + closed + errors + abandoned``.
    """

    accepted: int
    """Connections taken from the kernel's queue, or lost in it when the socket was closed."""
    open: int
    """Connections whose handler runs, or whose last bytes are on their way."""
    closed: int
    """Connections whose handler returned."""
    errors: int
    """Connections whose handler raised."""
    abandoned: int
    """Connections given up at the end of the graceful timeout."""
    received_bytes: int
    """Bytes that came in on them."""


@dataclass(frozen=True, slots=True)
class StreamSocketStatistics:
    """What one listening socket of a member accepted, as the member counts it."""

    bind: str
    """The address that it is bound to."""
    balancer: str
    """``ebpf``, ``classic`` or ``none``."""
    accepted: int
    """Connections taken from the kernel's queue, or lost in it when the socket was closed."""
    open: int
    """Connections whose handler runs, or whose last bytes are on their way."""
    closed: int
    """Connections whose handler returned."""
    errors: int
    """Connections whose handler raised."""
    abandoned: int
    """Connections given up at the end of the graceful timeout, those that were not accepted yet too.

    A kernel that hands the latter on to other members does not lose them: then this is what was lost at most.
    """
    received_bytes: int
    """Bytes that came in on them."""
    waiting: int
    """Connections in the kernel's queue."""
    kernel_drops: int
    """Attempts to connect that the kernel dropped because its queue was full, or after the member stopped."""


@dataclass(frozen=True, slots=True)
class CollectorStatistics:
    """What one member did so far: the sums over its sockets, and each socket."""

    index: int
    count: int | None
    """Members of the group; None before the start."""
    pid: int
    sockets: tuple[SocketStatistics, ...] | tuple[StreamSocketStatistics, ...]

    protocol: ClassVar[str] = "udp"
    told: ClassVar[tuple[str, ...]] = ("received", "handled", "errors", "abandoned")
    """The counters that say what became of everything."""

    def __getattr__(self, name: str) -> int:
        """The sum of a counter of SocketStatistics over all sockets, under the same name."""
        if name not in _SUMMED[self.protocol]:
            raise AttributeError(name)
        return sum(getattr(sock, name) for sock in self.sockets)

    def as_dict(self) -> dict[str, Any]:
        """The same, sums included, as JSON can say it."""
        sums = {name: getattr(self, name) for name in _SUMMED[self.protocol]}
        return {
            "index": self.index,
            "count": self.count,
            "pid": self.pid,
            **sums,
            "sockets": [asdict(sock) for sock in self.sockets],
        }


@dataclass(frozen=True, slots=True)
class StreamStatistics(CollectorStatistics):
    """The same of a member that handles connections; the sums are those of StreamSocketStatistics."""

    protocol: ClassVar[str] = "tcp"
    told: ClassVar[tuple[str, ...]] = ("accepted", "closed", "errors", "abandoned")


STATISTICS: Mapping[str, type[CollectorStatistics]] = {"udp": CollectorStatistics, "tcp": StreamStatistics}
"""What a member tells, by its protocol."""


def _counters(kind: type[SocketStatistics | StreamSocketStatistics]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.type == "int")


_SUMMED = {"udp": _counters(SocketStatistics), "tcp": _counters(StreamSocketStatistics)}
