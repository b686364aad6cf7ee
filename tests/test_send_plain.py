"""Senders: the one in pure Python and the compiled one send the same."""

from __future__ import annotations

import errno
import itertools
import socket
from contextlib import ExitStack, contextmanager, suppress

import pytest

from aiolb.errors import StartError
from aiolb.send import gso
from aiolb.send.choose import sender_class
from aiolb.send.plain import PlainSender
from aiolb.stamp import STAMP_SIZE, Stamp, stamp_from_wire

RUN = 0x0123456789ABCDEF


@pytest.fixture(params=["plain", "fast"])
def make(request, missing):
    """The class of a sender."""
    if request.param == "plain":
        return PlainSender
    if sender_class() is PlainSender:
        missing("the compiled sender was not built")
    return sender_class()


@contextmanager
def connected(number=1, segment=0):
    """A receiver, and connected sockets of that many sources; with a segment they send trains."""
    with ExitStack() as stack:
        receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        sockets = []
        for n in range(number):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.bind((f"127.0.0.{n + 2}", 0))
            sock.connect(receiver.getsockname())
            if segment:
                gso.switch_on(sock, segment)
            sockets.append(sock)
        yield receiver, sockets


def receive(sock, number):
    """Exactly that many datagrams as (source's last byte, datagram); nothing may be left after them."""
    received = []
    for _ in range(number):
        datagram, addr = sock.recvfrom(1 << 16)
        received.append((int(addr[0].rpartition(".")[2]), datagram))
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    return received


@pytest.mark.parametrize(("size", "trains"), [(0, False), (1, False), (64, False), (1, True), (64, True)])
def test_pieces_in_turn(make, size, trains):
    """Pieces of one length go out from one source after the other, around the end, and are counted."""
    with connected(3, size if trains else 0) as (receiver, sockets):
        sender = make(sockets, b"x" * size, limit=8, trains=trains, run=None, numbers=[0, 1, 2])
        length = min(5, sender.limit)
        assert sender.send(2, 4, length) == 4 * length
        received = receive(receiver, 4 * length)
    sources = [4, 2, 3, 4]
    assert received == [(source, b"x" * size) for source in sources for _ in range(length)]
    assert (sender.sent, sender.error) == ([length, length, 2 * length], 0)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("size", [STAMP_SIZE, 50])
def test_stamps(make, size, trains):
    """Each datagram, of a train too, has a stamp of its own: run, source, its number there; the rest is payload."""
    with connected(2, size if trains else 0) as (receiver, sockets):
        sender = make(sockets, b"p" * size, limit=8, trains=trains, run=RUN, numbers=[7, 2**32 - 1])
        lengths = [1, 8, 3] if trains else [1, 1]
        for length in lengths:
            sender.send(0, 2, length)
        received = receive(receiver, 2 * sum(lengths))
    sequences = [itertools.count(), itertools.count()]
    for source, datagram in received:
        stamp = stamp_from_wire(datagram)
        number = [7, 2**32 - 1][source - 2]
        assert stamp[:3] == (RUN, number, next(sequences[source - 2]))
        assert datagram[STAMP_SIZE:] == b"p" * (size - STAMP_SIZE)
    assert sender.sent == [sum(lengths)] * 2


def test_both_stamp_alike(make):
    """A stamp has the same bytes whoever writes it, and the time is that of the piece."""
    with connected(1, 40) as (receiver, sockets):
        sender = make(sockets, bytes(range(40)), limit=4, trains=True, run=RUN, numbers=[5])
        sender.send(0, 1, 4)
        received = [datagram for _, datagram in receive(receiver, 4)]
    [time] = {stamp_from_wire(datagram).sent_ns for datagram in received}
    for n, datagram in enumerate(received):
        expected = bytearray(range(40))
        Stamp(RUN, 5, n, time).pack_into(expected)
        assert datagram == expected


def test_trains_can_be_switched_off(make):
    """A sender that may make no trains any more sends the same in another way."""
    with connected(1, 16) as (receiver, sockets):
        sender = make(sockets, b"y" * 16, limit=4, trains=True, run=None, numbers=[0])
        assert sender.send(0, 1, 4) == 4
        sender.trains = False
        gso.switch_off(sockets[0])
        assert sender.send(0, 2, sender.limit) == 2 * sender.limit
        receive(receiver, 4 + 2 * sender.limit)


@contextmanager
def nearly_full():
    """A socket whose queue has room for a few datagrams, and its other end."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                near.send(b"filler")
        for _ in range(3):
            far.recv(10)
        yield near, far


def test_a_full_queue_ends_a_call(make):
    """What went out until then is counted, and the error is told."""
    with nearly_full() as (near, far):
        sender = make([near], b"z", limit=64, trains=False, run=None, numbers=[0])
        length = sender.limit
        assert sender.send(0, 64 // length, length) == 3
        assert (sender.error, sender.sent) == (errno.EAGAIN, [3])
        assert sender.send(0, 1, length) == 0
        assert (sender.error, sender.sent) == (errno.EAGAIN, [3])
        far.recv(10)
        assert sender.send(0, 1, 1) == 1
        assert (sender.error, sender.sent) == (0, [4])


def test_an_error_ends_a_call_at_its_source(make):
    """Sources before the one that fails have sent; those after it have not."""
    with nearly_full() as (near, _), connected(2) as (receiver, [first, last]):
        with suppress(BlockingIOError):
            while True:
                near.send(b"filler")
        sender = make([first, near, last], b"z", limit=4, trains=False, run=None, numbers=[0, 1, 2])
        length = sender.limit
        assert sender.send(0, 3, length) == length
        assert (sender.error, sender.sent) == (errno.EAGAIN, [length, 0, 0])
        receive(receiver, length)


@pytest.mark.parametrize("length", [0, 9])
def test_lengths_that_cannot_be(make, length):
    """A piece has from one datagram to the limit."""
    with connected() as (_, sockets):
        sender = make(sockets, b"x", limit=8, trains=True, run=None, numbers=[0])
        with pytest.raises(ValueError, match=f"piece of {length}"):
            sender.send(0, 1, length)


def test_what_cannot_be_sent_from(make):
    """There is no source beyond the last."""
    with connected() as (_, sockets):
        sender = make(sockets, b"x", limit=8, trains=False, run=None, numbers=[0])
        with pytest.raises(IndexError):
            sender.send(1, 1, 1)


# Which one


def test_a_number_is_missing(missing):
    """Each source needs its number, and the compiled sender looks for all of them at once."""
    if sender_class() is PlainSender:
        missing("the compiled sender was not built")
    with connected(3) as (_, sockets), pytest.raises(IndexError):
        sender_class()(sockets, bytes(STAMP_SIZE), limit=1, trains=False, run=RUN, numbers=[1])


def test_a_sender_is_made_once(missing):
    """Its room is not for what a second call of its constructor says."""
    if sender_class() is PlainSender:
        missing("the compiled sender was not built")
    with connected() as (receiver, sockets):
        sender = sender_class()(sockets, b"x", limit=1, trains=False, run=None, numbers=[0])
        sender.__init__(sockets, b"y", limit=10_000, trains=False, run=None, numbers=[0])
        assert (sender.limit, sender.send(0, 1, 1)) == (1, 1)
        assert receive(receiver, 1) == [(2, b"x")]


def test_the_plain_sender_where_there_is_no_other(monkeypatch):
    """Without the compiled sender the one in pure Python is taken, unless that is forbidden."""
    monkeypatch.setitem(__import__("sys").modules, "aiolb.send._fast", None)
    monkeypatch.delenv("AIOLB_REQUIRE_FAST", raising=False)
    assert sender_class() is PlainSender
    monkeypatch.setenv("AIOLB_REQUIRE_FAST", "1")
    with pytest.raises(StartError, match="compiled sender is required") as caught:
        sender_class()
    assert "C compiler" in caught.value.hint
