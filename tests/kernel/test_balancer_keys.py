"""Every key steers as its twin says: prefix, flow and random, with both loaders, for IPv4 and IPv6, with failover."""

from __future__ import annotations

import select
import socket
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import members
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.keys import Key
from aiolb.bpf.steering import JoinOptions
from aiolb.config import ServeConfig
from aiolb.errors import ConfigurationError

PREFIX, FLOW, RANDOM = Key.parse("prefix/24,64"), Key.parse("flow"), Key.parse("random")


def expected(group, flows, alive):
    """What the pure twin says about each flow."""
    return dict(zip(flows, group.members_of([FLOW.bytes_of(*flow) for flow in flows], alive), strict=True))


def test_prefixes_of_v4(cluster, sources_v4):
    """All sources of one /24 reach one member, the twin's, also when members die."""
    group = cluster(4, key=PREFIX)
    networks = [int(source) & ~0xFF for source in sources_v4(200)]
    sources = [IPv4Address(network | host) for network in networks for host in (1, 77, 254)]
    before = group.route(sources)
    assert before == group.predict(sources, range(4))
    assert len(set(before.values())) == 4
    assert all(len({before[source] for source in sources[at : at + 3]}) == 1 for at in range(0, len(sources), 3))
    group.kill(0, 2)
    after = group.route(sources)
    assert after == group.predict(sources, {1, 3})
    assert all(after[source] == before[source] for source in sources if before[source] in {1, 3})


def test_prefixes_of_v6(netns, cluster, sources_v6):
    """All sources of one /64 reach one member, the twin's, also when a member dies."""
    netns.add_local("fd00::/8")
    group = netns.call(cluster, 3, host="::1", key=PREFIX)
    networks = [int(source) >> 64 << 64 for source in sources_v6(200)]
    sources = [IPv6Address(network | host) for network in networks for host in (1, 1 << 63)]
    before = netns.call(group.route, sources)
    assert before == group.predict(sources, range(3))
    assert all(before[sources[at]] == before[sources[at + 1]] for at in range(0, len(sources), 2))
    group.kill(1)
    assert netns.call(group.route, sources) == group.predict(sources, {0, 2})


def test_prefixes_of_mapped_sources(cluster, sources_v4):
    """An IPv4 source at a [::] socket has the prefix of its IPv4 address."""
    group, sources = cluster(3, host="::", key=PREFIX), sources_v4(500)
    received = group.route(sources, to=Address("127.0.0.1", group.address.port))
    assert received == group.predict(sources, range(3))


@pytest.mark.parametrize("text", ["prefix/1,1", "prefix/8,128", "prefix/31,7", "prefix/32,65"])
def test_prefixes_of_any_length(cluster, netns, sources_v4, sources_v6, text):
    """Prefixes that end within a byte, or cover the address, steer as the twin says."""
    netns.add_local("fd00::/8")
    for sources, host in ((sources_v4(300), "127.0.0.1"), (sources_v6(300), "::1")):
        group = netns.call(cluster, 3, host=host, key=Key.parse(text))
        assert netns.call(group.route, sources) == group.predict(sources, range(3))


def test_flows_of_v4(cluster, sources_v4):
    """Every flow reaches the twin's member, also when a member dies, and flows of one source are spread."""
    group, sources = cluster(3, key=FLOW), sources_v4(200) + [IPv4Address("127.1.2.3")] * 100
    received = group.route_flows(sources)
    assert received == expected(group, received, range(3))
    assert {member for (source, _), member in received.items() if source == sources[-1]} == {0, 1, 2}
    group.kill(2)
    received = group.route_flows(sources)
    assert received == expected(group, received, {0, 1})


def test_flows_of_v6(netns, cluster, sources_v6):
    """Every IPv6 flow reaches the twin's member, also when a member dies."""
    netns.add_local("fd00::/8")
    group, sources = netns.call(cluster, 3, host="::1", key=FLOW), sources_v6(200)
    received = netns.call(group.route_flows, sources)
    assert received == expected(group, received, range(3))
    group.kill(0)
    received = netns.call(group.route_flows, sources)
    assert received == expected(group, received, {1, 2})


def test_flows_of_mapped_sources(cluster, sources_v4):
    """A flow of an IPv4 source at a [::] socket counts as IPv4."""
    group, sources = cluster(3, host="::", key=FLOW), sources_v4(200)
    received = group.route_flows(sources, to=Address("127.0.0.1", group.address.port))
    assert received == expected(group, received, range(3))


def test_random(cluster):
    """Datagrams of one flow are spread evenly over the members, within six standard deviations; the dead get none."""
    group, source, number = cluster(4, key=RANDOM), ip_address("127.0.0.1"), 3_000
    for alive in ({0, 1, 2, 3}, {0, 3}):
        group.kill(*({0, 1, 2, 3} - alive if len(alive) < 4 else ()))
        received = Counter()
        for _ in range(number // 100):
            group.send([source] * 100)
            received.update(taken.socket for taken in group.take(100))
        share = 1 / len(alive)
        bound = 6 * (number * share * (1 - share)) ** 0.5
        assert received.keys() == alive
        assert all(abs(count - number * share) < bound for count in received.values()), received


@pytest.mark.parametrize("pinned", [True, False])
def test_all_members_of_one_process(bpffs, pinned):
    """A group with all members in one process has the key that its settings ask for, pinned or not."""
    options = JoinOptions.of(ServeConfig(key="prefix/24,64", balancer="ebpf", count=3, bpffs=bpffs))
    if not pinned:
        options = replace(options, group=replace(options.group, bpffs=None))
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        group = members.join_all(address, sockets.bind_reuseport, options)
        try:
            assert group.pinned == pinned
            assert group.key == group[0].place.group.key == PREFIX
        finally:
            group.close(forget=True)


@pytest.mark.parametrize("key", [PREFIX, FLOW])
def test_locate(cluster, sources_v4, key):
    """The group names the member that gets a source's datagrams, by its key."""
    group = cluster(3, key=key)
    received = group.route_flows(sources_v4(100))
    assert {flow: group.group.locate(*flow) for flow in received} == received


def test_locate_what_the_source_does_not_tell(cluster):
    """Without a port there is no flow to locate, and a random key is not located at all."""
    source = ip_address("127.0.0.1")
    with pytest.raises(ConfigurationError, match="the key is flow"):
        cluster(2, key=FLOW).group.locate(source)
    with pytest.raises(ConfigurationError, match="the key is random"):
        cluster(2, key=RANDOM).group.locate(source, 1)
    with pytest.raises(ConfigurationError, match="has the key random, not one of a key file"):
        cluster(2, key=RANDOM).group.locate_key(1, 2)


def connect(address, number):
    """Open connections and send two bytes on each; the connections."""
    made = []
    for _ in range(number):
        made.append(socket.create_connection((address.host, address.port), timeout=10))
        made[-1].sendall(b"hi")
    return made


def listener(address):
    """A listening socket that may share its port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address.host, address.port))
    sock.listen(1_000)
    sock.setblocking(False)
    return sock


def accept(listeners):
    """Accept a connection where there is one, and read what it sends; which socket it came from."""
    readable, _, _ = select.select(listeners, [], [], 10)
    connection, _ = readable[0].accept()
    with connection:
        connection.settimeout(10)
        assert connection.recv(3) == b"hi"
    return readable[0]


@pytest.mark.parametrize("syncookies", ["1", "2"])
def test_random_connections(netns, bpffs, syncookies):
    """Every TCP connection is accepted, also where SYN cookies let its SYN and its ACK be steered apart."""
    netns.call(Path("/proc/sys/net/ipv4/tcp_syncookies").write_text, syncookies)
    listening = netns.call(listener, Address("127.0.0.1", 0))
    address = Address(*listening.getsockname())
    listeners = [listening, *(netns.call(listener, address) for _ in range(3))]
    options = GroupOptions(count=4, protocol="tcp", key=RANDOM, bpffs=bpffs)
    with ExitStack() as stack:
        for sock in listeners:
            stack.callback(sock.close)
        with netns.call(Group.opened_or_created, address, options) as group:
            stack.callback(group.close)
        for index, sock in enumerate(listeners):
            group.join(sock, index)
        clients = netns.call(connect, address, 200)
        accepted = [accept(listeners) for _ in clients]
        for client in clients:
            client.close()
        assert set(accepted) == set(listeners)
        assert sum(member.packets for member in group.statistics().members) == 200 * int(syncookies)
