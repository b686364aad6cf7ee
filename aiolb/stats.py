"""Frozen snapshots of what a collector counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


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
class CollectorStatistics:
    """What one member did so far: the sums over its sockets, and each socket."""

    index: int
    count: int | None
    """Members of the group; None before the start."""
    pid: int
    sockets: tuple[SocketStatistics, ...]

    def __getattr__(self, name: str) -> int:
        """The sum of a counter of SocketStatistics over all sockets, under the same name."""
        if name not in _SUMMED:
            raise AttributeError(name)
        return sum(getattr(sock, name) for sock in self.sockets)

    def as_dict(self) -> dict[str, Any]:
        """The same, sums included, as JSON can say it."""
        sums = {name: getattr(self, name) for name in _SUMMED}
        return {
            "index": self.index,
            "count": self.count,
            "pid": self.pid,
            **sums,
            "sockets": [asdict(sock) for sock in self.sockets],
        }


_SUMMED = tuple(field.name for field in fields(SocketStatistics) if field.type == "int")
