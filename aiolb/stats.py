"""Frozen snapshots of what a collector counted."""

from __future__ import annotations

from dataclasses import dataclass


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
