"""Any server's socket in a group: joined, left, taken over; the socket and what it receives are the caller's."""

from __future__ import annotations

import errno
import socket
import warnings
from asyncio.trsock import TransportSocket
from pathlib import Path
from typing import Self, cast

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import steering
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group import GroupOptions, Membership
from aiolb.bpf.keys import Key
from aiolb.bpf.steering import Joined, JoinOptions
from aiolb.config import BALANCERS
from aiolb.errors import AiolbError, ConfigurationError, GroupError, KernelError
from aiolb.group_view import GroupView
from aiolb.remarks import FALLBACK

_PROTOCOLS = {socket.SOCK_DGRAM: (socket.IPPROTO_UDP, "udp"), socket.SOCK_STREAM: (socket.IPPROTO_TCP, "tcp")}

# Linux names that the socket module of Python 3.11 lacks (include/uapi/asm-generic/socket.h).
_SO_PROTOCOL = 38


class Place:
    """A socket's place in a group, from :func:`join` on; as a context manager it leaves and closes at the end.

    ``balancer`` is ``ebpf``, ``classic`` or ``none``. ``fallback`` says why ``auto`` did not take the eBPF balancer.
    ``others`` are processes with a socket on the address that is outside of the group: it gets nothing while a member
    is alive.
    """

    def __init__(self, address: Address, index: int, joined: Joined) -> None:
        self.address = address
        self.index = index
        self.balancer = joined.balancer
        self.fallback: AiolbError | None = joined.fallback
        self.others = joined.others
        self._place = joined.place

    @property
    def group(self) -> GroupView:
        """The group, to be looked at until ``close()``. Raises GroupError without eBPF: then there is no slot table."""
        if not isinstance(self._place, Membership):
            raise GroupError(
                f"the balancer {self.balancer!r} keeps no table of who gets what", hint="balancer='ebpf' does"
            )
        return GroupView(self._place.group)

    @property
    def count(self) -> int:
        """The group's present number of members."""
        return self._place.count

    @property
    def displaced(self) -> bool:
        """Whether another socket took the place over: then stop as after ``leave()``. Look from time to time."""
        return self._place.displaced

    def leave(self) -> bool:
        """Stop being selected; whether the place was still ours.

        When it returns, every packet that was steered here is in the socket's queue, and no other one follows while a
        member is alive: empty the queue, then close the socket. Takes some 10 ms; in an event loop
        ``await asyncio.to_thread(place.leave)``. A TCP handshake that had begun still ends here, so go on accepting for
        as long as clients need for one; what then waits in the queue of a closed listener moves to other members
        (Linux 5.14). Without eBPF nothing changes before the socket is closed.
        """
        left = self._place.leave()
        steering.wait_for_packets_in_flight()
        return left

    def restore(self) -> bool:
        """Take the place again after ``leave()``, if it is empty; whether it was."""
        return self._place.restore()

    def close(self, *, forget: bool = False) -> None:
        """Close the group's descriptors; a socket that has not left stays a member until it is closed. Idempotent.

        With ``forget`` a group without a live member is removed, as far as this user may.
        """
        place, self._place = self._place, steering.UnmanagedPlace(0)
        place.close(forget=forget)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self.close()


def join(
    sock: socket.socket | TransportSocket,
    *,
    index: int,
    count: int | None = None,
    balancer: str = "auto",
    takeover: bool = False,
    key: str | None = None,
    seed: int | None = None,
    strict: bool | None = None,
    bpffs: str | Path = BPFFS,
) -> Place:
    """Make a server's socket the member ``index`` of the group at its address; the caller keeps the socket.

    ``sock`` is bound with SO_REUSEPORT set before, UDP or TCP; with TCP it listens. ``count`` is the group's number of
    members from now on (default: what it has, and 1 for a new one). ``balancer`` is ``auto``, ``ebpf``, ``classic`` or
    ``none``; where ``auto`` has to take the classic one, it warns (RuntimeWarning). ``takeover`` replaces the live
    member at ``index``. ``key``, ``seed`` and ``strict`` are those of a new group.

    Raises ConfigurationError for a socket or a setting that cannot work, MemberTakenError for an index that a live
    socket holds, GroupError, PrivilegeError, UnsupportedError, KernelError; the socket is as before then.
    """
    bound = cast("socket.socket", sock)
    protocol, address = _checked(bound)
    if balancer not in BALANCERS:
        raise ConfigurationError(f"{balancer!r} is no balancer", hint=f"one of {', '.join(BALANCERS)}")
    if not index >= 0:
        raise ConfigurationError(f"{index} is no index", hint="members are numbered from 0")
    group = GroupOptions(
        count=count,
        seed=seed,
        strict=strict,
        key=None if key is None else Key.parse(key),
        protocol=protocol,
        bpffs=Path(bpffs),
    )
    options = JoinOptions(index=index, balancer=balancer, takeover=takeover, group=group)
    try:
        joined = steering.join_bound(address, bound, options)
    except KernelError as error:
        raise _explained(error, bound) from error
    place = Place(address, index, joined)
    if place.fallback is not None:
        warnings.warn(f"the classic balancer steers {address}: {FALLBACK} ({place.fallback})", RuntimeWarning, 2)
    for caution in joined.cautions.values():
        warnings.warn(f"{caution} (hint: {caution.hint})", RuntimeWarning, 2)
    return place


def _checked(sock: socket.socket) -> tuple[str, Address]:
    """The protocol and the address of a socket that can be a member. Raises ConfigurationError."""
    if sock.fileno() < 0:
        raise ConfigurationError("the socket is closed")
    number, protocol = _PROTOCOLS.get(sock.type, (None, ""))
    address = sockets.address_of(sock, protocol) if protocol else None
    if address is None or sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) != number:
        raise ConfigurationError("a member is a UDP or a TCP socket of IPv4 or IPv6", hint="make one with aiolb.bind()")
    if not address.port:
        raise ConfigurationError(
            "the socket is not bound", hint=f"sock.bind(('{address.host}', 9000)) first, or make one with aiolb.bind()"
        )
    if not sockets.is_reuseport(sock):
        raise _not_shared(address)
    if protocol == "tcp" and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigurationError(
            f"the TCP socket at {address} does not listen, and only one that does can be a member",
            hint="sock.listen() first; a framework does it when its server starts",
        )
    return protocol, address


def _not_shared(address: Address) -> ConfigurationError:
    return ConfigurationError(
        f"the socket at {address} was bound without SO_REUSEPORT: no other one can be a member beside it",
        hint="sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1) before sock.bind(), or use aiolb.bind()",
    )


def _explained(error: KernelError, sock: socket.socket) -> AiolbError:
    """An error of the kernel, or the mistake behind it: SO_REUSEPORT set after bind() makes no reuseport group."""
    address = sockets.address_of(sock, _PROTOCOLS[sock.type][1])
    if error.errno in (errno.EINVAL, errno.ENOENT) and address is not None:
        return _not_shared(address)
    return error
