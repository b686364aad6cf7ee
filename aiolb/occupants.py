"""Whose sockets are on a port, and whether a group can share it with them; reads nothing and binds nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import syscall
from aiolb.bpf.state import cookie
from aiolb.sockets import Holder


@dataclass(frozen=True, slots=True)
class Occupant:
    """A socket on a port. What only its process can tell is None where this user may not look into that one."""

    holder: Holder
    address: Address | None = None
    reuseport: bool | None = None
    cookie: int | None = None

    def __str__(self) -> str:
        return str(self.holder)


def occupants_of(address: Address, protocol: str = "udp") -> list[Occupant]:
    """The sockets of this network namespace that could take datagrams, or connections, for ``address``.

    Looks at the sockets themselves, through pidfd_getfd(2): nothing is taken, as binding to the port could.
    """
    found = sockets.sockets_on(address, protocol=protocol)
    opened = sockets.opened_in(found)
    occupants = (_occupant(inode, uid, opened.get(inode), address, protocol) for inode, uid in found.items())
    return [occupant for occupant in occupants if occupant is not None]


def _occupant(inode: str, uid: int, opened: tuple[int, int] | None, address: Address, protocol: str) -> Occupant | None:
    """None for a socket that is closed by now, or takes IPv6 alone where the address is an IPv4 one."""
    if opened is None:
        return Occupant(Holder(uid, None))
    pid, descriptor = opened
    holder = Holder(uid, pid)
    try:
        with _borrowed(pid, descriptor) as sock:
            if str(os.fstat(sock.fileno()).st_ino) != inode or _is_apart(sock, address):
                return None
            return Occupant(holder, sockets.address_of(sock, protocol), sockets.is_reuseport(sock), cookie(sock))
    except OSError:
        return Occupant(holder)


def _is_apart(sock: socket.socket, address: Address) -> bool:
    return (
        sock.family == socket.AF_INET6
        and address.family == socket.AF_INET
        and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    )


@contextmanager
def _borrowed(pid: int, descriptor: int) -> Iterator[socket.socket]:
    """Another process's socket, for a moment. OSError where it may not be looked at, or is no socket any more."""
    pidfd = os.pidfd_open(pid)
    try:
        fd = syscall.pidfd_getfd(pidfd, descriptor)
    finally:
        os.close(pidfd)
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        with suppress(OSError):
            os.close(fd)
        raise
    with closing(sock):
        yield sock
