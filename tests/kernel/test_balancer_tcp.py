"""Connections: those of one source reach one member, and the waiting ones of a closed listener move to another."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from aiolb.address import Address
from aiolb.bpf import hashing, spec
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.keys import key_of
from aiolb.errors import GroupNotFoundError, KernelError

SEED = 11
NO_LINGER = struct.pack("ii", 1, 0)


def listening(address):
    """One more socket that listens at an address, to be put into a group."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address.host, address.port))
    sock.listen(4096)
    sock.settimeout(10)
    return sock


@pytest.fixture
def group(bpffs):
    """Three members that listen: the group, its sockets by index, and a function that connects from a source."""
    with ExitStack() as stack:
        free = stack.enter_context(socket.socket())
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        free.bind(("127.0.0.1", 0))
        address = Address(*free.getsockname())
        options = GroupOptions(count=3, seed=SEED, protocol="tcp", bpffs=bpffs)
        with Group.opened_or_created(address, options) as made:
            stack.callback(made.close)
        stack.callback(made.delete)
        listeners = {}
        for index in range(3):
            listeners[index] = stack.enter_context(listening(address))
            made.join(listeners[index], index)

        def connect(source):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            client.settimeout(10)
            client.bind((source, 0))
            client.connect((address.host, address.port))
            return client

        yield made, listeners, connect


def accepted(listener, number):
    """The sources of so many waiting connections."""
    sources = []
    for _ in range(number):
        connection, addr = listener.accept()
        connection.close()
        sources.append(addr[0])
    return sources


def test_one_source_one_member(group):
    """Every connection of a source reaches the member that the pure twin names, and each is counted once."""
    made, listeners, connect = group
    sources = [f"127.9.{number}.1" for number in range(60)]
    owner = {source: made.locate(ip_address(source)) for source in sources}
    for source in sources * 2:
        connect(source)
    for index, listener in listeners.items():
        mine = [source for source in sources if owner[source] == index]
        assert len(mine) > 5
        assert Counter(accepted(listener, 2 * len(mine))) == dict.fromkeys(mine, 2)
    assert [member.packets for member in made.statistics().members] == [
        2 * sum(index == found for found in owner.values()) for index in range(3)
    ]
    assert {member.bytes for member in made.statistics().members} == {0}


def test_waiting_connections_move(group):
    """Connections that nobody has accepted yet outlive their listener: they go where their sources go from then on."""
    made, listeners, connect = group
    sources = [f"127.9.{number}.1" for number in range(40)]
    clients = {source: connect(source) for source in sources if made.locate(ip_address(source)) == 0}
    made.leave(0, sockets_cookie(listeners[0]))
    listeners.pop(0).close()
    expected = Counter(made.locate(ip_address(source)) for source in clients)
    assert expected.keys() == {1, 2}
    for index, listener in listeners.items():
        for _ in range(expected[index]):
            connection, (source, _) = listener.accept()
            with connection:
                assert made.locate(ip_address(source)) == index
                connection.sendall(b"hello")
                assert clients[source].recv(5) == b"hello"
    assert made.statistics().migrated == len(clients)


def sockets_cookie(sock):
    """SO_COOKIE of a socket."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")


def test_twin(group):
    """What locate() says is the pure twin's choice."""
    made, _, _ = group
    source = ip_address("127.9.0.1")
    choice = hashing.choose(SEED, key_of(source), made.slots, 3, range(3))
    assert made.locate(source) == choice.member


def test_a_group_of_its_own(group, bpffs):
    """The same address and port over UDP is another group."""
    made, _, _ = group
    with pytest.raises(GroupNotFoundError):
        Group.open(made.address, bpffs=bpffs)
    again = Group.open(made.address, protocol="tcp", bpffs=bpffs)
    assert again.alive() == {0, 1, 2}
    again.close()


def test_a_socket_that_does_not_listen(group):
    """A socket that is bound and does not listen cannot be a member; nobody is named as the holder."""
    made, listeners, _ = group
    made.leave(2, sockets_cookie(listeners[2]))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((made.address.host, made.address.port))
        with pytest.raises(KernelError):
            made.join(sock, 2)
    assert made.alive() == {0, 1}
    assert made.holder(2).cookie == sockets_cookie(listeners[2])


def test_without_migration(monkeypatch, bpffs):
    """A kernel that cannot move connections gets the program that only steers new ones."""
    without = spec.shipped(spec.MIGRATING)
    broken = spec.ProgramSpec(bytes(16), without.name, without.source_digest, without.compiler, migrates=True)
    monkeypatch.setattr(spec, "for_protocol", lambda _: (broken, spec.shipped()))
    with Group.opened_or_created(Address("127.0.0.1", 9), GroupOptions(protocol="tcp", bpffs=bpffs)) as made:
        pass
    assert made.config.program == spec.shipped().digest
    made.delete()
    made.close()
