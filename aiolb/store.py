"""The sockets that a service manager keeps for a supervisor, so that their queues outlive it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import structlog

from aiolb import sockets
from aiolb.bpf.abi import MAX_MEMBERS
from aiolb.systemd import Inherited, ServiceManager, SocketName

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiolb.address import Address
    from aiolb.places import Places

_LISTEN = {"udp": "ListenDatagram", "tcp": "ListenStream"}

_log = structlog.get_logger(__name__)


class SocketStore:
    """Sockets by address and index: taken back from the service manager at the start, and given to it."""

    def __init__(self, manager: ServiceManager, inherited: Inherited, protocol: str = "udp") -> None:
        self.complete = manager.kept or bool(inherited.others)
        """Whether the manager has every socket that was to be kept."""
        self._protocol = protocol
        self._opened: set[tuple[Address, int]] = set()
        self._manager = manager
        self._inherited = inherited

    def taken_back(self, bind: Collection[Address]) -> dict[tuple[Address, int], socket.socket]:
        """What the manager has kept, or opened for us, on these addresses; the rest is closed. Once.

        A socket that a socket unit opened gets the lowest index that is free.
        """
        given: dict[tuple[Address, int], socket.socket] = {}
        for name, descriptor in self._inherited.sockets.items():
            sock = socket.socket(fileno=descriptor)
            if name.address in bind and name.protocol == self._protocol:
                given[name.address, name.index] = sock
            else:
                sock.close()
                self._manager.forget(str(name))
                _log.warning("socket_dropped", name=str(name), reason="no --bind has its address")
        for text, descriptor in self._inherited.others:
            sock = socket.socket(fileno=descriptor)
            address = sockets.address_of(sock, self._protocol)
            if address in bind and address is not None and sockets.is_reuseport(sock):
                index = next(index for index in range(MAX_MEMBERS) if (address, index) not in given)
                given[address, index] = sock
                self._opened.add((address, index))
            else:
                sock.close()
                _log.warning(
                    "socket_dropped",
                    name=text,
                    reason=f"it is no {self._protocol.upper()} socket with SO_REUSEPORT on an address of --bind",
                    hint=f"{_LISTEN[self._protocol]}= and ReusePort=yes in the socket unit",
                )
        for sock in given.values():
            sock.setblocking(False)
        return given

    def keep(self, places: Places) -> None:
        """Give a member's sockets to the manager, where it keeps any; it has those that it opened itself."""
        for address, sock in places.sockets.items():
            if (address, places.index) not in self._opened:
                kept = self._manager.keep(self._name(address, places.index), sock)
                self.complete = self.complete and kept

    def forget(self, places: Places) -> None:
        """Let the manager close a member's sockets."""
        for address in places.sockets:
            self._opened.discard((address, places.index))
            self._manager.forget(self._name(address, places.index))

    def _name(self, address: Address, index: int) -> str:
        return str(SocketName(address, index, self._protocol))
