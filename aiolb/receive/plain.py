"""The receiver in pure Python: one reused buffer, one system call per message."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from aiolb.receive.contract import BATCH, BUFFER_SIZE, DATAGRAMS, SIZES, TimedDatagram
from aiolb.receive.senders import PlainSenders

if TYPE_CHECKING:
    from aiolb.receive.contract import Datagram

# Linux names that the socket module of Python 3.11 lacks (include/uapi/linux/udp.h, asm-generic/socket.h).
_UDP_GRO = 104
_SO_TIMESTAMPNS = 35
_SEGMENT_SIZE = struct.Struct("@i")
_TIMESPEC = struct.Struct("@ll")
_CONTROL_SIZE = socket.CMSG_SPACE(_SEGMENT_SIZE.size) + socket.CMSG_SPACE(_TIMESPEC.size)


class PlainReceiver:
    """A :class:`~aiolb.receive.contract.Receiver` without compiled code.

    Trains are split if UDP_GRO is on when the receiver is made; a socket that is inherited may have it on.
    The buffer of ``size`` bytes is reused because a fresh one for each datagram can cost an mmap each time,
    which is several times the price of the datagram. A datagram longer than that is cut, and counted where
    trains or timestamps make the kernel tell. Raises ValueError for a number below 1, OSError if the socket
    is closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        batch: int = BATCH,
        limit: int = DATAGRAMS,
        size: int = BUFFER_SIZE,
        timestamps: bool = False,
    ) -> None:
        if batch < 1 or limit < 1 or size < 1:
            raise ValueError(f"batch {batch}, limit {limit} and size {size} must be at least 1")
        self.datagrams = 0
        self.bytes = 0
        self.truncated = 0
        self.messages = 0
        self.trains = 0
        self.kept = 0
        self.batch_sizes = [0] * SIZES
        self._senders = PlainSenders()
        self.senders = self._senders.senders
        self._batch = batch
        self._limit = limit
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._recvfrom_into = sock.recvfrom_into
        self._recvmsg_into = sock.recvmsg_into
        if timestamps:
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._with_control = timestamps or _gives_trains(sock)
        self._error: OSError | None = None

    def take(self) -> list[Datagram]:
        """Take one batch; here it is the same as ``receive``."""
        return self.receive()

    def receive(self) -> list[Datagram]:
        """Take one batch; see :meth:`aiolb.receive.contract.Receiver.receive`."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        batch: list[Datagram] = []
        try:
            if self._with_control:
                self._take_trains(batch)
            else:
                self._take_datagrams(batch)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if not batch:
                raise
            self._error = error
        if batch:
            self.datagrams += len(batch)
            self.batch_sizes[min(len(batch).bit_length(), SIZES - 1)] += 1
            self._senders.note(batch)
        return batch

    @property
    def sketch(self) -> tuple[frozenset[int] | None, bytes]:
        """All sources so far; see :meth:`aiolb.receive.contract.Receiver.sketch`."""
        return self._senders.sketch

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
            self.messages += len(batch)

    def _take_trains(self, batch: list[Datagram]) -> None:
        view, buffers = self._view, [self._buffer]
        for _ in range(self._batch):
            size, control, flags, addr = self._recvmsg_into(buffers, _CONTROL_SIZE)
            if flags & socket.MSG_TRUNC:
                self.truncated += 1
            self.messages += 1
            self.bytes += size
            segment, stamp = _read_control(control)
            if not segment or size <= segment:
                pieces = [bytes(view[:size])]
            else:
                self.trains += 1
                pieces = [bytes(view[at : min(at + segment, size)]) for at in range(0, size, segment)]
            if stamp:
                batch += [TimedDatagram(piece, addr, stamp) for piece in pieces]
            else:
                batch += [(piece, addr) for piece in pieces]
            if len(batch) >= self._limit:
                break


def _gives_trains(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.IPPROTO_UDP, _UDP_GRO))
    except OSError:
        # Not a UDP socket, or a kernel before 5.0: no trains either way.
        return False


def _read_control(control: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """The bytes of each datagram of a train but its last, and the time in nanoseconds; 0 for what is not told."""
    segment = stamp = 0
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_UDP, _UDP_GRO):
            segment = _SEGMENT_SIZE.unpack_from(data)[0]
        elif (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            stamp = seconds * 1_000_000_000 + nanoseconds
    return segment, stamp
