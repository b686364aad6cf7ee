"""The compiled replies on real sockets: what is held leaves together, in order; errors and odd addresses."""

from __future__ import annotations

import errno
import socket

import pytest

from aiolb.receive import choose

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOM = 64


@pytest.fixture
def replies_of():
    """The class of the replies; there is no other."""
    try:
        return choose.compiled().replies
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


def corked(replies_of, sock):
    """Replies that hold what is sent."""
    replies = replies_of(sock)
    replies.cork()
    return replies


def test_datagrams_leave_together_and_in_order(replies_of):
    """64 are held, each for its own address, and leave in one call; the next must wait for that."""
    with udp("127.0.0.1") as sock, udp("127.0.0.2") as first, udp("127.0.0.3") as second:
        replies = corked(replies_of, sock)
        peers = first, second
        for i in range(ROOM):
            assert replies.reply(b"%d" % i, peers[i % 2].getsockname())
        assert not replies.reply(b"more", first.getsockname())
        assert (len(replies), replies.datagrams_sent) == (ROOM, 0)
        replies.flush()
        assert (len(replies), replies.datagrams_sent, replies.bytes_sent) == (0, ROOM, 10 + 2 * (ROOM - 10))
        assert [int(first.recv(9)) for _ in range(ROOM // 2)] == list(range(0, ROOM, 2))
        assert [int(second.recv(9)) for _ in range(ROOM // 2)] == list(range(1, ROOM, 2))
        assert replies.reply(b"", first.getsockname())
        replies.flush()
        assert first.recv(9) == b""
        replies.flush()


def test_what_is_sent_uncorked_leaves_at_once(replies_of):
    """One system call each, counted; what the kernel or the contract refuses is not sent."""
    with udp("127.0.0.1") as sock, udp("127.0.0.2") as peer:
        replies, addr = replies_of(sock), peer.getsockname()
        assert replies.reply(b"1", addr)
        assert replies.reply(b"", addr)
        assert (peer.recv(9), peer.recv(9)) == (b"1", b"")
        assert not replies.reply(bytes(65508), addr)
        assert not replies.reply(bytearray(b"x"), addr)
        assert not replies.reply(b"x", ("localhost", 9))
        assert (len(replies), replies.datagrams_sent, replies.bytes_sent) == (0, 2, 1)


def test_uncorking_sends_what_is_held(replies_of):
    """In one call; what is left is told of, and nothing overtakes it."""
    with udp("127.0.0.1") as sock, udp("127.0.0.2") as peer:
        replies, addr, told = replies_of(sock), peer.getsockname(), []
        replies.on_left = lambda: told.append(len(replies))
        for data in (b"1", b"2", bytes(65508), b"3"):
            replies.cork()
            assert replies.reply(data, addr)
        assert len(replies) == 4
        replies.uncork()
        assert (told, [peer.recv(9) for _ in range(2)]) == ([2], [b"1", b"2"])
        assert not replies.reply(b"4", addr)
        replies.drop()
        replies.uncork()
        replies.uncork()
        assert (told, peer.recv(9), len(replies)) == ([2], b"3", 0)
        assert replies.reply(b"4", addr)
        assert peer.recv(9) == b"4"


@pytest.mark.parametrize(("host", "peer"), [("::1", "::1"), ("::", "::ffff:127.0.0.1")])
def test_ipv6_addresses_are_taken_as_the_receiver_gives_them(replies_of, host, peer):
    """With four fields, with two, and mapped."""
    with udp(host, socket.AF_INET6) as sock, udp(host, socket.AF_INET6) as other:
        port = other.getsockname()[1]
        replies = corked(replies_of, sock)
        assert replies.reply(b"four", (peer, port, 0, 0))
        assert replies.reply(b"two", (peer, port))
        replies.flush()
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
def test_other_addresses_are_left_to_the_socket_module(replies_of, addr):
    """Names, short forms and mistakes are not held."""
    with udp("127.0.0.1") as sock:
        replies = corked(replies_of, sock)
        assert not replies.reply(b"x", addr)
        assert len(replies) == 0


def test_an_error_belongs_to_the_first_that_is_left(replies_of):
    """What came before it has left; dropping it lets the rest leave."""
    with udp("127.0.0.1") as sock, udp("127.0.0.2") as peer:
        replies = corked(replies_of, sock)
        addr = peer.getsockname()
        for data in (b"1", bytes(65508), b"2", b"3"):
            assert replies.reply(data, addr)
        replies.flush()
        assert (len(replies), replies.datagrams_sent) == (3, 1)
        with pytest.raises(OSError, match=rf"\[Errno {errno.EMSGSIZE}\]"):
            replies.flush()
        assert len(replies) == 3
        replies.drop()
        replies.flush()
        assert [peer.recv(9) for _ in range(3)] == [b"1", b"2", b"3"]
        assert (len(replies), replies.datagrams_sent, replies.bytes_sent) == (0, 3, 3)


def test_what_is_held_can_be_taken_back(replies_of):
    """release() hands over what has not left, in order, and nothing is held then."""
    with udp("127.0.0.1") as sock:
        replies = corked(replies_of, sock)
        for i in range(3):
            replies.reply(b"%d" % i, ("127.0.0.2", 9))
        replies.drop()
        assert replies.release() == [(b"1", ("127.0.0.2", 9)), (b"2", ("127.0.0.2", 9))]
        assert len(replies) == 0
        replies.drop()
        assert replies.release() == []


def test_a_closed_socket_is_an_error(replies_of):
    """EBADF, and not what another socket with the same number holds."""
    with udp("127.0.0.1") as sock:
        replies = corked(replies_of, sock)
        replies.reply(b"x", ("127.0.0.2", 9))
    with pytest.raises(OSError, match=r"\[Errno 9\]"):
        replies.flush()


def test_many_addresses_take_no_more_memory(replies_of):
    """What is kept of addresses is bounded, and each datagram still finds its own."""
    with udp("127.0.0.1") as sock:
        replies = corked(replies_of, sock)
        for i in range(10_000):
            addr = (f"127.1.{i >> 8}.{i & 255}", 9)
            assert replies.reply(b"x", addr)
            assert replies.release() == [(b"x", addr)]


def test_other_families_are_refused(replies_of):
    """It writes addresses of IPv4 and IPv6 only."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="AF_UNIX"):
        replies_of(sock)
