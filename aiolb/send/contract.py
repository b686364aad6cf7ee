"""What a sender is: many datagrams of many sources in one call."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol


class Sender(Protocol):
    """Sends the datagram of a publisher from its sources; made by ``make(sockets, datagram, ...)``.

    A piece is some datagrams of one source. With ``trains`` a piece is one train, all or nothing: the sockets
    must have UDP_SEGMENT set to the datagram's size. Datagrams are stamped, where a run is given, with it, the
    number of the source, the count of datagrams that the source sent before, and the time of sending.
    """

    trains: bool
    """Whether pieces are trains; may be changed."""

    @property
    def limit(self) -> int:
        """The most datagrams that a piece can have at present."""

    @property
    def error(self) -> int:
        """The errno that ended the last call early, or 0."""

    @property
    def sent(self) -> list[int]:
        """How many datagrams each source sent."""

    def send(self, first: int, pieces: int, length: int) -> int:
        """Send pieces of ``length`` datagrams, one from each source in turn, beginning with ``first``.

        Stops at the first error and keeps it in ``error``; returns how many datagrams were sent. Raises
        ValueError for a length that is not from 1 to ``limit``. The sockets must be open and non-blocking.
        """


class SenderClass(Protocol):
    """How senders are made."""

    def __call__(
        self,
        sockets: Sequence[socket.socket],
        datagram: bytes,
        *,
        limit: int,
        trains: bool,
        run: int | None,
        numbers: Sequence[int],
    ) -> Sender:
        """A sender of pieces of up to ``limit`` datagrams; ``numbers`` are those of the sources in stamps."""
