"""Listening sockets: what waits in their queue, how they refuse what is new, how they stop and begin again."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress

import pytest
from streams import LOCAL, address_of, listening_socket

from aiolb import listening, sockets
from aiolb.errors import KernelError

pytestmark = pytest.mark.usefixtures("nothing_left")

SILENCE = 0.2  # seconds without an answer: the kernel answers a connection on loopback at once, or refuses it


def connect(stack, sock, *, timeout=None):
    """A client of the socket."""
    client = stack.enter_context(socket.socket())
    client.settimeout(timeout)
    client.connect(sock.getsockname())
    return client


def test_what_waits(wait_until):
    """The connections that nobody has accepted are counted; accepted ones are not."""
    with ExitStack() as stack, listening_socket() as sock:
        assert listening.waiting_connections(sock) == 0
        for _ in range(3):
            connect(stack, sock)
        wait_until(lambda: listening.waiting_connections(sock) == 3, "three connections")
        stack.enter_context(sock.accept()[0])
        assert listening.waiting_connections(sock) == 2


def test_what_is_no_listening_socket():
    """Nothing waits at a socket that does not listen, and nothing may."""
    with socket.socket() as sock:
        assert listening.waiting_connections(sock) == listening.queue_limit(sock) == 0


def test_how_many_may_wait():
    """The backlog that the kernel has made of what it was told."""
    with listening_socket(backlog=7) as sock:
        assert listening.queue_limit(sock) == 7
        listening.listen_again(sock, 9)
        assert listening.queue_limit(sock) == 9


def test_refusing(wait_until):
    """Who connects after the refusal is dropped and counted; what waited and what is open goes on."""
    with ExitStack() as stack, listening_socket() as sock:
        assert not listening.refuses_connections(sock)
        early, waiting = connect(stack, sock), connect(stack, sock)
        wait_until(lambda: listening.waiting_connections(sock) == 2, "both connections")
        opened = stack.enter_context(sock.accept()[0])
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        drops = sockets.memory(sock).drops
        listening.refuse_connections(sock)
        with pytest.raises(TimeoutError):
            connect(stack, sock, timeout=SILENCE)
        assert sockets.memory(sock).drops == drops + 1
        assert listening.refuses_connections(sock)
        accepted = stack.enter_context(sock.accept()[0])
        for ours, theirs in ((opened, early), (accepted, waiting)):
            ours.setblocking(True)
            theirs.send(b"x")
            assert ours.recv(2) == b"x"
            ours.send(b"y")
            assert theirs.recv(2) == b"y"


def test_stopping(wait_until):
    """The port is closed for every process that has the socket, and what waited is told."""
    with ExitStack() as stack, listening_socket() as sock:
        connect(stack, sock)
        wait_until(lambda: listening.waiting_connections(sock) == 1, "the connection")
        copy = stack.enter_context(sock.dup())
        assert listening.stop_listening(copy) == 1
        assert listening.stop_listening(sock) == 0
        with pytest.raises(ConnectionRefusedError):
            connect(stack, sock)


@pytest.mark.parametrize("stop", [listening.refuse_connections, listening.stop_listening])
def test_listening_again(stop, wait_until):
    """A socket that refused, or stopped, takes connections again."""
    with ExitStack() as stack, listening_socket() as sock:
        stop(sock)
        listening.listen_again(sock, 128)
        connect(stack, sock)
        wait_until(lambda: listening.waiting_connections(sock) == 1, "the connection")


def test_a_full_queue_drops(wait_until):
    """What finds the queue full is dropped, and counted by the kernel on that socket."""
    with ExitStack() as stack, listening_socket(backlog=1) as sock:
        for _ in range(2):  # the kernel takes one more than it was told (listen(2))
            connect(stack, sock)
        wait_until(lambda: listening.waiting_connections(sock) == 2, "both connections")
        with suppress(TimeoutError):
            connect(stack, sock, timeout=SILENCE)
        assert sockets.memory(sock).drops == 1


def test_the_limit_of_backlogs(monkeypatch, tmp_path):
    """The kernel's limit is read where it is told."""
    (tmp_path / "somaxconn").write_text("128\n")
    monkeypatch.setattr(listening, "_SOMAXCONN", tmp_path / "somaxconn")
    assert listening.backlog_limit() == 128
    monkeypatch.setattr(listening, "_SOMAXCONN", tmp_path / "nothing")
    assert listening.backlog_limit() is None


def test_several_sockets_on_a_port():
    """Sockets listen on one port, a reserved one too, and a datagram socket's users are no users of it."""
    with sockets.reserved_port(LOCAL, "tcp") as address, ExitStack() as stack:
        socks = [stack.enter_context(sockets.bind_listening(address, backlog=8)) for _ in range(3)]
        assert len(sockets.sockets_on(address, protocol="tcp")) == 3
        assert sockets.sockets_on(address) == {}
        assert {sockets.address_of(sock, "tcp") for sock in socks} == {address}
        assert {sockets.address_of(sock) for sock in socks} == {None}


def test_open_connections_hold_no_port():
    """Of a port's users only those that listen are told."""
    with ExitStack() as stack, listening_socket() as sock:
        connect(stack, sock)
        assert len(sockets.sockets_on(address_of(sock), protocol="tcp")) == 1


def test_a_port_that_is_taken():
    """A port that another server has for itself is told with its process."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(KernelError, match=r"held by a socket without SO_REUSEPORT \(pid \d+, user \w+\)"):
            sockets.bind_listening(address_of(other), backlog=8)


def test_the_port_of_a_server_before(wait_until):
    """A port whose last server closed its connections itself can be bound at once."""
    with ExitStack() as stack, listening_socket() as sock:
        address = address_of(sock)
        client = connect(stack, sock)
        wait_until(lambda: listening.waiting_connections(sock) == 1, "the connection")
        sock.accept()[0].close()
        assert client.recv(1) == b""
    sockets.bind_listening(address, backlog=8).close()
