"""Sockets that can be members of a group, for servers that are not ours."""

from __future__ import annotations

import socket

from aiolb import sockets
from aiolb.address import Address

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn (listen(2))."""


def bind(
    address: str | Address, *, protocol: str = "udp", backlog: int = BACKLOG, rcvbuf: int | None = None
) -> socket.socket:
    """A non-blocking socket bound to ``HOST:PORT`` with SO_REUSEPORT; with ``protocol="tcp"`` it listens.

    Port 0 is a free one. ``rcvbuf``: bytes of receive buffer for datagrams (default: the system's). The caller closes
    it. Raises ConfigurationError, and KernelError, which names who holds the port.
    """
    wanted = address if isinstance(address, Address) else sockets.resolve(address)
    with sockets.reserved_port(wanted, protocol) as numbered:
        if protocol == "tcp":
            return sockets.bind_listening(numbered, backlog=backlog)
        if rcvbuf is not None:
            return sockets.bind_buffered(numbered, size=rcvbuf)
        return sockets.bind_reuseport(numbered)
