"""What an operator is told when sockets have joined, and not all is as it could be."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

import structlog

from aiolb import listening, sockets
from aiolb.bpf.keys import Key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiolb.address import Address
    from aiolb.errors import AiolbError

FALLBACK = "no failover, slots, takeover or aiolb status; affinity only while all members run"
"""What the classic balancer lacks."""
_UNPINNED = "no other process can look at the group, join it or take it over, and its seed is gone when it stops"


class Joined(Protocol):
    """One socket, or several, of a group: how they joined."""

    @property
    def balancer(self) -> str:
        """``ebpf``, ``classic`` or ``none``."""

    @property
    def fallback(self) -> AiolbError | None:
        """Why it is not the one that was wanted."""

    @property
    def others(self) -> tuple[sockets.Holder, ...]:
        """Who has sockets on the address that are outside of the group."""

    @property
    def cautions(self) -> Mapping[str, AiolbError]:
        """What else is to be warned of, by the name of the event."""


def on_key(key: Key | None) -> dict[str, str]:
    """What to log of the group's key: nothing where it is the source."""
    return {} if key is None or key == Key() else {"key": str(key)}


def on_joined(
    address: Address, joined: Joined, sock: socket.socket, queue: int, *, unpinned: AiolbError | None = None
) -> None:
    """Log what is remarkable.

    ``sock`` is one of those that joined, ``queue`` what was asked for its queue: the receive buffer in bytes, or of a
    listening socket the backlog in connections; ``unpinned`` why the group is not pinned although that was wanted.
    """
    log = structlog.get_logger().bind(bind=str(address))
    _on_fallback(log, joined)
    if unpinned is not None:
        log.warning("unpinned", reason=str(unpinned), hint=unpinned.hint, missing=_UNPINNED)
    _on_others(log, joined)
    for event, caution in joined.cautions.items():
        log.warning(event, reason=str(caution), hint=caution.hint)
    if sock.type == socket.SOCK_STREAM:
        _on_backlog(log, queue)
    else:
        _on_buffer(log, sock, queue)


def _on_fallback(log: structlog.typing.FilteringBoundLogger, joined: Joined) -> None:
    if joined.fallback is not None:
        log.warning(
            "balancer_fallback",
            balancer=joined.balancer,
            reason=str(joined.fallback),
            hint=joined.fallback.hint,
            missing=FALLBACK,
        )


def _on_others(log: structlog.typing.FilteringBoundLogger, joined: Joined) -> None:
    if joined.others:
        log.warning(
            "other_sockets",
            holders="; ".join(map(str, joined.others)),
            hint="they are outside of the group and get nothing; fine for members that drain",
        )


def _on_backlog(log: structlog.typing.FilteringBoundLogger, backlog: int) -> None:
    given = listening.backlog_limit()
    if given is not None and given < backlog:
        log.warning(
            "backlog_capped", wanted=backlog, given=given, hint=f"as root: sysctl -w net.core.somaxconn={backlog}"
        )


def _on_buffer(log: structlog.typing.FilteringBoundLogger, sock: socket.socket, rcvbuf: int) -> None:
    given = sockets.receive_buffer(sock)
    if given < rcvbuf:
        log.warning(
            "receive_buffer_capped",
            wanted=rcvbuf,
            given=given,
            hint=f"as root: sysctl -w net.core.rmem_max={rcvbuf}",
        )


AGAINST_FULL_QUEUES = "raise --backlog and net.core.somaxconn, or --concurrency, or add members"
"""What to do when the kernel drops attempts to connect."""


def against_drops(limit: int) -> str:
    """What to do when the kernel drops packets; ``limit``: bytes that the receive queue may have (SO_MEMINFO)."""
    # The kernel has doubled what was asked for, for its overhead (socket(7)): this is twice of that.
    mebibytes = max(limit >> 20, 1)
    most = sockets.receive_buffer_limit()
    # Who sets the sysctl to less than it is takes room away from everybody.
    enough = most is not None and most >= mebibytes << 20
    sysctl = "" if enough else f" (as root: sysctl -w net.core.rmem_max={mebibytes << 20})"
    return f"--rcvbuf {mebibytes}M{sysctl}, or more members"
