"""The guard: what is dropped before any member gets it, counted exactly; and that floods of others harm nobody."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections import Counter
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from aiolb.address import Address
from aiolb.bpf import syscall
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.guard import Offender
from aiolb.bpf.pins import Pins
from aiolb.bpf.rules import GuardOptions, GuardRules, Limit

UDP_SEGMENT = 103  # a name that Python 3.11 lacks (include/uapi/linux/udp.h)
TINY = "0.001"  # packets a second: no token comes back while a test runs


def rules(allow=(), deny=()):
    """Rules of texts."""
    return GuardRules.of(map(ip_network, allow), map(ip_network, deny))


def guarded(group, *, allow=(), deny=(), limit=None):
    """Give a cluster's group these rules and this limit; its guard."""
    guard = group.group.guard
    guard.set(GuardOptions(rules(allow, deny), None if limit is None else Limit.parse(limit)))
    return guard


def addresses(*texts):
    """Sources of texts."""
    return [ip_address(text) for text in texts]


def dropped(guard):
    """What was dropped, by reason."""
    found = guard.statistics()
    return {"denied": found.denied, "unlisted": found.unlisted, "limited": found.limited}


def counted(guard):
    """Packets and bytes by rule."""
    return {str(rule.network): (rule.packets, rule.bytes) for rule in guard.statistics().rules}


def test_denied_sources(cluster, sources_v4):
    """What denied sources send reaches no member, and each packet of it is counted, with its bytes."""
    group = cluster(3)
    guard = guarded(group, deny=["127.64.0.0/10", "127.0.0.0/16"])
    sources = sources_v4(2_000)
    denied = [s for s in sources if s in ip_network("127.64.0.0/10")]
    others = [s for s in sources if s not in ip_network("127.64.0.0/10") and s not in ip_network("127.0.0.0/16")]
    group.send(denied, b"x" * 30)
    group.send(addresses("127.0.9.9"))
    assert group.route(others) == group.predict(others, range(3))
    assert dropped(guard) == {"denied": len(denied) + 1, "unlisted": 0, "limited": 0}
    assert counted(guard) == {"127.0.0.0/16": (1, 1), "127.64.0.0/10": (len(denied), 30 * len(denied))}
    assert sum(member.packets for member in group.statistics.members) == len(others)


def test_the_longest_prefix_decides(cluster):
    """An allowed network inside of a denied one, a denied one inside of that, and a single source in there."""
    group = cluster(2)
    guard = guarded(group, allow=["127.3.0.0/16", "127.3.4.5"], deny=["127.0.0.0/8", "127.3.4.0/24"])
    passing = addresses("127.3.0.1", "127.3.5.1", "127.3.4.5")
    group.send(addresses("127.3.4.1", "127.3.4.4", "127.3.4.6", "127.4.0.1", "127.0.0.1"))
    assert set(group.route(passing)) == set(passing)
    assert counted(guard) == {
        "127.0.0.0/8": (2, 2),
        "127.3.0.0/16": (2, 2),
        "127.3.4.0/24": (3, 3),
        "127.3.4.5/32": (1, 1),
    }
    assert dropped(guard) == {"denied": 5, "unlisted": 0, "limited": 0}


def test_only_allowed_sources(cluster):
    """As soon as one network is allowed, what no rule names is dropped."""
    group = cluster(2)
    guard = guarded(group, allow=["127.3.0.0/16"], deny=["127.3.4.0/24"])
    group.send(addresses("127.4.0.1", "127.0.0.1", "127.3.4.1"))
    assert set(group.route(addresses("127.3.0.1"))) == set(addresses("127.3.0.1"))
    assert dropped(guard) == {"denied": 1, "unlisted": 2, "limited": 0}


def test_v6(netns, cluster):
    """IPv6 networks of any length, also with bits beyond the 64th."""
    netns.add_local("fd00::/8")
    group = netns.call(cluster, 2, host="::1")
    guard = guarded(group, allow=["fd00::/16", "fd01::5:0:0:0/80", "fd01::7"])
    passing = addresses("fd00::1", "fd00:9::1", "fd01::5:1:2:3", "fd01::7")
    netns.call(group.send, addresses("fd01::1", "fd01::6:0:0:0", "fd01::8", "fdff::1"))
    assert set(netns.call(group.route, passing)) == set(passing)
    assert dropped(guard) == {"denied": 0, "unlisted": 4, "limited": 0}
    assert counted(guard) == {"fd00::/16": (2, 2), "fd01::5:0:0:0/80": (1, 1), "fd01::7/128": (1, 1)}


def test_v4_at_a_dual_stack_socket(netns, cluster):
    """A rule for IPv4 holds at an IPv6 socket too; one for IPv6, even for all of it, is none for IPv4."""
    netns.add_local("fd00::/8")
    group = netns.call(cluster, 2, host="::")
    v4, v6 = Address("127.0.0.1", group.address.port), Address("::1", group.address.port)

    def send(*texts):
        for source in addresses(*texts):
            netns.call(group.send, [source], to=v4 if source.version == 4 else v6)

    guard = guarded(group, deny=["127.3.0.0/16", "::/0"])
    send("127.3.0.1", "fd00::1", "127.4.0.1")
    assert group.receive(1).keys() == set(addresses("127.4.0.1"))
    assert dropped(guard) == {"denied": 2, "unlisted": 0, "limited": 0}
    guard.set_rules(rules(allow=["::/0"]))
    send("fd00::1", "127.4.0.1")
    assert group.receive(1).keys() == set(addresses("fd00::1"))
    assert dropped(guard) == {"denied": 2, "unlisted": 1, "limited": 0}
    guard.set_rules(rules(allow=["0.0.0.0/0"]))
    send("fd00::1", "127.4.0.1")
    assert group.receive(1).keys() == set(addresses("127.4.0.1"))
    assert counted(guard) == {"0.0.0.0/0": (1, 1)}


def test_rules_change_while_packets_come(cluster):
    """A change holds from the next packet on; rules that stay go on counting, and those that come begin at 0."""
    group = cluster(2)
    source = addresses("127.3.0.1")
    guard = guarded(group, deny=["127.3.0.0/16"])
    group.send(source * 3)
    guard.set_rules(rules(allow=["127.3.0.1"], deny=["127.3.0.0/16"]))
    group.route(source)
    group.send(addresses("127.3.0.2"))
    assert counted(guard) == {"127.3.0.0/16": (4, 4), "127.3.0.1/32": (1, 1)}
    guard.set_rules(rules(deny=["127.3.0.1"]))
    group.send(source)
    assert counted(guard) == {"127.3.0.1/32": (1, 1)}
    guard.set_rules(rules())
    group.route(source)
    assert (counted(guard), dropped(guard)) == ({}, {"denied": 5, "unlisted": 0, "limited": 0})


def test_guard_of_a_new_group(bpffs, program):
    """A group is made with its guard; who joins with another one changes it, and who joins without leaves it."""
    address = Address("127.0.0.1", 9)
    first = GuardOptions(rules(allow=["127.3.0.0/16"]), Limit.parse("5:7"))
    with Group.opened_or_created(address, GroupOptions(program=program, guard=first, bpffs=bpffs)) as group:
        assert (group.guard.rules, group.guard.limit) == (first.rules, first.limit)
    with group.locked():
        group.guard.set(GuardOptions(limit=Limit()))
    assert (group.guard.rules, group.guard.limit) == (first.rules, Limit())
    group.delete()
    group.close()


@pytest.mark.parametrize("burst", [1, 2, 40])
def test_a_source_gets_its_burst(cluster, burst):
    """Of many packets at once a source gets exactly as many through as the burst has, and others are not affected."""
    group = cluster(2)
    guard = guarded(group, limit=f"{TINY}:{burst}")
    one, others = addresses("127.3.0.1"), addresses("127.3.0.2", "127.3.0.3")
    for _ in range(100):
        group.send(one)
    assert sum(member.packets for member in group.statistics.members) == burst
    drain(group)
    assert set(group.route(others)) == set(others)
    assert dropped(guard) == {"denied": 0, "unlisted": 0, "limited": 100 - burst}
    assert guard.statistics().offenders == (Offender(one[0], 100 - burst),)


def test_tokens_come_back(cluster):
    """A source that was over the limit passes again when time has given it a token."""
    group = cluster(1)
    guard = guarded(group, limit="20:1")
    one = addresses("127.3.0.1")
    group.route(one)
    for _ in range(100_000):  # bounded; at the clock's pace it takes 50 ms
        group.send(one)
        if group.statistics.members[0].packets == 2:
            break
    assert group.statistics.members[0].packets == 2
    assert dropped(guard)["limited"] > 0


def test_a_new_limit_begins_with_full_buckets(cluster):
    """What a source took under the old limit does not count under a new one; the same limit again changes nothing."""
    group = cluster(1)
    guard = guarded(group, limit=f"{TINY}:1")
    one = addresses("127.3.0.1")
    group.route(one)
    guard.set_limit(Limit.parse(f"{TINY}:1"))
    group.send(one)
    assert dropped(guard)["limited"] == 1
    guard.set_limit(Limit.parse(f"{TINY}:2"))
    for _ in range(3):
        group.send(one)
    assert dropped(guard)["limited"] == 2
    guard.set_limit(Limit())
    for _ in range(10):
        group.send(one)
    assert dropped(guard)["limited"] == 2
    assert group.statistics.members[0].packets == 13


def test_rules_come_before_the_limit(cluster):
    """What a rule drops takes no token; what one allows is limited all the same."""
    group = cluster(1)
    guard = guarded(group, allow=["127.3.0.0/16"], limit=f"{TINY}:2")
    for _ in range(5):
        group.send(addresses("127.3.0.1", "127.4.0.1"))
    assert dropped(guard) == {"denied": 0, "unlisted": 5, "limited": 3}


def test_a_v6_network_has_one_limit(netns, cluster):
    """All addresses of an IPv6 /64 share their tokens, another /64 has its own; it is the /64 that is told of."""
    netns.add_local("fd00::/8")
    group = netns.call(cluster, 2, host="::1")
    guard = guarded(group, limit=f"{TINY}:3")
    netns.call(group.send, [IPv6Address(f"fd00::{number}") for number in range(1, 11)])
    netns.call(group.send, addresses("fd00:0:0:1::1", "fd01::1"))
    assert dropped(guard)["limited"] == 7
    assert guard.statistics().offenders == (Offender(ip_network("fd00::/64"), 7),)
    assert sum(member.packets for member in group.statistics.members) == 5


def test_a_train_is_one_packet(cluster):
    """A train takes one token, however many datagrams it has."""
    group = cluster(1)
    guard = guarded(group, limit=f"{TINY}:2")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        for _ in range(3):
            sender.sendto(b"x" * 1_000, (group.address.host, group.address.port))
    assert dropped(guard)["limited"] == 1
    assert group.statistics.members[0].packets == 2


def test_offenders_in_order(cluster):
    """Who sent most over the limit comes first, and as many are told of as are asked for."""
    group = cluster(3)
    guard = guarded(group, limit=f"{TINY}:1")
    sources = addresses(*(f"127.3.0.{number}" for number in range(1, 21)))
    for number, source in enumerate(sources):
        group.send([source] * (number + 1))
    expected = [Offender(source, number) for number, source in enumerate(sources) if number]
    assert list(guard.statistics(top=100).offenders) == expected[::-1]
    assert list(guard.statistics().offenders) == expected[:-11:-1]
    assert guard.statistics(top=0).offenders == ()


def memory(group, bpffs):
    """Bytes that the kernel accounts for each map of the guard, as fdinfo has them, and its number of entries."""
    folder, found = Pins(group.address, bpffs=bpffs).folder, {}
    for pin in ("rules", "buckets", "offenders"):
        fd = syscall.obj_get(str(folder / pin))
        try:
            lines = dict(line.split(":\t", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
        finally:
            os.close(fd)
        found[pin] = (int(lines["max_entries"]), int(lines["memlock"]))
    return found


def spoofed(number, *, seed):
    """Random sources outside of 127.200.0.0/16."""
    generator = random.Random(seed)
    while number:
        source = IPv4Address(127 << 24 | generator.randrange(1, 200 << 16))
        number -= 1
        yield source


def test_a_flood_of_random_sources_harms_nobody(cluster, bpffs):
    """Sources that keep to the limit lose nothing to a flood of others, who need no more memory however many they are.

    Each of them uses up its burst exactly, so that a single token taken by another source would show.
    """
    group, rounds, number = cluster(3), 10, 100
    good = [IPv4Address(f"127.200.{n // 250}.{n % 250 + 1}") for n in range(number)]
    guard = guarded(group, limit=f"{TINY}:{rounds}")
    before, got = memory(group, bpffs), Counter()
    group.send(good)
    got.update(group.receive(number).keys())
    for turn in range(1, rounds):
        group.send(spoofed(5_000, seed=turn))
        drain(group)
        group.send(good)
        got.update(group.receive(number).keys())
    assert got == dict.fromkeys(good, rounds)
    found = guard.statistics(top=2_000)
    assert {offender.source for offender in found.offenders} & set(good) == set()
    group.send(good)
    assert dropped(guard)["limited"] == found.limited + number
    assert memory(group, bpffs) == before


def test_a_flood_of_unlisted_sources(cluster, bpffs):
    """With rules a flood does not even reach the queues: each packet of it is counted, and none is received."""
    group, good = cluster(3), [IPv4Address(f"127.200.0.{number}") for number in range(1, 101)]
    guard = guarded(group, allow=["127.200.0.0/16"], limit="1000")
    before, flood = memory(group, bpffs), 0
    for turn in range(5):
        group.send(spoofed(5_000, seed=turn))
        flood += 5_000
        assert set(group.route(good)) == set(good)
    assert dropped(guard) == {"denied": 0, "unlisted": flood, "limited": 0}
    assert memory(group, bpffs) == before
    assert guard.statistics().offenders == ()


def drain(group):
    """Throw away all that is in the queues."""
    for sock in group.sockets.values():
        while True:
            try:
                sock.recv(1)
            except BlockingIOError:
                break


def test_connections(bpffs):
    """Over TCP a denied source cannot connect, and the limit is for new connections."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = Address(*listener.getsockname())
        guard = GuardOptions(rules(deny=["127.3.0.0/16"]), Limit.parse(f"{TINY}:2"))
        with Group.opened_or_created(address, GroupOptions(protocol="tcp", guard=guard, bpffs=bpffs)) as group:
            stack.callback(group.close)
        stack.callback(group.delete)
        group.join(listener, 0)

        def connect(source):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.settimeout(10)
            client.bind((source, 0))
            client.connect((address.host, address.port))

        with pytest.raises(ConnectionRefusedError):
            connect("127.3.0.1")
        for _ in range(2):
            connect("127.4.0.1")
        with pytest.raises(ConnectionRefusedError):
            connect("127.4.0.1")
        assert dropped(group.guard) == {"denied": 1, "unlisted": 0, "limited": 1}
        assert group.statistics().members[0].packets == 2
