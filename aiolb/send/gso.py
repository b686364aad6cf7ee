"""UDP generic segmentation offload: one system call sends a train, which the kernel cuts into datagrams."""

from __future__ import annotations

import errno
import socket
import struct

from aiolb.errors import KernelError, UnsupportedError

UDP_SEGMENT = 103
"""Linux include/uapi/linux/udp.h; Linux commit bec1f6f69736 ("udp: generate gso with UDP_SEGMENT"), 4.18."""

MAX_TRAIN = 64
"""Datagrams: the kernel's UDP_MAX_SEGMENTS was 64 for its first years, and is 128 now."""

MAX_TRAIN_BYTES = 65_507
"""Payload bytes of a whole train: before it is cut it is one IPv4 packet."""

REFUSALS = frozenset({errno.EINVAL, errno.EMSGSIZE, errno.EIO})
"""A datagram larger than the MTU (EINVAL, EMSGSIZE since 6.9); a device or route that cannot (EIO). udp(7)."""

WHOLE = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 0))
"""Ancillary data that sends one message in one piece through a socket that makes trains."""

_HEADERS = {socket.AF_INET: 20 + 8, socket.AF_INET6: 40 + 8}
_MTU = {
    socket.AF_INET: (socket.IPPROTO_IP, 14),  # IP_MTU, include/uapi/linux/in.h
    socket.AF_INET6: (socket.IPPROTO_IPV6, 24),  # IPV6_MTU, include/uapi/linux/in6.h
}


def longest(size: int) -> int:
    """The most datagrams of ``size`` bytes that a train has."""
    return max(1, min(MAX_TRAIN, MAX_TRAIN_BYTES // max(size, 1)))


def switch_on(sock: socket.socket, size: int) -> None:
    """Cut what this connected socket sends into datagrams of ``size`` bytes.

    Raises UnsupportedError where the kernel cannot, and KernelError where they do not fit the MTU of the route.
    """
    mtu = sock.getsockopt(*_MTU[sock.family])
    if size + _HEADERS[sock.family] > mtu:
        raise KernelError(
            f"a train cannot have datagrams of {size:,} bytes where the MTU is {mtu:,}",
            errno=errno.EMSGSIZE,
            hint=f"give a size of at most {mtu - _HEADERS[sock.family]}, or no trains (--gso off)",
        )
    try:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    except OSError as error:
        raise UnsupportedError(
            f"this kernel sends no trains (UDP_SEGMENT): {error.strerror}",
            errno=error.errno,
            hint="use Linux 4.18 or newer, or no trains (--gso off)",
        ) from None


def switch_off(sock: socket.socket) -> None:
    """Send every message in one piece again."""
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
