"""What every receiver promises: datagrams in batches, taken without waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import builtins
    import socket
    from collections.abc import Callable, Sequence

Datagram = tuple[bytes, Any]
"""One UDP payload and the address tuple that the socket module gives for it."""


class TimedDatagram(tuple[bytes, Any]):  # noqa: SLOT001 - a tuple can have no slots
    """A datagram that knows when the kernel got it, as receivers make them that were asked for timestamps.

    ``received_at`` is in nanoseconds since 1970 (SO_TIMESTAMPNS, socket(7)); those of a train share one time.
    """

    received_at: int

    def __new__(cls, datagram: bytes, addr: Any, received_at: int) -> Self:
        """Make the pair."""
        pair = super().__new__(cls, (datagram, addr))
        pair.received_at = received_at
        return pair


BATCH = 64
"""Messages that a receiver takes at most in one call, unless told otherwise."""
DATAGRAMS = 1024
"""Datagrams from which on a receiver adds no message to what one call hands out, unless told otherwise."""
SIZES = 16
"""Buckets of a receiver's batch sizes."""
BUFFER_SIZE = 65536
"""Bytes of a message's buffer: no UDP payload and no train is longer (RFC 768: the length has 16 bits)."""


class Senders(Protocol):
    """Who sends, in bounded memory."""

    @property
    def sketch(self) -> tuple[frozenset[int] | None, builtins.bytes]:
        """All sources so far but those that ``senders()`` left out, as :class:`aiolb.sketch.Sketch` takes them."""
        ...

    def senders(self) -> tuple[dict[str, int], int]:
        """Datagrams since the last call by the host that sent them, and those of whom that is not known any more.

        In bounded memory: those of hosts that sent little among very many others are not known for long. A receiver
        may leave out some of many that come at once.
        """
        ...


class Receiver(Senders, Protocol):
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
    def batch_sizes(self) -> Sequence[int]:
        """SIZES counters of calls that handed something out: the i-th counts those with fewer than 2^i datagrams."""
        ...

    @property
    def kept(self) -> int:
        """Messages that were taken off the socket, and that the next calls hand out: they make it readable no more."""
        ...

    def take(self) -> Sequence[Datagram]:
        """Take one batch as ``receive`` does, in a sequence that may make a datagram when it is looked at."""
        ...

    def receive(self) -> list[Datagram]:
        """Take one batch of at most ``batch`` messages, with no waiting.

        A message is one datagram, or one train that is split here, so with UDP_GRO a list may be longer than
        ``batch``; but once it has ``limit`` datagrams or more, what is left of what was taken is kept for the next
        call, and fewer messages are taken from then on where trains come.
        An empty list means that the queue was empty; a short one need not mean that. A datagram without
        payload is a datagram.

        Raises OSError for an error of the socket, such as an ICMP error that arrived (udp(7)). An error
        that comes after datagrams were taken is raised by the next call, so it costs no datagram.
        """
        ...


class Replies(Protocol):
    """Sends from one non-blocking, unconnected socket; between ``cork`` and ``uncork`` it holds, and ``len()`` is held.

    The counters only grow.
    """

    on_left: Callable[[], object] | None
    """Called by ``uncork`` when something of what was held could not leave."""

    @property
    def datagrams_sent(self) -> int:
        """Datagrams that the kernel took."""
        ...

    @property
    def bytes_sent(self) -> int:
        """Bytes of payload in them."""
        ...

    def __len__(self) -> int: ...

    def cork(self) -> None:
        """Hold from now on, 64 datagrams at least."""
        ...

    def uncork(self) -> None:
        """Hold no more, and send in one system call what is held."""
        ...

    def reply(self, data: Any, addr: Any, /) -> bool:
        """Send one datagram, or hold it behind the others.

        False if it did neither: ``data`` is not ``bytes``, ``addr`` is not one of numbers only, there is no room
        until ``flush``, something is held though it is not corked, or the kernel refused. Whoever sends it in
        another way learns why, and has to ``flush`` first.
        """
        ...

    def flush(self) -> None:
        """Send what is held, in order, as far as one system call goes; what is left is still held.

        Raises BlockingIOError when the socket's send buffer is full, and OSError for the first datagram that is
        left; ``drop`` gives that one up.
        """
        ...

    def drop(self) -> None:
        """Give up the first datagram that is held."""
        ...

    def release(self) -> list[Datagram]:
        """Hand over all that is held; nothing is held then."""
        ...


class RepliesFactory(Protocol):
    """Makes the replies of a socket; their class is one."""

    def __call__(self, sock: socket.socket, /) -> Replies:
        """Replies from ``sock``, which must be non-blocking."""
        ...


class ReceiverFactory(Protocol):
    """Makes the receiver of a socket; every receiver's class is one."""

    def __call__(self, sock: socket.socket, /, *, timestamps: bool = False) -> Receiver:
        """A receiver of ``sock``, which must be non-blocking; with ``timestamps`` of each :class:`TimedDatagram`."""
        ...
