"""Sockets on a port are found and looked at, without taking part in their traffic."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from aiolb import occupants, sockets
from aiolb.address import Address
from aiolb.bpf import syscall
from aiolb.bpf.state import cookie
from aiolb.occupants import Occupant, occupants_of
from aiolb.sockets import Holder

pytestmark = pytest.mark.usefixtures("nothing_left")
LOCAL = Address("127.0.0.1", 0)
ME = Holder(os.geteuid(), os.getpid())


@pytest.fixture
def stack():
    """What is opened in it is closed at the end."""
    with ExitStack() as opened:
        yield opened


def test_nobody():
    """Nobody is on a port that is free."""
    with sockets.reserved_port(LOCAL) as address:
        pass
    assert occupants_of(address) == []


def test_with_and_without_reuseport(stack):
    """Each socket is told with its process, its address, its cookie, and whether it has SO_REUSEPORT."""
    alone = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    alone.bind(("127.0.0.1", 0))
    taken = Address(*alone.getsockname())
    assert occupants_of(taken) == [Occupant(ME, taken, reuseport=False, cookie=cookie(alone))]

    first = stack.enter_context(sockets.bind_reuseport(LOCAL))
    shared = Address(*first.getsockname())
    second = stack.enter_context(sockets.bind_reuseport(shared))
    expected = {Occupant(ME, shared, reuseport=True, cookie=cookie(sock)) for sock in (first, second)}
    assert set(occupants_of(shared)) == expected
    assert str(next(iter(expected))) == str(ME)


def test_a_wildcard(stack):
    """A socket on every address is on this one too, and is told with its own."""
    sock = stack.enter_context(sockets.bind_reuseport(Address("0.0.0.0", 0)))
    everywhere = Address(*sock.getsockname())
    (found,) = occupants_of(Address("127.0.0.1", everywhere.port))
    assert found.address == everywhere


@pytest.mark.parametrize(("v6only", "number"), [(0, 1), (1, 0)])
def test_an_ipv6_wildcard(stack, v6only, number):
    """An IPv6 wildcard is on an IPv4 address, unless it takes IPv6 alone."""
    sock = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    sock.bind(("::", 0))
    port = sock.getsockname()[1]
    assert len(occupants_of(Address("127.0.0.1", port))) == number
    assert len(occupants_of(Address("::1", port))) == 1


def test_what_may_not_be_looked_at(stack, monkeypatch):
    """Where the kernel does not hand the socket out, its process and user are all that is told."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted", "pidfd_getfd")

    sock = stack.enter_context(sockets.bind_reuseport(LOCAL))
    monkeypatch.setattr(syscall, "pidfd_getfd", refuse)
    assert occupants_of(Address(*sock.getsockname())) == [Occupant(ME)]


def test_a_process_that_may_not_be_seen(stack, monkeypatch):
    """Where the process may not be seen either, the user alone is told."""
    sock = stack.enter_context(sockets.bind_reuseport(LOCAL))
    monkeypatch.setattr(sockets, "opened_in", lambda _: {})
    assert occupants_of(Address(*sock.getsockname())) == [Occupant(Holder(os.geteuid(), None))]


@pytest.mark.parametrize("other", ["a socket", "no socket"])
def test_a_descriptor_that_is_another_by_now(stack, monkeypatch, other):
    """A number that was closed and opened again in the meantime is not taken for the socket."""
    sock = stack.enter_context(sockets.bind_reuseport(LOCAL))
    if other == "a socket":
        number = stack.enter_context(socket.socket()).fileno()
    else:
        number = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, number)
    monkeypatch.setattr(sockets, "opened_in", lambda inodes: dict.fromkeys(inodes, (os.getpid(), number)))
    found = occupants_of(Address(*sock.getsockname()))
    assert found == ([] if other == "a socket" else [Occupant(ME)])


def test_no_datagram_is_taken(stack):
    """Looking at a socket leaves what waits in it, and its being non-blocking, as they are."""
    sock = stack.enter_context(sockets.bind_reuseport(LOCAL))
    sock.setblocking(True)
    sender = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    sender.sendto(b"x", sock.getsockname())
    assert len(occupants.occupants_of(Address(*sock.getsockname()))) == 1
    assert os.get_blocking(sock.fileno())
    assert sock.recv(10) == b"x"
