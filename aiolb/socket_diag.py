"""The sockets of a port with their cookies, as the kernel lists them: sock_diag(7)."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from aiolb.address import Address

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST, NLM_F_DUMP (netlink(7))
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBxIHHIIIIIIIIIII")  # struct inet_diag_req_v2 (linux/inet_diag.h)
_ANSWER = struct.Struct("=BBBB2s2s16s16sIQIIIII")  # struct inet_diag_msg
_NUMBER = struct.Struct("=i")
_ANY_STATE, _LISTENING = 0xFFFFFFFF, 1 << 10  # TCP_LISTEN (include/net/tcp_states.h)
_NUMBERS = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP}
_BUFFER = 1 << 17


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A socket on a port; ``cookie`` is what SO_COOKIE says of it."""

    inode: str
    uid: int
    cookie: int


def bound_sockets(address: Address, protocol: str) -> list[BoundSocket]:
    """The sockets of this network namespace that are bound to that very address; with TCP those that listen.

    Raises OSError where the kernel has no such list (CONFIG_INET_UDP_DIAG, CONFIG_INET_TCP_DIAG).
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(_question(address, protocol))
        found: list[BoundSocket] = []
        while _read(netlink.recv(_BUFFER), address.ip.packed, found):
            pass
        return found


def _question(address: Address, protocol: str) -> bytes:
    states = _LISTENING if protocol == "tcp" else _ANY_STATE
    port = socket.htons(address.port)
    body = _REQUEST.pack(address.family, _NUMBERS[protocol], 0, states, port, *[0] * 12)
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + body


def _read(data: bytes, wanted: bytes, found: list[BoundSocket]) -> bool:
    """Take the sockets on one IP address out of a piece of the answer; whether more follows."""
    offset = 0
    while offset < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if kind in (_DONE, _ERROR):  # both bring a number, 0 or an errno as a negative one
            (number,) = _NUMBER.unpack_from(data, offset + _HEADER.size)
            if number:
                raise OSError(-number, os.strerror(-number), "SOCK_DIAG_BY_FAMILY")
            return False
        family, _, _, _, _, _, host, *_, cookie, _, _, _, uid, inode = _ANSWER.unpack_from(data, offset + _HEADER.size)
        if (host[:4] if family == socket.AF_INET else host) == wanted:
            found.append(BoundSocket(str(inode), uid, cookie))
        offset += length + -length % 4
    return True
