"""Affinity: the kernel's choice for every source is the one that the pure twin predicts."""

from __future__ import annotations

import random
import socket
import struct
from ipaddress import IPv6Address
from itertools import permutations

from aiolb.address import Address
from aiolb.bpf import hashing
from aiolb.bpf.keys import key_of


def test_every_one_of_ten_thousand_v4_sources(cluster, sources_v4):
    """The pure twin names the member of every one of 10,000 random IPv4 sources."""
    group, sources = cluster(5), sources_v4(10_000)
    received = group.route(sources)
    assert received == group.predict(sources, range(5))
    assert set(received.values()) == set(range(5))


def test_every_one_of_ten_thousand_v6_sources(netns, cluster, sources_v6):
    """The pure twin names the member of every one of 10,000 random IPv6 sources."""
    netns.add_local("fd00::/8")
    group, sources = netns.call(cluster, 5, host="::1"), sources_v6(10_000)
    received = netns.call(group.route, sources)
    assert received == group.predict(sources, range(5))
    assert set(received.values()) == set(range(5))


def test_v6_sources_of_permuted_words(netns, cluster):
    """The order of an IPv6 source's words counts: the 24 permutations of one address land in different slots."""
    netns.add_local("fd00::/8")
    generator = random.Random(2)
    words = [bytes([0xFD, *generator.randbytes(3)]) for _ in range(4)]
    sources = [IPv6Address(b"".join(order)) for order in permutations(words)]
    group = netns.call(cluster, 24, host="::1")
    assert netns.call(group.route, sources) == group.predict(sources, range(24))
    assert len({hashing.slot_of(group.group.config.seed, key_of(source)) for source in sources}) == 24


def test_v6_sources_that_differ_in_one_bit(netns, cluster):
    """Every bit of an IPv6 source counts: those that differ in one land in different slots."""
    netns.add_local("fd00::/8")
    base = int(IPv6Address("fd00:1:2:3:4:5:6:7"))
    sources = [IPv6Address(base ^ 1 << bit) for bit in range(120)]
    group = netns.call(cluster, 16, host="::1")
    assert netns.call(group.route, sources) == group.predict(sources, range(16))
    assert len({hashing.slot_of(group.group.config.seed, key_of(source)) for source in sources}) == 120


def test_v4_sources_at_a_dual_stack_socket(cluster, sources_v4):
    """IPv4 datagrams that reach a [::] socket are steered by their IPv4 source, as at an IPv4 socket."""
    sources = sources_v4(2_000)
    dual, plain = cluster(5, host="::"), cluster(5)
    received = dual.route(sources, to=Address("127.0.0.1", dual.address.port))
    assert received == plain.route(sources) == dual.predict(sources, range(5))


def test_v6_sources_at_a_dual_stack_socket(netns, cluster, sources_v6):
    """IPv6 datagrams that reach a [::] socket are steered by their IPv6 source."""
    netns.add_local("fd00::/8")
    group, sources = netns.call(cluster, 5, host="::"), sources_v6(1_000)
    assert netns.call(group.route, sources) == group.predict(sources, range(5))


def test_mapped_sources_in_v6_packets(netns, cluster, sources_v4):
    """An IPv6 header whose source is ::ffff:127.x.y.z counts as the IPv4 source."""
    sources, group = sources_v4(200), netns.call(cluster, 5, host="::1")
    with netns.call(socket.socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for source in sources:
            raw.sendto(v6_packet(b"\0" * 10 + b"\xff\xff" + source.packed, group.address), ("::1", 0))
    assert group.receive(len(sources)) == group.predict(sources, range(5))


def v6_packet(source: bytes, to: Address) -> bytes:
    """An IPv6 packet with one UDP datagram, which no socket would send with such a source (RFC 8200, RFC 768)."""
    ports_and_length, payload = struct.pack("!HHH", 9, to.port, 10), b"xx"
    addresses = source + to.ip.packed
    words = struct.unpack("!25H", addresses + struct.pack("!II", 10, 17) + ports_and_length + b"\0\0" + payload)
    checksum = ~(sum(words) % 0xFFFF) & 0xFFFF
    header = struct.pack("!IHBB", 6 << 28, 10, 17, 64)
    return header + addresses + ports_and_length + struct.pack("!H", checksum) + payload


def test_a_source_stays_with_its_member(cluster, sources_v4):
    """A source reaches the same member in every one of ten rounds, from whatever port."""
    group, sources = cluster(7), sources_v4(500)
    first = group.route(sources)
    for _ in range(9):
        group.forget_ports()
        assert group.route(sources) == first


def test_members_share_the_sources(cluster, sources_v4):
    """Ten thousand sources spread over four members as evenly as chance allows (five standard deviations)."""
    received = list(cluster(4).route(sources_v4(10_000)).values())
    assert all(abs(received.count(member) - 2_500) < 5 * 43.3 for member in range(4))


def test_another_seed_steers_otherwise(cluster, sources_v4):
    """The seed decides who gets which source: with another one, as many stay as chance leaves (a quarter)."""
    sources = sources_v4(1_000)
    first, second = cluster(4, seed=1).route(sources), cluster(4, seed=2).route(sources)
    same = sum(first[source] == second[source] for source in sources)
    assert abs(same - 250) < 5 * 13.7
