"""The receiver in pure Python: one reused buffer, one system call per message."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from aiolb.receive.contract import BATCH

if TYPE_CHECKING:
    from aiolb.receive.contract import Datagram

# No UDP payload and no train is longer (RFC 768: the length field has 16 bits).
_BUFFER_SIZE = 65536
# Linux include/uapi/linux/udp.h; the socket module of Python has no name for it.
_UDP_GRO = 104
_SEGMENT_SIZE = struct.Struct("@i")
_CONTROL_SIZE = socket.CMSG_SPACE(_SEGMENT_SIZE.size)


class PlainReceiver:
    """A :class:`~aiolb.receive.contract.Receiver` without compiled code.

    Trains are split if UDP_GRO is on when the receiver is made; a socket that is inherited may have it on.
    The buffer is reused because a fresh one for each datagram can cost an mmap each time, which is several
    times the price of the datagram. Raises OSError if the socket is closed.
    """

    def __init__(self, sock: socket.socket, *, batch: int = BATCH) -> None:
        self.datagrams = 0
        self.bytes = 0
        self.truncated = 0
        self._batch = batch
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._recvfrom_into = sock.recvfrom_into
        self._recvmsg_into = sock.recvmsg_into
        self._trains = _gives_trains(sock)
        self._error: OSError | None = None

    def receive(self) -> list[Datagram]:
        """Take one batch; see :meth:`aiolb.receive.contract.Receiver.receive`."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        batch: list[Datagram] = []
        try:
            if self._trains:
                self._take_trains(batch)
            else:
                self._take_datagrams(batch)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if not batch:
                raise
            self._error = error
        self.datagrams += len(batch)
        return batch

    def _take_datagrams(self, batch: list[Datagram]) -> None:
        # recvmsg_into would tell of MSG_TRUNC for 15 % more per datagram, and nothing exceeds this buffer.
        take, buffer, view, append = self._recvfrom_into, self._buffer, self._view, batch.append
        total = 0
        try:
            for _ in range(self._batch):
                size, addr = take(buffer)
                append((bytes(view[:size]), addr))
                total += size
        finally:
            self.bytes += total

    def _take_trains(self, batch: list[Datagram]) -> None:
        view, buffers = self._view, [self._buffer]
        for _ in range(self._batch):
            size, control, flags, addr = self._recvmsg_into(buffers, _CONTROL_SIZE)
            if flags & socket.MSG_TRUNC:
                self.truncated += 1
            self.bytes += size
            segment = _segment_size(control) or size
            if size <= segment:
                batch.append((bytes(view[:size]), addr))
            else:
                batch += [(bytes(view[at : min(at + segment, size)]), addr) for at in range(0, size, segment)]


def _gives_trains(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.IPPROTO_UDP, _UDP_GRO))
    except OSError:
        # Not a UDP socket, or a kernel before 5.0: no trains either way.
        return False


def _segment_size(control: list[tuple[int, int, bytes]]) -> int:
    """The length in bytes of each datagram of a train but its last; 0 for a message that is no train."""
    for level, kind, data in control:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
            return int(_SEGMENT_SIZE.unpack_from(data)[0])
    return 0
