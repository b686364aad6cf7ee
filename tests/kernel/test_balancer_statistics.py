"""Statistics: packets, bytes and slots are counted exactly, once each."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from aiolb.bpf import hashing
from aiolb.bpf.keys import key_of

UDP_SEGMENT = 103  # a name that Python 3.11 lacks (include/uapi/linux/udp.h)


def test_counts_packets_and_bytes_per_member(cluster, sources_v4):
    """Each member's packets and payload bytes are those that it was sent, from an empty datagram to the largest."""
    group, expected = cluster(3), [Counter(), Counter(), Counter()]
    for number, size in enumerate((0, 1, 64, 1_400, 65_507)):
        sources = sources_v4(100, seed=number)
        group.send(sources, b"x" * size)
        for member in group.receive(len(sources)).values():
            expected[member].update(packets=1, bytes=size)
    assert [Counter(packets=found.packets, bytes=found.bytes) for found in group.statistics.members] == expected


def test_counts_v6_bytes(netns, cluster, sources_v6):
    """The bytes of IPv6 datagrams are their payload too."""
    netns.add_local("fd00::/8")
    group, sources = netns.call(cluster, 2, host="::1"), sources_v6(100)
    netns.call(group.send, sources, b"x" * 500)
    group.receive(100)
    assert sum(member.bytes for member in group.statistics.members) == 100 * 500


def test_counts_per_slot(cluster, sources_v4):
    """Every packet is counted at the first slot of its source, failed over or not."""
    group, sources = cluster(3), sources_v4(2_000)
    group.route(sources)
    group.kill(2)
    group.route(sources[:1_000])
    expected = Counter(hashing.slot_of(group.group.config.seed, key_of(source)) for source in sources + sources[:1_000])
    assert {slot: packets for slot, packets in enumerate(group.group.slot_packets()) if packets} == expected
    assert sum(member.packets for member in group.statistics.members) == 3_000


def test_counts_from_both_cpus(cluster, sources_v4):
    """Two threads that send at once lose no count."""
    group, halves = cluster(2), (sources_v4(2_000)[:1_000], sources_v4(2_000)[1_000:])
    other = cluster(2)
    with ThreadPoolExecutor() as pool:
        for sender, half in zip((group, other), halves, strict=True):
            pool.submit(sender.send, half, to=group.address)
    group.receive(2_000)
    assert sum(member.packets for member in group.statistics.members) == 2_000


def test_a_train_is_one_packet(cluster):
    """A train of ten datagrams counts as one packet with all its bytes, whether the socket takes trains or not."""
    group = cluster(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        sender.sendto(b"x" * 1_000, (group.address.host, group.address.port))
    datagrams = [receive(group) for _ in range(10)]
    assert datagrams == [b"x" * 100] * 10
    (member,) = group.statistics.members
    assert (member.packets, member.bytes) == (1, 1_000)


def receive(group):
    """The next datagram of the only member."""
    group.wait()
    return group.sockets[0].recv(65536)


def test_fragments_are_steered_whole(netns, cluster, sources_v4):
    """A datagram that arrived in fragments is steered by its source and counted once, with all its bytes."""
    netns.ip("link", "set", "lo", "mtu", "1500")
    group, sources = netns.call(cluster, 3), sources_v4(100)
    netns.call(group.send, sources, b"x" * 4_000)
    assert group.receive(100) == group.predict(sources, range(3))
    found = group.statistics.members
    assert (sum(m.packets for m in found), sum(m.bytes for m in found)) == (100, 400_000)


def test_names_the_holders(cluster):
    """Statistics name the holder of each index: its socket's cookie and its share of the slots; a dead one has none."""
    group = cluster(3)
    group.kill(1)
    found = group.statistics
    assert [member.alive for member in found.members] == [True, False, True]
    assert [member.cookie for member in found.members] == [cookie(group, 0), None, cookie(group, 2)]
    assert sum(member.slots for member in found.members) == 16_384


def cookie(group, name):
    """SO_COOKIE of a socket."""
    return struct.unpack("=Q", group.sockets[name].getsockopt(socket.SOL_SOCKET, 57, 8))[0]
