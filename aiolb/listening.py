"""Listening TCP sockets: what waits in their queue, how they refuse what is new, how they stop."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from pathlib import Path

from aiolb import sockets
from aiolb.bpf import syscall

_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
# struct tcp_info (include/uapi/linux/tcp.h): of a socket that listens, tcpi_unacked is its queue (tcp_get_info()),
# and tcpi_sacked how long that may be.
_TCP_INFO = struct.Struct("=B23xII")
_TCP_LISTEN = 10
_SO_GET_FILTER = 26  # include/uapi/asm-generic/socket.h

# Classic BPF on the TCP header: drop what has SYN and not ACK, keep everything else.
_INSTRUCTION = struct.Struct("=HBBI")
_NO_SYN = (
    (0x30, 0, 0, 13),  # A = the byte of flags
    (0x54, 0, 0, 0x12),  # A &= SYN | ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # then keep nothing
    (0x06, 0, 0, 0xFFFFFFFF),  # else all
)


def waiting_connections(sock: socket.socket) -> int:
    """Connections that the kernel has established for a socket and nobody has accepted; 0 if it does not listen."""
    return _queue(sock)[0]


def queue_limit(sock: socket.socket) -> int:
    """Connections that the kernel lets wait for a socket: its backlog, as the kernel lowered it; 0 as above."""
    return _queue(sock)[1]


def _queue(sock: socket.socket) -> tuple[int, int]:
    state, queued, limit = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    return (queued, limit) if state == _TCP_LISTEN else (0, 0)


def refuse_connections(sock: socket.socket) -> bool:
    """Let the kernel drop, and count, who wants to connect from now on; what is queued stays to be accepted.

    Dropped silently: whoever connects tries again a second later, and finds another member, or nobody.
    Connections that are accepted are not touched. False where nobody has done so, and the kernel does not let this
    user: some let nobody without privileges filter TCP (EPERM, measured with 6.18; of UDP sockets they let everybody).
    """
    try:
        syscall.attach_filter(sock, b"".join(_INSTRUCTION.pack(*instruction) for instruction in _NO_SYN))
    except PermissionError:
        return refuses_connections(sock)
    return True


def refuses_connections(sock: socket.socket) -> bool:
    """Whether somebody has called ``refuse_connections`` for a socket, which any of its owners may have."""
    # It gives as many bytes as the filter has instructions (sk_get_filter(), net/core/filter.c); any user may ask.
    return bool(sock.getsockopt(socket.SOL_SOCKET, _SO_GET_FILTER, 8 * len(_NO_SYN)))


def stop_listening(sock: socket.socket) -> int:
    """Close the port for every process that has the socket; the connections that waited, which are lost.

    A kernel that migrates them gives them to other members instead (Linux 5.14, net.ipv4.tcp_migrate_req).
    """
    waiting = waiting_connections(sock)
    try:
        sock.shutdown(socket.SHUT_RD)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # another process was faster
            raise
    return waiting


def listen_again(sock: socket.socket, backlog: int) -> None:
    """Listen with another backlog, or after ``refuse_connections`` or ``stop_listening``, whoever called that."""
    sockets.accept_datagrams(sock)  # it takes a filter away, whatever that refused
    sock.listen(backlog)


def backlog_limit() -> int | None:
    """What the kernel lowers every backlog to; None where it does not say."""
    with suppress(OSError, ValueError):
        return int(_SOMAXCONN.read_text())
    return None
