"""The plain receiver on real sockets: batches, trains, errors, counters."""

# ruff: noqa: D102 - methods of fakes are named after what they stand for

from __future__ import annotations

import errno
import socket

import pytest

from aiolb.receive.contract import BATCH
from aiolb.receive.plain import PlainReceiver

pytestmark = pytest.mark.usefixtures("nothing_left")

UDP_SEGMENT = 103
UDP_GRO = 104


@pytest.fixture
def pair():
    """A bound, non-blocking receiving socket, and a sender connected to it."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
    ):
        receiving.bind(("127.0.0.1", 0))
        receiving.setblocking(False)
        sending.bind(("127.0.0.2", 0))
        sending.connect(receiving.getsockname())
        yield receiving, sending


def test_an_empty_queue_gives_an_empty_list(pair):
    """Nothing waits for a datagram."""
    receiver = PlainReceiver(pair[0])
    assert receiver.receive() == []
    assert (receiver.datagrams, receiver.bytes, receiver.truncated) == (0, 0, 0)


def test_datagrams_come_in_order_with_their_address(pair):
    """What was sent is received byte for byte, the empty datagram too, and each one is its own object."""
    receiving, sending = pair
    sent = [b"one", b"", b"\x00" * 1400, b"four"]
    for datagram in sent:
        sending.send(datagram)
    receiver = PlainReceiver(receiving)
    assert receiver.receive() == [(datagram, sending.getsockname()) for datagram in sent]
    assert receiver.receive() == []
    assert (receiver.datagrams, receiver.bytes, receiver.truncated) == (4, 1407, 0)


@pytest.mark.parametrize(("options", "size"), [({}, BATCH), ({"batch": 3}, 3)])
def test_a_batch_has_its_limit(pair, options, size):
    """No more than `batch` datagrams are taken at once; the rest stays in the kernel's queue."""
    receiving, sending = pair
    for i in range(size + 2):
        sending.send(b"%d" % i)
    receiver = PlainReceiver(receiving, **options)
    first, second, third = receiver.receive(), receiver.receive(), receiver.receive()
    assert [int(datagram) for datagram, _ in first + second] == list(range(size + 2))
    assert (len(first), len(second), len(third)) == (size, 2, 0)


def test_the_longest_datagram_is_whole(pair):
    """65,507 bytes, the most that IPv4 can carry, are not cut."""
    receiving, sending = pair
    datagram = bytes(range(256)) * 255 + b"x" * 227
    assert len(datagram) == 65507
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sending.send(datagram)
    receiver = PlainReceiver(receiving)
    assert [received for received, _ in receiver.receive()] == [datagram]
    assert (receiver.bytes, receiver.truncated) == (65507, 0)


def test_ipv6_addresses_are_those_of_the_socket_module():
    """An IPv6 sender is a tuple of four."""
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiving,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sending,
    ):
        receiving.bind(("::1", 0))
        receiving.setblocking(False)
        sending.connect(receiving.getsockname())
        sending.send(b"six")
        assert PlainReceiver(receiving).receive() == [(b"six", sending.getsockname())]


def send_train(sending, payload, segment):
    """Send the payload as one train of datagrams of `segment` bytes."""
    sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
    sending.send(payload)
    sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)


@pytest.mark.parametrize("length", [200, 250, 6400, 100, 99])
def test_trains_are_split(pair, length):
    """With UDP_GRO on, a train becomes its datagrams, a shorter last one included."""
    receiving, sending = pair
    receiving.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    payload = bytes(i % 251 for i in range(length))
    send_train(sending, payload, 100)
    sending.send(b"")
    sending.send(b"alone")
    receiver = PlainReceiver(receiving)
    addr = sending.getsockname()
    expected = [(payload[at : at + 100], addr) for at in range(0, length, 100)] + [(b"", addr), (b"alone", addr)]
    assert receiver.receive() == expected
    assert (receiver.datagrams, receiver.bytes) == (len(expected), length + 5)


def test_trains_arrive_as_datagrams_without_gro(pair):
    """With UDP_GRO off the kernel splits them."""
    receiving, sending = pair
    send_train(sending, b"x" * 250, 100)
    assert [len(datagram) for datagram, _ in PlainReceiver(receiving).receive()] == [100, 100, 50]


def test_an_error_of_the_socket_is_raised_once(pair):
    """A connected socket whose peer is gone reports ECONNREFUSED, then it works on."""
    receiving, sending = pair
    receiver = PlainReceiver(sending)
    sending.setblocking(False)
    port = receiving.getsockname()
    receiving.close()
    sending.send(b"nobody listens")
    with pytest.raises(ConnectionRefusedError):
        receiver.receive()
    assert receiver.receive() == []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
        back.bind(port)
        back.sendto(b"here", sending.getsockname())
        assert receiver.receive() == [(b"here", port)]


class FailingSocket:
    """A socket whose answers are given."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def getsockopt(self, *_args):
        return 0

    def recvfrom_into(self, buffer):
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        buffer[: len(answer)] = answer
        return len(answer), ("127.0.0.1", 9)

    recvmsg_into = None


def test_an_error_after_datagrams_costs_none_of_them():
    """What was taken is returned first; the next call raises the error; then it goes on."""
    refused = OSError(errno.ECONNREFUSED, "refused")
    receiver = PlainReceiver(FailingSocket(b"1", b"2", refused, b"3", BlockingIOError()))
    assert [datagram for datagram, _ in receiver.receive()] == [b"1", b"2"]
    with pytest.raises(OSError, match="refused"):
        receiver.receive()
    assert [datagram for datagram, _ in receiver.receive()] == [b"3"]
    assert (receiver.datagrams, receiver.bytes) == (3, 3)


def test_an_interrupted_call_ends_the_batch():
    """EINTR is no error: what was taken is returned, the next call goes on."""
    receiver = PlainReceiver(FailingSocket(b"1", InterruptedError(), InterruptedError(), b"2", BlockingIOError()))
    assert [len(receiver.receive()) for _ in range(3)] == [1, 0, 1]
