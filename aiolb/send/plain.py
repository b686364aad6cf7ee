"""The sender in pure Python: the same contract everywhere, one system call per train or datagram."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

from aiolb.stamp import Stamp


class PlainSender:
    """See :class:`aiolb.send.contract.Sender`."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        datagram: bytes,
        *,
        limit: int,
        trains: bool,
        run: int | None,
        numbers: Sequence[int],
    ) -> None:
        self.trains = trains
        self.error = 0
        self.sent = [0] * len(sockets)
        self._limit = limit
        self._sends = [sock.send for sock in sockets]
        self._size = len(datagram)
        self._run = run
        self._numbers = numbers
        self._buffer = bytearray(datagram * limit)
        self._view = memoryview(self._buffer)

    @property
    def limit(self) -> int:
        """Without trains a piece saves nothing here, so the sources change with every datagram."""
        return self._limit if self.trains else 1

    def send(self, first: int, pieces: int, length: int) -> int:
        """See :meth:`aiolb.send.contract.Sender.send`."""
        if not 1 <= length <= self.limit:
            raise ValueError(f"a piece of {length} datagrams is not from 1 to {self.limit}")
        self.error = 0
        data = self._view[: length * self._size]
        sends, sent = self._sends, self.sent
        source = first
        for piece in range(pieces):
            if self._run is not None:
                self._stamp(source, length)
            try:
                sends[source](data)
            except OSError as error:
                self.error = error.errno or -1
                return piece * length
            sent[source] += length
            source = source + 1 if source + 1 < len(sends) else 0
        return pieces * length

    def _stamp(self, source: int, length: int) -> None:
        assert self._run is not None  # noqa: S101 - what types cannot say
        number, first, now = self._numbers[source], self.sent[source], time.time_ns()
        for n in range(length):
            Stamp(self._run, number, first + n, now).pack_into(self._buffer, n * self._size)
