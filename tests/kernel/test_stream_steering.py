"""Connections are steered as datagrams are: by source, to the member that the group says, for every balancer."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from aiolb import binding, listening, sockets
from aiolb.address import Address, canonical
from aiolb.bpf import classic, hashing, steering
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.keys import key_of
from aiolb.bpf.steering import JoinOptions
from aiolb.config import ServeConfig
from aiolb.errors import MemberTakenError

DEADLINE = 10  # seconds until a connection that does not arrive counts as lost
SOURCES = [IPv4Address(f"127.3.{number % 7}.{number}") for number in range(1, 101)]


class Streams:
    """Members with a listening socket each, in this process, and clients of any source."""

    def __init__(self, stack, bpffs, host, count, *, balancer="ebpf", strict=None):
        self.stack = stack
        self.config = ServeConfig(
            protocol="tcp", count=count, balancer=balancer, strict=strict, seed=7, bpffs=bpffs, backlog=512
        )
        self.places, self.sockets, self.clients = {}, {}, []
        with sockets.reserved_port(Address(host, 0), "tcp") as self.address:
            for index in range(count):
                self.join(index)
        if balancer == "ebpf":
            self.group = stack.enter_context(closing(Group.open(self.address, protocol="tcp", bpffs=bpffs)))
            stack.callback(self.group.delete)
        stack.callback(self.close)

    def join(self, index, *, takeover=False, name=None):
        """Bind, listen and join."""
        options = JoinOptions.of(self.config)
        options = replace(options, index=index, takeover=takeover)
        joined = steering.join(self.address, binding.binder(self.config), options)
        assert joined.others == ()
        self.sockets[index if name is None else name], self.places[index] = joined.sock, joined.place

    def close(self):
        """Close everything but the group."""
        for sock in (*self.sockets.values(), *self.clients):
            sock.close()
        for place in self.places.values():
            place.close()

    def kill(self, index):
        """Close a member's socket, as the kernel does when its process is killed."""
        self.sockets.pop(index).close()

    def connect(self, source):
        """A connection from a source; it stays open."""
        client = socket.socket(self.address.family)
        self.clients.append(client)
        client.settimeout(DEADLINE)
        mapped = self.address.family == socket.AF_INET6 and source.version == 4
        client.bind((f"::ffff:{source}" if mapped else str(source), 0))
        loopback = {4: "127.0.0.1", 6: "::1"}[source.version]
        host = loopback if self.address.ip.is_unspecified else self.address.host
        client.connect((f"::ffff:{host}" if mapped else host, self.address.port))

    def route(self, sources):
        """Connect once from each source; which member got it."""
        for source in sources:
            self.connect(source)
        return self.accept(len(sources))

    def accept(self, expected):
        """Accept that many connections: the member that each source is at."""
        poll, found = select.poll(), {}
        for sock in self.sockets.values():
            poll.register(sock, select.POLLIN)
        while len(found) < expected:
            assert poll.poll(DEADLINE * 1000), f"{expected - len(found)} of {expected} connections did not arrive"
            for name, sock in self.sockets.items():
                while listening.waiting_connections(sock):
                    connection, addr = sock.accept()
                    connection.close()
                    found[canonical(ip_address(addr[0]))] = name
        assert len(found) == expected
        assert not any(map(listening.waiting_connections, self.sockets.values()))
        return found


@pytest.fixture
def streams(bpffs):
    """``streams("127.0.0.1", 3, balancer="ebpf")``."""
    with ExitStack() as stack:
        yield lambda host, count, **options: Streams(stack, bpffs, host, count, **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_affinity(streams, host):
    """Every connection of a source reaches the member that the group names, also by an IPv6 wildcard."""
    made = streams(host, 4)
    owners = {source: made.group.locate(source) for source in SOURCES}
    assert set(owners.values()) == {0, 1, 2, 3}
    for _ in range(2):  # from other ports
        assert made.route(SOURCES) == owners


def test_affinity_of_ipv6(streams, netns):
    """The same with IPv6 sources."""
    sources = [IPv6Address(f"fd00::{number:x}") for number in range(1, 61)]
    netns.add_addresses(*(f"{source}/128" for source in sources))
    made = netns.call(streams, "::1", 3)
    owners = {source: made.group.locate(source) for source in sources}
    assert set(owners.values()) == {0, 1, 2}
    assert netns.call(made.route, sources) == owners


def test_failover(streams):
    """Sources of a member that is gone move to others with their next connection, and no other source moves."""
    made = streams("127.0.0.1", 4)
    before = made.route(SOURCES)
    made.kill(2)
    config, slots = made.group.config, made.group.slots
    after = made.route(SOURCES)
    for source, index in before.items():
        choice = hashing.choose(config.seed, key_of(source), slots, config.count, {0, 1, 3}, newest=config.newest)
        assert after[source] == choice.member
        assert index in (2, after[source])
    assert set(after.values()) == {0, 1, 3}


def test_what_waits_at_a_member_that_dies(streams):
    """Connections that a killed member has not accepted go to the members that have their sources from then on."""
    made = streams("127.0.0.1", 3)
    for source in SOURCES:
        made.connect(source)
    waiting = [source for source in SOURCES if made.group.locate(source) == 1]
    kept = {source: made.group.locate(source) for source in SOURCES if source not in waiting}
    made.kill(1)
    found = made.accept(len(SOURCES))
    assert {source: found[source] for source in kept} == kept
    assert {found[source] for source in waiting} == {0, 2}
    assert made.route(waiting) == {source: found[source] for source in waiting}


def test_leaving(streams):
    """A member that has left gets no connection more; what it had is its own."""
    made = streams("127.0.0.1", 3)
    for source in SOURCES:
        made.connect(source)
    owners = {source: made.group.locate(source) for source in SOURCES}
    made.places[0].leave()
    assert made.accept(len(SOURCES)) == owners
    again = made.route(SOURCES)
    assert set(again.values()) == {1, 2}
    assert made.places[0].restore()
    assert made.route(SOURCES) == owners


def test_takeover(streams):
    """A held place is refused; taken over, connections go to the new socket, and the old one keeps what it had."""
    made = streams("127.0.0.1", 2)
    mine = [source for source in SOURCES if made.group.locate(source) == 0]
    with pytest.raises(MemberTakenError):
        made.join(0)
    made.sockets["old"] = made.sockets[0]
    old = made.places[0]
    for source in mine:
        made.connect(source)
    made.join(0, takeover=True)
    assert old.displaced
    old.close()
    assert made.accept(len(mine)) == dict.fromkeys(mine, "old")
    assert made.route(mine) == dict.fromkeys(mine, 0)


def test_nobody_is_alive(streams):
    """Where every member has left, a strict group refuses, and another one leaves it to the kernel."""
    for strict in (True, False):
        made = streams("127.0.0.1", 2, strict=strict)
        for place in made.places.values():
            place.leave()
        if strict:
            with pytest.raises(ConnectionRefusedError):
                made.connect(SOURCES[0])
        else:
            assert set(made.route(SOURCES).values()) == {0, 1}


def test_datagrams_beside_connections(streams, bpffs):
    """One port has a group for each protocol, and they know nothing of each other."""
    made = streams("127.0.0.1", 2)
    options = JoinOptions.of(ServeConfig(bpffs=bpffs))
    joined = steering.join(made.address, sockets.bind_reuseport, options)
    with joined.sock, closing(joined.place):
        assert joined.others == ()
        assert joined.place.count == 1
        assert set(made.route(SOURCES).values()) == {0, 1}
        with pytest.raises(BlockingIOError):
            joined.sock.recv(1)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_classic(streams, count):
    """The classic balancer reads the source of a connection as that of a datagram."""
    made = streams("127.0.0.1", count, balancer="classic")
    assert made.route(SOURCES) == {source: classic.choose(source, count, 7) for source in SOURCES}


def test_classic_of_ipv6(streams, netns):
    """The same with IPv6 sources."""
    sources = [IPv6Address(f"fd00::{number:x}") for number in range(1, 61)]
    netns.add_addresses(*(f"{source}/128" for source in sources))
    made = netns.call(streams, "::1", 3, balancer="classic")
    assert netns.call(made.route, sources) == {source: classic.choose(source, 3, 7) for source in sources}


def test_none(streams):
    """Without a balancer the kernel spreads connections, and every member gets some."""
    made = streams("127.0.0.1", 3, balancer="none")
    found = [made.route(SOURCES) for _ in range(2)]
    assert {index for owners in found for index in owners.values()} == {0, 1, 2}
    assert found[0] != found[1]


@pytest.mark.parametrize("asked", ["compile", "debug"])
@pytest.mark.usefixtures("compiled")
def test_a_compiled_program(asked):
    """What is compiled for connections moves those that wait too, where the kernel can; for datagrams it need not."""
    options = JoinOptions(group=GroupOptions(protocol="tcp"), **{asked: True})
    preferred, otherwise = steering.group_options(options).programs
    assert (preferred.migrates, otherwise.migrates, preferred.name) == (True, False, otherwise.name)
    (only,) = steering.group_options(replace(options, group=GroupOptions())).programs
    assert not only.migrates
