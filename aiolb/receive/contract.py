"""What every receiver promises: datagrams in batches, taken without waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import socket

Datagram = tuple[bytes, Any]
"""One UDP payload and the address tuple that the socket module gives for it."""

BATCH = 64
"""Messages that a receiver takes at most in one call, unless told otherwise."""


class Receiver(Protocol):
    """Takes datagrams off one non-blocking socket; the socket stays its owner's to close.

    The counters only grow: ``datagrams`` and ``bytes`` of payload handed out, and ``truncated``, the
    datagrams among them that the kernel had to cut.
    """

    datagrams: int
    bytes: int
    truncated: int

    def receive(self) -> list[Datagram]:
        """Take one batch of at most ``batch`` messages, with no waiting.

        A message is one datagram, or one train that is split here, so with UDP_GRO a list may be longer
        than ``batch``. An empty list means that the queue was empty; a short one need not mean that. A
        datagram without payload is a datagram.

        Raises OSError for an error of the socket, such as an ICMP error that arrived (udp(7)). An error
        that comes after datagrams were taken is raised by the next call, so it costs no datagram.
        """
        ...


class ReceiverFactory(Protocol):
    """Makes the receiver of a socket; every receiver's class is one."""

    def __call__(self, sock: socket.socket, /) -> Receiver:
        """A receiver of ``sock``, which must be non-blocking."""
        ...
