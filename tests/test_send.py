"""The compiled sender on real sockets: what is held leaves together, in order; errors and odd addresses."""

from __future__ import annotations

import errno
import socket

import pytest

from aiolb.receive import choose

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOM = 64


@pytest.fixture
def sender_of():
    """The class of the sender; there is no other."""
    try:
        return choose.compiled().sender
    except ImportError as error:
        pytest.skip(f"the compiled parts are not built: {error}")


def udp(host, family=socket.AF_INET):
    """A bound non-blocking UDP socket."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((host, 0))
    return sock


def test_datagrams_leave_together_and_in_order(sender_of):
    """64 are held, each for its own address, and leave in one call; the next must wait for that."""
    with udp("127.0.0.1") as sock, udp("127.0.0.2") as first, udp("127.0.0.3") as second:
        sender = sender_of(sock)
        peers = first, second
        for i in range(ROOM):
            assert sender.hold(b"%d" % i, peers[i % 2].getsockname())
        assert not sender.hold(b"more", first.getsockname())
        assert (len(sender), sender.datagrams_sent) == (ROOM, 0)
        sender.flush()
        assert (len(sender), sender.datagrams_sent, sender.bytes_sent) == (0, ROOM, 10 + 2 * (ROOM - 10))
        assert [int(first.recv(9)) for _ in range(ROOM // 2)] == list(range(0, ROOM, 2))
        assert [int(second.recv(9)) for _ in range(ROOM // 2)] == list(range(1, ROOM, 2))
        assert sender.hold(b"", first.getsockname())
        sender.flush()
        assert first.recv(9) == b""
        sender.flush()


@pytest.mark.parametrize(("host", "peer"), [("::1", "::1"), ("::", "::ffff:127.0.0.1")])
def test_ipv6_addresses_are_taken_as_the_receiver_gives_them(sender_of, host, peer):
    """With four fields, with two, and mapped."""
    with udp(host, socket.AF_INET6) as sock, udp(host, socket.AF_INET6) as other:
        port = other.getsockname()[1]
        sender = sender_of(sock)
        assert sender.hold(b"four", (peer, port, 0, 0))
        assert sender.hold(b"two", (peer, port))
        sender.flush()
        assert [other.recvfrom(9)[0] for _ in range(2)] == [b"four", b"two"]


@pytest.mark.parametrize(
    "addr",
    [
        ("localhost", 9),
        ("127.1", 9),
        ("127.0.0.1\0", 9),
        ("127.0.0.1", 65536),
        ("127.0.0.1", -1),
        ("127.0.0.1", 9.0),
        ("127.0.0.1",),
        ("127.0.0.1", 9, 0, 0),
        ("::1", 9),
        ("1\u00b2.0.0.1", 9),
        (b"127.0.0.1", 9),
        ["127.0.0.1", 9],
        "127.0.0.1",
        None,
    ],
)
def test_other_addresses_are_left_to_the_socket_module(sender_of, addr):
    """Names, short forms and mistakes are not held."""
    with udp("127.0.0.1") as sock:
        sender = sender_of(sock)
        assert not sender.hold(b"x", addr)
        assert len(sender) == 0


def test_an_error_belongs_to_the_first_that_is_left(sender_of):
    """What came before it has left; dropping it lets the rest leave."""
    with udp("127.0.0.1") as sock, udp("127.0.0.2") as peer:
        sender = sender_of(sock)
        addr = peer.getsockname()
        for data in (b"1", bytes(65508), b"2", b"3"):
            assert sender.hold(data, addr)
        sender.flush()
        assert (len(sender), sender.datagrams_sent) == (3, 1)
        with pytest.raises(OSError, match=rf"\[Errno {errno.EMSGSIZE}\]"):
            sender.flush()
        assert len(sender) == 3
        sender.drop()
        sender.flush()
        assert [peer.recv(9) for _ in range(3)] == [b"1", b"2", b"3"]
        assert (len(sender), sender.datagrams_sent, sender.bytes_sent) == (0, 3, 3)


def test_what_is_held_can_be_taken_back(sender_of):
    """release() hands over what has not left, in order, and nothing is held then."""
    with udp("127.0.0.1") as sock:
        sender = sender_of(sock)
        for i in range(3):
            sender.hold(b"%d" % i, ("127.0.0.2", 9))
        sender.drop()
        assert sender.release() == [(b"1", ("127.0.0.2", 9)), (b"2", ("127.0.0.2", 9))]
        assert len(sender) == 0
        sender.drop()
        assert sender.release() == []


def test_a_closed_socket_is_an_error(sender_of):
    """EBADF, and not what another socket with the same number holds."""
    with udp("127.0.0.1") as sock:
        sender = sender_of(sock)
        sender.hold(b"x", ("127.0.0.2", 9))
    with pytest.raises(OSError, match=r"\[Errno 9\]"):
        sender.flush()


def test_many_addresses_take_no_more_memory(sender_of):
    """What is kept of addresses is bounded, and each datagram still finds its own."""
    with udp("127.0.0.1") as sock:
        sender = sender_of(sock)
        for i in range(10_000):
            addr = (f"127.1.{i >> 8}.{i & 255}", 9)
            assert sender.hold(b"x", addr)
            assert sender.release() == [(b"x", addr)]


def test_other_families_are_refused(sender_of):
    """It writes addresses of IPv4 and IPv6 only."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="AF_UNIX"):
        sender_of(sock)
