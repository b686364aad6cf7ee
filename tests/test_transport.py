"""The transport over real sockets, on both event loops, against what asyncio documents."""

# ruff: noqa: D102 - methods of fakes are named after what they stand for

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from contextlib import closing, contextmanager, suppress

import pytest
import structlog
import uvloop
from deadline import DEADLINE

from aiolb.protocol import CollectorProtocol
from aiolb.receive.plain import PlainReceiver
from aiolb.transport import DatagramTransport, create_transport

pytestmark = pytest.mark.usefixtures("nothing_left")

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
HEADER = 8


@pytest.fixture(autouse=True, scope="module")
def _libuv():
    """Open the pipe that libuv keeps from the first loop on, before descriptors are counted."""
    uvloop.new_event_loop().close()


@pytest.fixture(params=LOOPS)
def run(request):
    """Runs a coroutine function on each loop; returns the calls of the loop's exception handler: none, unless told."""

    def run(main, *, complaints=()):
        told = []

        async def in_time():
            async with asyncio.timeout(DEADLINE):
                await main()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.get_loop().set_exception_handler(lambda _loop, context: told.append(context))
            runner.run(in_time())
        assert [str(context["exception"]) for context in told] == list(complaints)

    return run


def udp(host="127.0.0.1", *, connect=None):
    """A bound non-blocking UDP socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((host, 0))
    if connect is not None:
        sock.connect(connect)
    return sock


class Recording(asyncio.DatagramProtocol):
    """Keeps what it was called with, and wakes whoever waits for more."""

    def __init__(self):
        self.calls = []
        self.received = []
        self.errors = []
        self.changed = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.note("made")

    def note(self, call):
        self.calls.append(call)
        self.changed.set()

    def datagram_received(self, data, addr):
        self.received.append((data, addr))
        self.changed.set()

    def error_received(self, exc):
        self.errors.append(exc)
        self.note("error")

    def connection_lost(self, exc):
        self.note(f"lost {exc}")

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")

    async def until(self, condition):
        while not condition():
            self.changed.clear()
            await self.changed.wait()


class Batching(Recording):
    """The same with the batch door."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def datagrams_received(self, batch):
        self.batches.append(len(batch))
        self.received.extend(batch)
        self.changed.set()


CHOSEN = {}
"""The parts that the parameter of a test chose."""


@pytest.fixture(autouse=True)
def chosen(parts, monkeypatch):
    """Run every test on all parts."""
    monkeypatch.setitem(CHOSEN, "receiver", parts.receiver)
    monkeypatch.setitem(CHOSEN, "replies", parts.replies)


@contextmanager
def made(sock, protocol_class=Recording, receiver_factory=None, replies_factory=None):
    """A transport and its protocol over a socket, aborted in the end."""
    # The compiled parts are for UDP; a socket whose send buffer can be filled is not, or is a fake.
    blocks = isinstance(sock, FullOnce) or sock.family == socket.AF_UNIX
    chosen = {"receiver": PlainReceiver, "replies": None} if blocks else CHOSEN
    receiver_factory, replies_factory = receiver_factory or chosen["receiver"], replies_factory or chosen["replies"]
    transport, protocol = create_transport(
        asyncio.get_running_loop(), sock, protocol_class, receiver_factory, replies_factory
    )
    try:
        yield transport, protocol
    finally:
        transport.abort()


async def turns(n=5):
    """Let the loop turn."""
    for _ in range(n):
        await asyncio.sleep(0)


async def lost(protocol):
    """Wait for connection_lost."""
    await protocol.until(lambda: "lost None" in protocol.calls)


# Reading


@pytest.mark.parametrize("protocol_class", [Recording, Batching])
def test_datagrams_arrive_in_order_by_either_door(run, protocol_class):
    """Two hundred datagrams reach the protocol in order, in batches if it has the door for them."""

    async def main():
        with closing(udp()) as sender, made(udp(), protocol_class) as (transport, protocol):
            sent = [b"%d" % i for i in range(200)]
            for datagram in sent:
                sender.sendto(datagram, transport.get_extra_info("sockname"))
            await protocol.until(lambda: len(protocol.received) == 200)
            assert protocol.received == [(datagram, sender.getsockname()) for datagram in sent]
            assert transport.receiver.datagrams == 200
            assert transport.receiver.bytes == sum(map(len, sent))
            if protocol_class is Batching:
                assert protocol.batches == [64, 64, 64, 8]
        await lost(protocol)

    run(main)


def test_one_batch_is_taken_per_turn_of_the_loop(run):
    """With a full queue other callbacks run between two batches."""

    async def main():
        loop = asyncio.get_running_loop()
        with closing(udp()) as sender, made(udp(), Batching) as (transport, protocol):
            for _ in range(200):
                sender.sendto(b"x", transport.get_extra_info("sockname"))
            seen = []

            def look():
                seen.append(len(protocol.received))
                if len(protocol.received) < 200:
                    loop.call_soon(look)

            look()
            await protocol.until(lambda: len(protocol.received) == 200)
            await turns()
            assert {64, 128, 192} <= set(seen)

    run(main)


class Keeping:
    """A receiver that takes three batches at once from a readable socket, and hands out one per call."""

    datagrams = bytes = truncated = 0

    def __init__(self, sock):
        self.sock = sock
        self.batches = []

    @property
    def kept(self):
        return len(self.batches)

    def take(self):
        if not self.batches:
            try:
                self.batches = [[self.sock.recvfrom(9)]] * 3
            except BlockingIOError:
                return []
        return self.batches.pop()


def test_what_a_receiver_kept_is_taken_turn_by_turn(run):
    """Though the socket is not readable any more, and one batch per turn of the loop."""

    async def main():
        loop = asyncio.get_running_loop()
        with closing(udp()) as sender, made(udp(), Batching, Keeping) as (transport, protocol):
            seen = []

            def look():
                seen.append(len(protocol.received))
                if len(protocol.received) < 6:
                    loop.call_soon(look)

            look()
            for data in (b"1", b"2"):
                sender.sendto(data, transport.get_extra_info("sockname"))
            await protocol.until(lambda: len(protocol.received) == 6)
            await turns()
            assert {1, 2} <= set(seen)
            assert [data for data, _ in protocol.received] == [b"1"] * 3 + [b"2"] * 3
            assert transport.is_reading()

    run(main)


def test_what_a_receiver_kept_waits_while_reading_is_paused(run):
    """It comes when reading resumes, or is asked for; closing forgets it."""

    async def main():
        with closing(udp()) as sender, made(udp(), Batching, Keeping) as (transport, protocol):
            target = transport.get_extra_info("sockname")
            sender.sendto(b"1", target)
            await protocol.until(lambda: protocol.received)
            transport.pause_reading()
            await turns()
            assert (len(protocol.received), transport.receiver.kept) == (1, 2)
            assert transport.receive_now() == 1
            await turns()
            assert len(protocol.received) == 2
            transport.resume_reading()
            transport.pause_reading()
            transport.resume_reading()
            await protocol.until(lambda: len(protocol.received) == 3)
            sender.sendto(b"2", target)
            await protocol.until(lambda: len(protocol.received) == 4)
            transport.close()
            await lost(protocol)
            await turns()
            assert len(protocol.received) == 4

    run(main)


def test_reading_can_be_paused_and_resumed(run):
    """While paused, datagrams stay in the kernel's queue and are taken by receive_now alone."""

    async def main():
        with closing(udp()) as sender, made(udp(), Batching) as (transport, protocol):
            assert transport.is_reading()
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            for _ in range(70):
                sender.sendto(b"x", transport.get_extra_info("sockname"))
            await turns()
            assert protocol.received == []
            assert [transport.receive_now() for _ in range(3)] == [64, 6, 0]
            assert protocol.batches == [64, 6]
            sender.sendto(b"y", transport.get_extra_info("sockname"))
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            await protocol.until(lambda: len(protocol.received) == 71)

    run(main)


def test_the_protocol_may_pause_from_the_beginning(run):
    """pause_reading in connection_made holds."""

    class Shy(Recording):
        def connection_made(self, transport):
            transport.pause_reading()

    async def main():
        with closing(udp()) as sender, made(udp(), Shy) as (transport, protocol):
            sender.sendto(b"x", transport.get_extra_info("sockname"))
            await turns()
            assert protocol.received == []
            assert transport.receive_now() == 1

    run(main)


def test_an_exception_in_one_datagram_loses_no_other(run):
    """The loop's handler is told, and the rest of the batch is delivered."""

    class Fragile(Recording):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if data == b"1":
                raise ValueError("fragile")

    async def main():
        with closing(udp()) as sender, made(udp(), Fragile) as (transport, protocol):
            for i in range(4):
                sender.sendto(b"%d" % i, transport.get_extra_info("sockname"))
            await protocol.until(lambda: len(protocol.received) == 4)

    run(main, complaints=["fragile"])


def test_closing_from_a_callback_loses_nothing_that_was_taken(run):
    """A protocol that closes in the middle of a batch still gets the rest of it before connection_lost."""

    class Closing(Recording):
        def datagram_received(self, data, addr):
            assert self.calls == ["made"]
            super().datagram_received(data, addr)
            self.transport.close()

    async def main():
        with closing(udp()) as sender:
            sock = udp()
            for i in range(4):
                sender.sendto(b"%d" % i, sock.getsockname())
            with made(sock, Closing) as (_, protocol):
                await lost(protocol)
                assert len(protocol.received) == 4

    run(main)


def test_an_error_of_the_socket_does_not_end_a_drain(run):
    """receive_now reports a pending ICMP error and takes the datagram behind it."""

    async def main():
        peer = udp()
        port = peer.getsockname()
        with made(udp(connect=port), Batching) as (transport, protocol):
            transport.pause_reading()
            peer.close()
            transport.sendto(b"nobody")
            with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as back:
                back.bind(port)
                back.sendto(b"x", transport.get_extra_info("sockname"))
                assert transport.receive_now() == 1
            assert [type(error) for error in protocol.errors] == [ConnectionRefusedError]

    run(main)


def test_a_broken_socket_cannot_hold_the_loop(run):
    """A receiver that only fails is asked a bounded number of times."""

    class Broken:
        datagrams = bytes = truncated = kept = 0

        def __init__(self, _sock):
            pass

        def take(self):
            raise OSError("broken")

    async def main():
        with made(udp(), Recording, Broken) as (transport, protocol):
            assert transport.receive_now() == 0
            assert len(protocol.errors) == 16

    run(main)


# Writing


def test_replies_are_sent_and_counted(run):
    """Any bytes-like object can be sent, the empty one too; datagrams and bytes are counted."""

    async def main():
        with closing(udp()) as peer, made(udp()) as (transport, _):
            for data in (b"one", bytearray(b"two!"), memoryview(b"three"), b""):
                transport.sendto(data, peer.getsockname())
            assert [peer.recv(100) for _ in range(4)] == [b"one", b"two!", b"three", b""]
            assert (transport.datagrams_sent, transport.bytes_sent, transport.send_errors) == (4, 12, 0)
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_a_connected_socket_needs_no_address(run):
    """Without an address or with the peer's it is sent to the peer; any other is refused."""

    async def main():
        with closing(udp()) as peer, made(udp(connect=peer.getsockname())) as (transport, _):
            transport.sendto(b"1")
            transport.sendto(b"2", peer.getsockname())
            assert [peer.recv(9), peer.recv(9)] == [b"1", b"2"]
            with pytest.raises(ValueError, match="must be None or"):
                transport.sendto(b"3", ("127.0.0.9", 9))
            assert transport.get_extra_info("peername") == peer.getsockname()

    run(main)


def test_wrong_arguments_are_the_callers(run):
    """Data that is no bytes, a missing address and a malformed one raise in sendto and close nothing."""

    async def main():
        with made(udp()) as (transport, protocol):
            with pytest.raises(TypeError, match="bytes-like"):
                transport.sendto("text", ("127.0.0.1", 9))
            with pytest.raises(ValueError, match="addr is missing"):
                transport.sendto(b"x")
            with pytest.raises(TypeError):
                transport.sendto(b"x", ("127.0.0.1", "nine"))
            with pytest.raises(OverflowError):
                transport.sendto(b"x", ("127.0.0.1", 70000))
            assert protocol.calls == ["made"]
            assert not transport.is_closing()

    run(main)


def test_an_error_in_sending_goes_to_the_protocol(run):
    """EMSGSIZE is a send error and error_received is called."""

    async def main():
        with closing(udp()) as peer, made(udp()) as (transport, protocol):
            transport.sendto(b"x" * 65600, peer.getsockname())
            assert (transport.datagrams_sent, transport.send_errors) == (0, 1)
            assert [type(error) for error in protocol.errors] == [OSError]

    run(main)


def test_a_refused_reply_goes_to_the_protocol(run):
    """An ICMP error of a connected socket wakes the reader and becomes ConnectionRefusedError."""

    async def main():
        peer = udp()
        with made(udp(connect=peer.getsockname())) as (transport, protocol):
            peer.close()
            transport.sendto(b"nobody")
            await protocol.until(lambda: protocol.errors)
            assert type(protocol.errors[0]) is ConnectionRefusedError

    run(main)


@contextmanager
def full():
    """A transport whose peer (a Unix datagram socket, which does block) takes no more for now."""
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    peer.setblocking(False)
    with closing(peer), made(ours) as (transport, protocol):
        filled = 0
        while transport.get_write_buffer_size() == 0:
            transport.sendto(b"%08d" % filled)
            filled += 1
        assert transport.get_write_buffer_size() == 8 + HEADER
        yield transport, protocol, peer, filled


async def read(peer, n):
    """Take exactly n datagrams off a non-blocking socket while the loop turns."""
    found = []
    while len(found) < n:
        try:
            found.append(peer.recv(100))
        except BlockingIOError:
            await asyncio.sleep(0)
    return found


class HoldingReplies:
    """Replies whose kernel answers as told: a number of datagrams, or an error."""

    def __init__(self, *answers, room=64):
        self.answers = list(answers)
        self.room = room
        self.held = []
        self.sent = []
        self.bytes_sent = 0
        self.on_left = None
        self.corked = False

    @property
    def datagrams_sent(self):
        return len(self.sent)

    def __len__(self):
        return len(self.held)

    def cork(self):
        self.corked = True

    def uncork(self):
        self.corked = False
        if self.held:
            with suppress(OSError):
                self.flush()
        if self.held:
            self.on_left()

    def reply(self, data, addr):
        if not self.corked or len(self.held) >= self.room or addr[0] == "localhost":
            return False
        self.held.append((data, addr))
        return True

    def flush(self):
        answer = self.answers.pop(0) if self.answers else len(self.held)
        if isinstance(answer, OSError):
            raise answer
        self.sent += self.held[:answer]
        self.bytes_sent += sum(len(data) for data, _ in self.held[:answer])
        del self.held[:answer]

    def drop(self):
        del self.held[0]

    def release(self):
        held, self.held = self.held, []
        return held


def test_what_is_sent_between_cork_and_uncork_leaves_together(run):
    """It is held until then, in order; before and after, a datagram leaves at once."""

    async def main():
        replies = HoldingReplies()
        with udp("127.0.0.9") as peer, made(udp(), replies_factory=lambda _: replies) as (transport, _):
            addr = peer.getsockname()
            transport.sendto(b"before", addr)
            transport.cork()
            for i in range(3):
                transport.sendto(b"%d" % i, addr)
            assert (len(replies), transport.datagrams_sent) == (3, 1)
            transport.uncork()
            transport.sendto(b"after", addr)
            assert replies.sent == [(b"0", addr), (b"1", addr), (b"2", addr)]
            assert [peer.recv(9) for _ in range(2)] == [b"before", b"after"]
            assert (transport.datagrams_sent, transport.bytes_sent) == (5, 14)

    run(main)


def test_what_cannot_be_held_keeps_its_place(run):
    """What is full is emptied first, and so it is for an address that only the socket module can judge."""

    async def main():
        replies = HoldingReplies(room=2)
        with udp("127.0.0.9") as peer, made(udp(), replies_factory=lambda _: replies) as (transport, _):
            port = peer.getsockname()[1]
            transport.cork()
            for i in range(3):
                transport.sendto(b"%d" % i, ("127.0.0.9", port))
            assert ([data for data, _ in replies.sent], len(replies)) == ([b"0", b"1"], 1)
            transport.sendto(b"3", ("localhost", port))
            assert ([data for data, _ in replies.sent], len(replies)) == ([b"0", b"1", b"2"], 0)
            assert transport.datagrams_sent == 4
            transport.uncork()

    run(main)


def test_held_datagrams_meet_errors_one_by_one(run):
    """An error costs the datagram that it belongs to, is counted and told; the others leave."""

    async def main():
        replies = HoldingReplies(1, OSError(errno.EPERM, "filtered"), OSError(errno.EMSGSIZE, "long"), 1)
        with made(udp(), replies_factory=lambda _: replies) as (transport, protocol):
            transport.cork()
            for i in range(5):
                transport.sendto(b"%d" % i, ("127.0.0.9", 9))
            transport.uncork()
            assert [data for data, _ in replies.sent] == [b"0", b"3", b"4"]
            assert [error.errno for error in protocol.errors] == [errno.EPERM, errno.EMSGSIZE]
            assert (transport.datagrams_sent, transport.send_errors) == (3, 2)

    run(main)


def test_held_datagrams_are_buffered_when_there_is_no_room(run):
    """They leave later in their order, and what is sent meanwhile is behind them."""

    async def main():
        replies = HoldingReplies(1, BlockingIOError())
        with udp("127.0.0.9") as peer, made(udp(), replies_factory=lambda _: replies) as (transport, _):
            addr = peer.getsockname()
            transport.cork()
            for i in range(3):
                transport.sendto(b"%d" % i, addr)
            transport.uncork()
            assert transport.get_write_buffer_size() == 2 * (1 + HEADER)
            transport.cork()
            transport.sendto(b"3", addr)
            assert len(replies) == 0
            transport.uncork()
            await turns()
            assert [peer.recv(9) for _ in range(3)] == [b"1", b"2", b"3"]
            assert (transport.datagrams_sent, transport.get_write_buffer_size()) == (4, 0)

    run(main)


@pytest.mark.parametrize(("ending", "sent"), [("close", [b"held"]), ("abort", [])])
def test_the_end_of_a_corked_transport(run, ending, sent):
    """close() sends what is held, abort() forgets it."""

    async def main():
        replies = HoldingReplies()
        with made(udp(), replies_factory=lambda _: replies) as (transport, protocol):
            transport.cork()
            transport.sendto(b"held", ("127.0.0.9", 9))
            getattr(transport, ending)()
            transport.uncork()
            await lost(protocol)
            assert [data for data, _ in replies.sent] == sent

    run(main)


def test_what_cannot_be_sent_is_buffered_in_order(run):
    """Behind a full socket datagrams wait, and none is lost, doubled or overtaken."""

    async def main():
        with full() as (transport, _, peer, filled):
            for i in range(filled, filled + 300):
                transport.sendto(b"%08d" % i)
            assert transport.get_write_buffer_size() == 301 * (8 + HEADER)
            assert await read(peer, filled + 300) == [b"%08d" % i for i in range(filled + 300)]
            assert transport.get_write_buffer_size() == 0
            assert transport.datagrams_sent == filled + 300
            await turns()
            transport.sendto(b"direct")
            assert peer.recv(100) == b"direct"

    run(main)


def test_the_buffer_keeps_its_own_copy(run):
    """A bytearray may be changed after sendto."""

    async def main():
        with full() as (transport, _, peer, filled):
            data = bytearray(b"before")
            transport.sendto(data)
            data[:] = b"after!"
            assert (await read(peer, filled + 1))[-1] == b"before"

    run(main)


def test_the_protocol_is_paused_and_resumed_at_the_marks(run):
    """Writing pauses above the high water mark and resumes at the low one, once each."""

    async def main():
        with full() as (transport, protocol, peer, filled):
            transport.set_write_buffer_limits(high=100, low=20)
            assert transport.get_write_buffer_limits() == (20, 100)
            for _ in range(5):
                transport.sendto(b"%08d" % 0)
            assert (transport.get_write_buffer_size(), protocol.calls) == (96, ["made"])
            transport.sendto(b"")
            assert (transport.get_write_buffer_size(), protocol.calls) == (104, ["made", "pause"])
            transport.sendto(b"")
            assert protocol.calls == ["made", "pause"]
            await read(peer, filled + 7)
            await protocol.until(lambda: protocol.calls == ["made", "pause", "resume"])

    run(main)


def test_the_marks_follow_the_documentation(run):
    """Defaults, one mark from the other, zero, and what is refused; new marks apply at once."""

    async def main():
        with full() as (transport, protocol, _, _):
            assert transport.get_write_buffer_limits() == (16384, 65536)
            transport.set_write_buffer_limits(low=10)
            assert transport.get_write_buffer_limits() == (10, 40)
            transport.set_write_buffer_limits(high=400)
            assert transport.get_write_buffer_limits() == (100, 400)
            for high, low in ((1, 2), (None, -1), (-1, None)):
                with pytest.raises(ValueError, match="must be >="):
                    transport.set_write_buffer_limits(high, low)
            assert protocol.calls == ["made"]
            transport.set_write_buffer_limits(high=0)
            assert protocol.calls == ["made", "pause"]
            transport.set_write_buffer_limits()
            assert protocol.calls == ["made", "pause", "resume"]

    run(main)


def test_a_failing_flow_callback_is_told_to_the_loop(run):
    """An exception in pause_writing does not come out of sendto."""

    async def main():
        with full() as (transport, protocol, _, _):

            def pause_writing():
                raise RuntimeError("flow")

            protocol.pause_writing = pause_writing
            transport.set_write_buffer_limits(high=0)

    run(main, complaints=["flow"])


def test_an_error_while_flushing_costs_one_datagram(run):
    """The peer's end refuses; each buffered datagram is one error, and the flush comes to its end."""

    async def main():
        with full() as (transport, protocol, peer, filled):
            transport.sendto(b"second")
            peer.close()
            await protocol.until(lambda: transport.send_errors == 2)
            assert transport.get_write_buffer_size() == 0
            assert transport.datagrams_sent == filled - 1
            assert len([call for call in protocol.calls if call == "error"]) >= 2

    run(main)


def test_aborting_while_flushing_is_safe(run):
    """error_received may abort the transport in the middle of a flush."""

    async def main():
        with full() as (transport, protocol, peer, _):
            for _ in range(5):
                transport.sendto(b"more")
            protocol.error_received = lambda _exc: transport.abort()
            peer.close()
            await lost(protocol)
            await turns()
            assert transport.get_write_buffer_size() == 0
            assert protocol.calls.count("lost None") == 1

    run(main)


class FullOnce:
    """A UDP socket whose first send finds no room."""

    def __init__(self):
        self.sock = udp()
        self.blocked = False

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def sendto(self, data, addr):
        if not self.blocked:
            self.blocked = True
            raise BlockingIOError
        return self.sock.sendto(data, addr)


def test_a_malformed_address_in_the_buffer_is_told_to_the_loop(run):
    """When it is found the caller is gone: it is a send error, and what is behind it leaves."""

    async def main():
        with closing(udp()) as peer, made(FullOnce()) as (transport, _):
            transport.sendto(b"1", peer.getsockname())
            transport.sendto(b"2", ("127.0.0.1", 70000))
            transport.sendto(b"3", peer.getsockname())
            assert await read(peer, 2) == [b"1", b"3"]
            assert (transport.datagrams_sent, transport.send_errors) == (2, 1)
            assert transport.get_write_buffer_size() == 0

    run(main, complaints=["sendto(): port must be 0-65535."])


# Closing


def test_close_ends_reading_and_then_the_socket(run):
    """connection_lost comes once, in a later turn; then the port is free; what follows does nothing."""

    async def main():
        sock = udp()
        with made(sock) as (transport, protocol):
            transport.close()
            transport.close()
            assert transport.is_closing()
            assert not transport.is_reading()
            assert protocol.calls == ["made"]
            await lost(protocol)
            await turns()
            assert sock.fileno() == -1
            transport.resume_reading()
            transport.abort()
            transport.close()
            assert transport.receive_now() == 0
            assert not transport.is_reading()
            await turns()
            assert protocol.calls == ["made", "lost None"]

    run(main)


def test_close_sends_what_is_buffered_first(run):
    """The flush comes before connection_lost and loses nothing."""

    async def main():
        with full() as (transport, protocol, peer, filled):
            for i in range(filled, filled + 200):
                transport.sendto(b"%08d" % i)
            transport.close()
            transport.sendto(b"too late")
            await turns()
            assert protocol.calls == ["made"]
            assert await read(peer, filled + 200) == [b"%08d" % i for i in range(filled + 200)]
            await lost(protocol)

    run(main)


def test_abort_drops_what_is_buffered(run):
    """abort, also after close, calls connection_lost without a flush, once."""

    async def main():
        with full() as (transport, protocol, peer, filled):
            transport.close()
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            await lost(protocol)
            await turns()
            assert len(await read(peer, filled - 1)) == filled - 1
            assert protocol.calls == ["made", "lost None"]

    run(main)


def test_late_sends_are_ignored_with_one_warning(run):
    """After close nothing is sent and nothing raised; the fifth attempt is logged."""

    async def main():
        with closing(udp()) as peer, made(udp()) as (transport, _):
            transport.close()
            with structlog.testing.capture_logs() as logged:
                for _ in range(9):
                    transport.sendto(b"late", peer.getsockname())
                await turns()
                transport.sendto(b"late", peer.getsockname())
            assert [entry["event"] for entry in logged] == ["send_after_close"]
            assert transport.datagrams_sent == 0
            with pytest.raises(BlockingIOError):
                peer.recv(9)

    run(main)


def test_a_failing_connection_lost_still_closes_the_socket(run):
    """Its exception goes to the loop, the descriptor is gone."""

    class Failing(Recording):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            raise RuntimeError("lost")

    async def main():
        sock = udp()
        with made(sock, Failing) as (transport, protocol):
            transport.close()
            await lost(protocol)
            await turns()
            assert sock.fileno() == -1

    run(main, complaints=["lost"])


def test_a_failing_connection_made_leaves_the_socket_to_the_caller(run):
    """Nothing is registered with the loop, and the socket is open."""

    class Failing(Recording):
        def connection_made(self, _transport):
            raise RuntimeError("made")

    async def main():
        with closing(udp()) as sock:
            with pytest.raises(RuntimeError, match="made"):
                create_transport(asyncio.get_running_loop(), sock, Failing)
            assert sock.fileno() >= 0
            assert not asyncio.get_running_loop().remove_reader(sock.fileno())

    run(main)


def test_a_forgotten_transport_warns():
    """Like asyncio's own it warns of a transport that nobody closed, and closes the socket."""

    async def main():
        sock = udp()
        transport, _ = create_transport(asyncio.get_running_loop(), sock, asyncio.DatagramProtocol)
        transport.pause_reading()
        del transport, _
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            gc.collect()
        assert sock.fileno() == -1

    asyncio.run(main())


# The rest


def test_extra_info_and_protocols(run):
    """The documented extra information, and another protocol from one moment to the next."""

    async def main():
        sock = udp()
        with closing(udp()) as sender, made(sock) as (transport, first):
            assert isinstance(transport, asyncio.DatagramTransport)
            assert isinstance(transport, DatagramTransport)
            assert transport.get_extra_info("socket") is sock
            assert transport.get_extra_info("sockname") == sock.getsockname()
            assert transport.get_extra_info("peername") is None
            assert transport.get_extra_info("nothing", "default") == "default"
            assert transport.get_protocol() is first
            second = Batching()
            transport.set_protocol(second)
            assert transport.get_protocol() is second
            sender.sendto(b"x", sock.getsockname())
            await second.until(lambda: second.received)
            assert (first.received, second.batches) == ([], [1])
            transport.set_protocol(first)

    run(main)


def test_a_collector_under_backpressure_loses_nothing(run):
    """Through socket, transport, lanes and back: each datagram is handled once, in order per source."""

    class Echo:
        def __init__(self):
            self.seen = {}
            self.n = 0
            self.complete = asyncio.Event()

        async def handle(self, datagram, addr):
            self.seen.setdefault(addr, []).append(int(datagram))
            self.n += 1
            if self.n == 200:
                self.complete.set()
            if self.n % 3 == 0:
                await asyncio.sleep(0)

    async def main():
        loop = asyncio.get_running_loop()
        app = Echo()
        with made(udp(), lambda: CollectorProtocol(app, concurrency=2, backlog=8, loop=loop)) as (transport, protocol):
            target = transport.get_extra_info("sockname")
            senders = [udp(f"127.0.0.{i}") for i in range(2, 7)]
            try:
                for n in range(40):
                    for sender in senders:
                        sender.sendto(b"%d" % n, target)
                    if n % 8 == 0:
                        await asyncio.sleep(0)
                await app.complete.wait()
                await protocol.drained()
                assert app.seen == {sender.getsockname(): list(range(40)) for sender in senders}
                await protocol.has_room()
                assert transport.is_reading()
                await protocol.aclose()
                assert not transport.is_reading()
                transport.close()
                await protocol.closed()
                assert transport.get_extra_info("socket").fileno() == -1
            finally:
                for sender in senders:
                    sender.close()

    run(main)
