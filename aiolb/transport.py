"""An asyncio.DatagramTransport that takes its datagrams from a receiver, on any event loop."""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from aiolb.receive.plain import PlainReceiver

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from aiolb.receive.contract import Datagram, Receiver, ReceiverFactory, Replies, RepliesFactory

_P = TypeVar("_P", bound=asyncio.BaseProtocol)

# asyncio's defaults and its accounting: a buffered datagram costs its payload and the UDP header.
_HIGH_WATER = 64 * 1024
_HEADER_SIZE = 8
_LATE_SENDS_UNTIL_WARNING = 5
# Datagrams sent from the buffer in one loop turn, so that a long buffer does not hold up timers.
_SENDS_PER_TURN = 64
# A socket reports each pending error once; one that reports more than these in a row is broken.
_ERRORS_PER_TURN = 16

_log = structlog.get_logger(__name__)


def create_transport(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    protocol_factory: Callable[[], _P],
    receiver_factory: ReceiverFactory = PlainReceiver,
    replies_factory: RepliesFactory | None = None,
) -> tuple[DatagramTransport, _P]:
    """Make a protocol and its transport over a bound, non-blocking UDP socket.

    ``connection_made`` has been called when this returns, and reading begins with the next turn of the
    loop. From then on the transport owns the socket and closes it. What the factories or
    ``connection_made`` raise is passed on, and the socket is the caller's to close.
    """
    protocol = protocol_factory()
    replies = replies_factory(sock) if replies_factory is not None else None
    return DatagramTransport(loop, sock, protocol, receiver_factory(sock), replies), protocol


class DatagramTransport(asyncio.DatagramTransport):
    """A datagram transport as the asyncio documentation describes it, fed by a receiver.

    Each time the socket is readable it takes one batch, so a flood cannot starve timers and tasks. A
    protocol with a method ``datagrams_received(batch)`` gets the batch in one call, any other gets
    ``datagram_received`` for each datagram. ``pause_reading``, ``resume_reading`` and ``is_reading`` are
    those of ``asyncio.ReadTransport``.

    With ``replies``, what is sent between ``cork`` and ``uncork`` leaves together.

    ``datagrams_sent``, ``bytes_sent`` and ``send_errors`` count what was sent; ``receiver`` counts what
    was received. Source: "Transports and Protocols" in the asyncio documentation.
    """

    cork: Callable[[], None]
    """Hold what is sent until ``uncork`` is called, which must be before the loop turns; up to 64 datagrams."""
    uncork: Callable[[], None]
    """Send in one system call what was held."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        receiver: Receiver,
        replies: Replies | None = None,
    ) -> None:
        peername = _peername(sock)
        super().__init__({"socket": sock, "sockname": sock.getsockname(), "peername": peername})
        self.receiver = receiver
        self._take = receiver.take
        self.send_errors = 0
        self._datagrams_sent = 0
        self._bytes_sent = 0
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._peername = peername
        self._connected = peername is not None
        self._replies = None if self._connected else replies
        self._reply: Callable[[Any, Any], bool] | None = None
        self.cork, self.uncork = _nothing, _nothing
        if self._replies is not None:
            self._replies.on_left = self._flush
            self.cork, self.uncork = self._replies.cork, self._replies.uncork
        self._reading = False
        self._closing = False
        self._lost = False
        self._buffer: deque[tuple[bytes, Any]] = deque()
        self._buffer_size = 0
        self._writing_paused = False
        self._late_sends = 0
        self._update_reply()
        self.set_write_buffer_limits()
        self.set_protocol(protocol)
        self.resume_reading()
        try:
            protocol.connection_made(self)
        except BaseException:
            self._let_go()
            raise

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Deliver to this protocol from now on."""
        self._protocol: Any = protocol
        self._deliver: Callable[[Sequence[Datagram]], None] = getattr(
            protocol, "datagrams_received", self._deliver_singly
        )

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that this transport delivers to."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    # Reading

    def is_reading(self) -> bool:
        """Whether the socket is being watched for datagrams."""
        return self._reading

    def pause_reading(self) -> None:
        """Leave datagrams in the kernel's queue. Does nothing when paused or closing."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Deliver datagrams again. Does nothing when reading or closing."""
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)
            if self.receiver.kept:
                self._come_again()

    def _readable(self) -> None:
        try:
            batch = self._take()
        except OSError as error:
            self._protocol.error_received(error)
            self.receive_now()
            return
        if batch:
            self._deliver(batch)
        if self.receiver.kept:
            self._come_again()

    def receive_now(self) -> int:
        """Take one batch at once, also while reading is paused, and deliver it.

        Returns the number of datagrams; 0 when the queue is empty or the transport is closing. Errors of
        the socket go to the protocol's ``error_received`` and do not end the batch.
        """
        for _ in range(_ERRORS_PER_TURN):
            if self._closing:
                break
            try:
                batch = self._take()
            except OSError as error:
                self._protocol.error_received(error)
                continue
            count = len(batch)
            if count:
                self._deliver(batch)
            if self.receiver.kept:
                self._come_again()
            return count
        return 0

    def _come_again(self) -> None:
        """Take what the receiver kept with the next turn of the loop, and not before: nothing else calls for it."""
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._loop.call_soon(self._take_kept)

    def _take_kept(self) -> None:
        if self._reading:
            self._loop.add_reader(self._fd, self._readable)
            self._readable()

    def _deliver_singly(self, batch: Sequence[Datagram]) -> None:
        for datagram, addr in batch:
            # The rest of the batch has left the kernel's queue: one failure must not lose it.
            self._call_protocol(self._protocol.datagram_received, datagram, addr)

    # Writing

    @property
    def datagrams_sent(self) -> int:
        """Datagrams that the kernel took."""
        return self._datagrams_sent + (self._replies.datagrams_sent if self._replies is not None else 0)

    @property
    def bytes_sent(self) -> int:
        """Bytes of payload in them."""
        return self._bytes_sent + (self._replies.bytes_sent if self._replies is not None else 0)

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send one datagram, or buffer it while the socket's send buffer is full.

        ``addr`` may be left out when the socket is connected. An OSError counts as a send error and goes
        to the protocol's ``error_received``. After ``close`` or ``abort`` the datagram is ignored.

        Raises TypeError when data is not bytes-like, ValueError when addr is missing or is not the peer of
        a connected socket, and what the socket module raises (TypeError, OverflowError) for a malformed
        addr, unless the datagram was buffered: then the loop's exception handler is told.
        """
        if self._reply is None or not self._reply(data, addr):
            self._send_carefully(data, addr)

    def get_write_buffer_size(self) -> int:
        """Bytes that are buffered, with 8 for the header of each datagram; not what is held until ``uncork``."""
        return self._buffer_size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high water mark in bytes."""
        return self._low_water, self._high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks in bytes: above ``high`` the protocol's writing is paused, at ``low`` it resumes.

        Without arguments high is 64 KiB; low is a quarter of high. Raises ValueError unless
        ``high >= low >= 0``.
        """
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high_water, self._low_water = high, low
        self._update_flow()

    def _send_carefully(self, data: bytes | bytearray | memoryview, addr: Any) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be a bytes-like object, not {type(data).__name__}")
        self._check_destination(addr)
        if self._closing:
            self._ignore_late_send()
            return
        if self._replies is not None and len(self._replies):
            # What is held goes first, and then there is room again.
            self._flush()
            if self._reply is not None and self._reply(bytes(data), addr):
                return
        if self._buffer or not self._send(data, addr):
            self._enqueue(bytes(data), addr)

    def _update_reply(self) -> None:
        """Nothing may overtake what is buffered, and nothing is sent by a transport that closes."""
        usable = self._replies is not None and not self._buffer and not self._closing
        self._reply = self._replies.reply if self._replies is not None and usable else None

    def _check_destination(self, addr: Any) -> None:
        if self._connected and addr not in (None, self._peername):
            raise ValueError(f"addr must be None or {self._peername}, the socket is connected")
        if not self._connected and addr is None:
            raise ValueError("addr is missing, the socket is not connected")

    def _send(self, data: bytes | bytearray | memoryview, addr: Any) -> bool:
        """Hand one datagram to the kernel; false when there is no room for it now."""
        sock = self._sock
        if sock is None:
            return True
        try:
            sent = sock.send(data) if self._connected else sock.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.send_errors += 1
            self._protocol.error_received(error)
        else:
            self._datagrams_sent += 1
            self._bytes_sent += sent
        return True

    def _flush(self) -> None:
        replies = self._replies
        while replies is not None and len(replies):
            try:
                replies.flush()
            except (BlockingIOError, InterruptedError):
                for data, addr in replies.release():
                    self._enqueue(data, addr)
            except OSError as error:
                replies.drop()
                self.send_errors += 1
                self._protocol.error_received(error)

    def _enqueue(self, data: bytes, addr: Any) -> None:
        if not self._buffer:
            self._loop.add_writer(self._fd, self._writable)
        self._buffer.append((data, addr))
        self._reply = None
        self._buffer_size += len(data) + _HEADER_SIZE
        self._update_flow()

    def _writable(self) -> None:
        for _ in range(min(len(self._buffer), _SENDS_PER_TURN)):
            if not (self._buffer and self._send_first()):
                break
        if not self._buffer:
            self._loop.remove_writer(self._fd)
            self._update_reply()
            if self._closing:
                self._lose()
        self._update_flow()

    def _send_first(self) -> bool:
        data, addr = self._buffer.popleft()
        try:
            sent = self._send(data, addr)
        except (TypeError, ValueError, OverflowError) as error:
            # sendto() had to take addr unseen, and its caller is gone.
            self.send_errors += 1
            self._tell_loop("a buffered datagram has no address", error)
            sent = True
        if sent:
            self._buffer_size -= len(data) + _HEADER_SIZE
        else:
            self._buffer.appendleft((data, addr))
        return sent

    def _update_flow(self) -> None:
        if self._buffer_size > self._high_water and not self._writing_paused:
            self._writing_paused = True
            self._call_protocol(self._protocol.pause_writing)
        elif self._buffer_size <= self._low_water and self._writing_paused:
            self._writing_paused = False
            self._call_protocol(self._protocol.resume_writing)

    def _ignore_late_send(self) -> None:
        self._late_sends += 1
        if self._late_sends == _LATE_SENDS_UNTIL_WARNING:
            _log.warning("send_after_close", socket=self.get_extra_info("sockname"))

    # Closing

    def is_closing(self) -> bool:
        """Whether the transport is closing or closed."""
        return self._closing

    def close(self) -> None:
        """Stop reading, send what is buffered, then call ``connection_lost(None)`` and close the socket."""
        if self._closing:
            return
        self._flush()
        self.pause_reading()
        self._closing = True
        self._reply = None
        if not self._buffer:
            self._lose()

    def abort(self) -> None:
        """Close without sending what is buffered."""
        if self._replies is not None:
            self._replies.release()
        self.pause_reading()
        self._closing = True
        self._reply = None
        if self._buffer:
            self._buffer_size -= sum(len(data) + _HEADER_SIZE for data, _ in self._buffer)
            self._buffer.clear()
            self._loop.remove_writer(self._fd)
        self._lose()

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._connection_lost)

    def _connection_lost(self) -> None:
        try:
            self._protocol.connection_lost(None)
        finally:
            if self._sock is not None:
                self._sock.close()
                self._sock = None

    def _let_go(self) -> None:
        """Leave the socket to the caller, as if it had never been ours."""
        self.pause_reading()
        self._closing = True
        self._reply = None
        if self._buffer:
            self._buffer.clear()
            self._loop.remove_writer(self._fd)
        self._sock = None

    def __del__(self) -> None:
        sock = getattr(self, "_sock", None)
        if sock is not None:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=2)
            sock.close()

    def _call_protocol(self, method: Callable[..., object], *args: Any) -> None:
        try:
            method(*args)
        except Exception as error:  # noqa: BLE001 - as asyncio does: the loop's handler is told of it
            self._tell_loop(f"{method.__name__}() failed", error)

    def _tell_loop(self, message: str, error: Exception) -> None:
        context = {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        self._loop.call_exception_handler(context)


def _nothing() -> None:
    pass


def _peername(sock: socket.socket) -> Any:
    try:
        return sock.getpeername()
    except OSError:
        return None
