"""The classic balancer: the kernel's choice is the twin's, in bind order, for a user without any privilege."""

from __future__ import annotations

import socket
from collections import Counter
from ipaddress import ip_address

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import classic, syscall
from aiolb.bpf.keys import Key

SOURCE, FLOW, RANDOM = Key(), Key.parse("flow"), Key.parse("random")
UNPRIVILEGED = """
import json, os, socket
from ipaddress import ip_address
from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import classic, syscall

os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
    members = [sockets.bind_reuseport(address)]
members += [sockets.bind_reuseport(address) for _ in range(3)]
for member in members:
    syscall.attach_reuseport_classic(member, classic.program(4, 9))
right = 0
for number in range(200):
    source = f"127.9.8.{number + 1}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        sender.sendto(b"x", (address.host, address.port))
    member = members[classic.choose(ip_address(source), 4, 9)]
    member.settimeout(10)
    right += member.recvfrom(10)[1][0] == source
for member in members:
    member.close()
with open("/proc/self/status") as status:
    capabilities = [int(line.split()[1], 16) for line in status if line.startswith(("CapPrm", "CapEff"))]
print(json.dumps([right, capabilities]))
"""


@pytest.fixture
def classic_cluster(cluster):
    """Sockets with the classic program, numbered in bind order, and a sender: ``classic_cluster("127.0.0.1", 3)``."""

    def make(host, count, seed=0, key=SOURCE):
        group = cluster(1, host=host)
        group.kill(0)
        # The socket that reserves the port is number 0 as long as it is open.
        with sockets.reserved_port(Address(host, 0)) as group.address:
            group.bind(0)
        for number in range(1, count):
            group.bind(number)
        for sock in group.sockets.values():
            syscall.attach_reuseport_classic(sock, classic.program(count, seed, key))
        return group

    return make


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (3, 0), (4, 0xFFFFFFFF), (7, 12345)])
def test_every_v4_source(classic_cluster, sources_v4, count, seed):
    """The twin names the socket of every one of thousands of IPv4 sources, whatever the count and the seed."""
    group, sources = classic_cluster("127.0.0.1", count, seed), sources_v4(3_000)
    assert group.route(sources) == {source: classic.choose(source, count, seed) for source in sources}


@pytest.mark.parametrize(("count", "seed"), [(3, 0), (5, 0x80000001)])
def test_every_v6_source(netns, classic_cluster, sources_v6, count, seed):
    """The twin names the socket of every one of thousands of IPv6 sources."""
    netns.add_local("fd00::/8")
    group, sources = netns.call(classic_cluster, "::1", count, seed), sources_v6(3_000)
    assert netns.call(group.route, sources) == {source: classic.choose(source, count, seed) for source in sources}


def test_v4_sources_at_a_dual_stack_socket(classic_cluster, sources_v4):
    """IPv4 datagrams at a [::] socket are steered by their IPv4 source."""
    group, sources = classic_cluster("::", 3), sources_v4(1_000)
    received = group.route(sources, to=Address("127.0.0.1", group.address.port))
    assert received == {source: classic.choose(source, 3) for source in sources}


@pytest.mark.parametrize("text", ["prefix/24,64", "prefix/9,33", "prefix/32,1"])
def test_prefixes(netns, classic_cluster, sources_v4, sources_v6, text):
    """The twin names the socket of every source by its prefix, for IPv4 and IPv6."""
    netns.add_local("fd00::/8")
    key = Key.parse(text)
    for host, sources in (("127.0.0.1", sources_v4(500)), ("::1", sources_v6(500))):
        group = netns.call(classic_cluster, host, 5, 7, key)
        assert netns.call(group.route, sources) == {source: classic.choose(source, 5, 7, key) for source in sources}


def test_flows(netns, classic_cluster, sources_v4, sources_v6):
    """The twin names the socket of every flow, for IPv4 and IPv6, and spreads one source's."""
    netns.add_local("fd00::/8")
    for host, sources in (("127.0.0.1", sources_v4(200)), ("::1", sources_v6(200))):
        group = netns.call(classic_cluster, host, 3, 7, FLOW)
        received = netns.call(group.route_flows, sources + sources[:1] * 60)
        assert received == {flow: classic.choose(flow[0], 3, 7, FLOW, flow[1]) for flow in received}
        assert {number for (source, _), number in received.items() if source == sources[0]} == {0, 1, 2}


def test_flows_at_a_dual_stack_socket(classic_cluster, sources_v4):
    """An IPv4 flow at a [::] socket is steered by its IPv4 source and its port."""
    group = classic_cluster("::", 3, key=FLOW)
    received = group.route_flows(sources_v4(200), to=Address("127.0.0.1", group.address.port))
    assert received == {flow: classic.choose(flow[0], 3, 0, FLOW, flow[1]) for flow in received}


def test_flows_behind_ip_options(classic_cluster):
    """The port is found behind an IPv4 header with options."""
    group = classic_cluster("127.0.0.1", 4, key=FLOW)
    ports = []
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01" * 8)  # no operation
            sender.bind(("127.0.0.1", 0))
            sender.sendto(b"x", (group.address.host, group.address.port))
            ports.append(sender.getsockname()[1])
    received = {taken.port: taken.socket for taken in group.take(50)}
    assert received == {port: classic.choose(ip_address("127.0.0.1"), 4, 0, FLOW, port) for port in ports}


def test_random(classic_cluster):
    """Datagrams of one flow are spread evenly over the sockets, within six standard deviations."""
    group, received = classic_cluster("127.0.0.1", 4, key=RANDOM), Counter()
    for _ in range(30):
        group.send([ip_address("127.0.0.1")] * 100)
        received.update(taken.socket for taken in group.take(100))
    assert received.keys() == {0, 1, 2, 3}
    assert all(abs(number - 750) < 6 * 23.8 for number in received.values()), received


def test_the_last_socket_takes_the_number_of_a_closed_one(classic_cluster, sources_v4):
    """There is no failover by hash: when a socket closes, the last one takes its number."""
    group, sources = classic_cluster("127.0.0.1", 3), sources_v4(500)
    for sock in group.sockets.values():
        syscall.attach_reuseport_classic(sock, classic.program(2))
    group.kill(0)
    assert group.route(sources) == {source: [2, 1][classic.choose(source, 2)] for source in sources}


def test_without_any_privilege(python):
    """A user without any capability attaches the program, and all 200 sources go where the twin says."""
    assert python(UNPRIVILEGED) == [200, [0, 0]]


def test_sources_are_shared_evenly(sources_v4, sources_v6):
    """The classic hash spreads sources over the sockets as evenly as chance allows (five standard deviations)."""
    for sources in (sources_v4(10_000), sources_v6(10_000)):
        chosen = [classic.choose(source, 4) for source in sources]
        assert all(abs(chosen.count(number) - 2_500) < 5 * 43.3 for number in range(4))
