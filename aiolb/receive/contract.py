"""What every receiver promises: datagrams in batches, taken without waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

Datagram = tuple[bytes, Any]
"""One UDP payload and the address tuple that the socket module gives for it."""

BATCH = 64
"""Messages that a receiver takes at most in one call, unless told otherwise."""
DATAGRAMS = 1024
"""Datagrams that a receiver aims to hand out at most in one call, unless told otherwise."""
BUFFER_SIZE = 65536
"""Bytes of a message's buffer: no UDP payload and no train is longer (RFC 768: the length has 16 bits)."""


class Receiver(Protocol):
    """Takes datagrams off one non-blocking socket; the socket stays its owner's to close.

    The counters only grow.
    """

    @property
    def datagrams(self) -> int:
        """Datagrams handed out."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of payload in them."""
        ...

    @property
    def truncated(self) -> int:
        """Datagrams among them that the kernel had to cut."""
        ...

    @property
    def messages(self) -> int:
        """What the kernel handed over: a datagram, or a train of them, which is one."""
        ...

    @property
    def trains(self) -> int:
        """Messages among them that held several datagrams."""
        ...

    @property
    def timestamps(self) -> Sequence[int]:
        """When the kernel got each datagram of the last batch, in nanoseconds since 1970 (SO_TIMESTAMPNS, socket(7)).

        Empty unless the receiver was asked for it. Datagrams of a train share one time; 0 is an unknown time.
        """
        ...

    def take(self) -> Sequence[Datagram]:
        """Take one batch as ``receive`` does, in a sequence that may make a datagram when it is looked at."""
        ...

    def receive(self) -> list[Datagram]:
        """Take one batch of at most ``batch`` messages, with no waiting.

        A message is one datagram, or one train that is split here, so with UDP_GRO a list may be longer than
        ``batch``. Where trains come, fewer messages are taken, so that a list has about ``limit`` datagrams.
        An empty list means that the queue was empty; a short one need not mean that. A datagram without
        payload is a datagram.

        Raises OSError for an error of the socket, such as an ICMP error that arrived (udp(7)). An error
        that comes after datagrams were taken is raised by the next call, so it costs no datagram.
        """
        ...


class ReceiverFactory(Protocol):
    """Makes the receiver of a socket; every receiver's class is one."""

    def __call__(self, sock: socket.socket, /) -> Receiver:
        """A receiver of ``sock``, which must be non-blocking."""
        ...
