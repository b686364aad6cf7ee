"""Sockets that the service manager keeps: which are taken back, which are closed, what is given and forgotten."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import service_manager

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.state import cookie
from aiolb.store import SocketStore
from aiolb.systemd import Inherited, ServiceManager, SocketName

TESTS = Path(__file__).parent


StandIn = service_manager.ServiceManager

ANYWHERE = Address("127.0.0.1", 0)

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def opened():
    """``opened()``: a reuseport socket, closed at the end if it still is open, and a descriptor of it for the store."""
    with ExitStack() as stack:

        def bind(address=ANYWHERE):
            sock = stack.enter_context(sockets.bind_reuseport(address))
            return sock, os.dup(sock.fileno())

        yield bind


def taken_back(inherited, *bind):
    """The cookies of what is taken back, by address and index; the sockets are closed again."""
    store = SocketStore(ServiceManager(), inherited)
    found = {}
    for where, sock in store.taken_back(bind).items():
        with sock:
            assert not sock.getblocking()
            found[where] = cookie(sock)
    return found


def test_by_name(opened, logged):
    """A socket with a name that a supervisor gave comes back as that member of that group."""
    one, first = opened()
    address = sockets.address_of(one)
    other, second = opened(address)
    inherited = Inherited({SocketName(address, 3): first, SocketName(address, 0): second}, ())
    assert taken_back(inherited, address) == {(address, 3): cookie(one), (address, 0): cookie(other)}
    assert logged == []


def test_an_address_that_is_not_wanted(opened, logged):
    """A kept socket of another address is closed, with a remark."""
    one, descriptor = opened()
    name = SocketName(sockets.address_of(one), 0)
    assert taken_back(Inherited({name: descriptor}, ()), ANYWHERE) == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert logged == [
        {
            "event": "socket_dropped",
            "log_level": "warning",
            "name": str(name),
            "reason": "no --bind has its address",
        }
    ]


def test_of_a_socket_unit(opened, logged):
    """A socket with a name of its own gets the lowest index that is free."""
    one, first = opened()
    address = sockets.address_of(one)
    (two, second), (three, third) = opened(address), opened(address)
    inherited = Inherited({SocketName(address, 1): first}, (("web", second), ("web", third)))
    assert taken_back(inherited, address) == {
        (address, 1): cookie(one),
        (address, 0): cookie(two),
        (address, 2): cookie(three),
    }
    assert logged == []


def test_what_cannot_be_a_member(opened, logged):
    """Sockets of strange addresses or kinds, and those without SO_REUSEPORT, are closed, with a remark."""
    stranger, descriptor = opened()
    address = sockets.address_of(stranger)
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as alone:
        stream.bind(("127.0.0.1", 0))
        alone.bind(("127.0.0.1", 0))
        mine = sockets.address_of(alone)
        others = [("strange", descriptor), ("stream", os.dup(stream.fileno())), ("alone", os.dup(alone.fileno()))]
        assert taken_back(Inherited({}, tuple(others)), mine) == {}
        assert address != mine
    for _, number in others:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    assert [event["name"] for event in logged] == ["strange", "stream", "alone"]
    assert {(event["event"], event["reason"], event["hint"]) for event in logged} == {
        (
            "socket_dropped",
            "it is no UDP socket with SO_REUSEPORT on an address of --bind",
            "ListenDatagram= and ReusePort=yes in the socket unit",
        )
    }


def test_of_connections(logged):
    """A store of listening sockets knows them by their protocol, and takes no others."""
    with sockets.bind_listening(ANYWHERE, backlog=8) as one, ExitStack() as stack:
        address = sockets.address_of(one, "tcp")
        two = stack.enter_context(sockets.bind_listening(address, backlog=8))
        datagrams = stack.enter_context(sockets.bind_reuseport(address))
        named = {
            SocketName(address, 1, "tcp"): os.dup(one.fileno()),
            SocketName(address, 2): os.dup(datagrams.fileno()),
        }
        store = SocketStore(ServiceManager(), Inherited(named, (("web", os.dup(two.fileno())),)), "tcp")
        found = {where: stack.enter_context(sock) for where, sock in store.taken_back([address]).items()}
        assert {where: cookie(sock) for where, sock in found.items()} == {
            (address, 0): cookie(two),
            (address, 1): cookie(one),
        }
    assert [(event["event"], event["name"]) for event in logged] == [("socket_dropped", str(SocketName(address, 2)))]


class Places:
    """The places of one member with sockets on some addresses."""

    def __init__(self, index, *socks):
        self.index = index
        self.sockets = {sockets.address_of(sock): sock for sock in socks}


@pytest.mark.parametrize(("capacity", "names", "complete"), [(3, 3, True), (2, 2, False)])
async def test_kept_and_forgotten(opened, capacity, names, complete):
    """Every socket is given under its member's name; the store is complete while all are kept."""
    made = [opened() for _ in range(3)]
    one, two, three = (sock for sock, _ in made)
    for _, descriptor in made:
        os.close(descriptor)
    async with StandIn(store=capacity) as manager:
        manager.main_pid = os.getpid()
        store = SocketStore(ServiceManager.from_environment(manager.environment()), Inherited({}, ()))
        assert store.complete
        first, second = Places(0, one, two), Places(1, three)
        store.keep(first)
        store.keep(second)
        wanted = [SocketName(sockets.address_of(sock), index) for sock, index in ((one, 0), (two, 0), (three, 1))]
        manager._receive()
        assert [name for name, _ in manager.stored] == [str(name) for name in wanted[:names]]
        assert store.complete is complete
        store.forget(first)
        manager._receive()
        assert [name for name, _ in manager.stored] == [str(name) for name in wanted[2:names]]


def test_without_a_manager(opened):
    """Where nobody keeps sockets the store is never complete."""
    sock, descriptor = opened()
    os.close(descriptor)
    store = SocketStore(ServiceManager(), Inherited({}, ()))
    assert not store.complete
    store.keep(Places(0, sock))
    store.forget(Places(0, sock))
    assert not store.complete


async def test_what_is_dropped_is_forgotten(opened, logged):
    """The manager does not pass a dropped socket on again."""
    sock, descriptor = opened()
    name = SocketName(sockets.address_of(sock), 0)
    async with StandIn(store=4) as manager:
        manager.main_pid = os.getpid()
        service = ServiceManager.from_environment(manager.environment())
        assert service.keep(str(name), sock)
        assert SocketStore(service, Inherited({name: descriptor}, ())).taken_back([ANYWHERE]) == {}
        manager._receive()
        assert manager.stored == []
    assert len(logged) == 1
