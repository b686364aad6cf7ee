"""The program tells its decisions: exactly those that were asked for, and only while somebody reads them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_network

import pytest

from aiolb.bpf import hashing
from aiolb.bpf.abi import FLAG_EVENTS, FLAG_LIMIT, FLAG_LISTED_ONLY, FLAG_RULES, RULE_ALLOW, RULE_DENY, U32, Rule
from aiolb.bpf.events import Action, EventFilter
from aiolb.bpf.keys import key_of
from aiolb.errors import GroupError

ROOM = 5_461
"""Events that the buffer has room for."""
HOUR_NS = 3_600 * 10**9


@contextmanager
def reading(group, network=None, sample=1, **patience):
    """A reader of the group's decisions."""
    wanted = EventFilter(None if network is None else ip_network(network), sample)
    reader = group.group.events(wanted, **patience)
    try:
        reader.start()
        yield reader
    finally:
        reader.close()


def is_on(group):
    """Whether the program writes decisions."""
    return bool(group.group.config.flags & FLAG_EVENTS)


def everything(reader):
    """All decisions that are there."""
    found = []
    while decisions := reader.read():
        found += decisions
    return found


def brief(decisions):
    """Source, slot, member and action of each, in no order."""
    return {(one.source, one.slot, one.member, one.action) for one in decisions}


def expected(group, where, action=Action.STEER):
    """The same for sources and the members that got them."""
    seed = group.group.config.seed
    return {
        (source, hashing.slot_of(seed, key_of(source)), member, action(source) if callable(action) else action)
        for source, member in where.items()
    }


def set_flags(group, flags, **settings):
    """Switch parts of the guard on in the group's settings."""
    with group.group.locked():
        group.group._write_config(flags=group.group.config.flags | flags, **settings)


def add_rule(group, source, action):
    """A rule for one IPv4 source."""
    key = U32.pack(128) + bytes(10) + b"\xff\xff" + source.packed
    group.group._maps.write("rules", key, Rule(action, 0, 0, 0).pack())


def test_every_decision(cluster, sources_v4):
    """Each datagram is told once: when, from where, how long, its slot, and the member that got it."""
    group, sources = cluster(3), sources_v4(300)
    begin = time.monotonic_ns()
    with reading(group) as reader:
        where = group.route(sources)
        decisions = everything(reader)
        assert reader.lost == 0
    assert len(decisions) == len(sources)
    assert brief(decisions) == expected(group, where)
    assert {one.port for one in decisions} == {group._senders[4].sock.getsockname()[1]}
    assert {one.bytes for one in decisions} == {1}
    assert all(begin <= one.time_ns <= time.monotonic_ns() for one in decisions)


def test_v6_sources(netns, cluster, sources_v6):
    """IPv6 sources are told whole."""
    netns.add_local("fd00::/8")
    group, sources = netns.call(cluster, 3, host="::1"), sources_v6(300)
    with reading(group) as reader:
        where = netns.call(group.route, sources)
        assert brief(everything(reader)) == expected(group, where)


def test_mapped_sources(netns, cluster, sources_v4):
    """An IPv4 source that an IPv6 socket receives from is told as IPv4, and found by an IPv4 network only."""
    group, sources = netns.call(cluster, 3, host="::"), sources_v4(100)
    target = group.target.__class__("127.0.0.1", group.address.port)
    with reading(group, "0.0.0.0/0") as reader:
        where = netns.call(group.route, sources, to=target)
        assert brief(everything(reader)) == expected(group, where)
    with reading(group, "::/0") as reader:
        netns.call(group.route, sources, to=target)
        assert everything(reader) == []


def test_failovers(cluster, sources_v4):
    """What a dead member would have got is told as a failover, with the member that got it instead."""
    group, sources = cluster(3), sources_v4(300)
    before = group.route(sources)
    group.kill(1)
    with reading(group) as reader:
        where = group.route(sources)
        decisions = everything(reader)
    assert brief(decisions) == expected(
        group, where, lambda source: Action.FAILOVER if before[source] == 1 else Action.STEER
    )
    assert {one.action for one in decisions} == {Action.STEER, Action.FAILOVER}


@pytest.mark.parametrize(("strict", "action"), [(False, Action.UNSTEERED), (True, Action.DROP)])
def test_nobody_is_alive(cluster, sources_v4, strict, action):
    """With no member in its place, packets are told as left to the kernel, or as dropped where that is wanted."""
    group, sources = cluster(2, strict=strict), sources_v4(50)
    for membership in group.memberships.values():
        membership.leave()
    with reading(group) as reader:
        group.send(sources)
        assert brief(everything(reader)) == expected(group, dict.fromkeys(sources), action)
        assert group.group.config.strict == strict


def test_rules(cluster, sources_v4):
    """What a rule denies, and what no rule allows, is told as that, with neither slot nor member."""
    group, (allowed, denied, other) = cluster(3), sources_v4(3)
    add_rule(group, allowed, RULE_ALLOW)
    add_rule(group, denied, RULE_DENY)
    set_flags(group, FLAG_RULES | FLAG_LISTED_ONLY)
    with reading(group) as reader:
        group.send([allowed, denied, other])
        found = brief(everything(reader))
    assert found == expected(group, group.receive(1)) | {
        (denied, None, None, Action.DENY),
        (other, None, None, Action.UNLISTED),
    }


def test_limit(cluster, sources_v4):
    """A packet over its source's limit is told as that."""
    group, (source,) = cluster(3), sources_v4(1)
    set_flags(group, FLAG_LIMIT, limit_interval_ns=HOUR_NS, limit_burst_ns=0)
    with reading(group) as reader:
        group.send([source, source])
        first, second = everything(reader)
    assert brief([first]) == expected(group, group.receive(1))
    assert brief([second]) == {(source, None, None, Action.LIMIT)}


@pytest.mark.parametrize("network", ["127.0.0.0/9", "127.64.0.0/10", "127.1.2.3/32", "fd00::/8"])
def test_a_network(cluster, sources_v4, network):
    """Only packets of sources in the network are told."""
    group, sources = cluster(3), [*sources_v4(500), IPv4Address("127.1.2.3")]
    with reading(group, network) as reader:
        where = group.route(sources)
        inside = {source: member for source, member in where.items() if source in ip_network(network)}
        assert brief(everything(reader)) == expected(group, inside)


def test_a_sample(cluster, sources_v4):
    """One of 10 is about a tenth: of 5,000 packets 500, with a standard deviation of 21; each is told once."""
    group, sources = cluster(3), sources_v4(5_000)
    with reading(group, sample=10) as reader:
        where = group.route(sources)
        decisions = everything(reader)
    assert 300 <= len(decisions) <= 700
    found = brief(decisions)
    assert len(found) == len(decisions)
    assert found <= expected(group, where)


def test_a_reader_that_is_too_slow(cluster, sources_v4):
    """What finds the buffer full is counted exactly, and what is in it can be read, also after the end."""
    group, sources = cluster(3), sources_v4(ROOM + 539)
    with reading(group) as reader:
        where = group.route(sources)
        assert len(where) == len(sources)
        assert reader.lost == 539
        first = reader.read()
        group.route(sources[:10])  # there is room again
        reader.stop()
        assert not is_on(group)
        group.route(sources[10:20])
        rest = reader.rest()
        assert (len(first) + len(rest), reader.lost) == (ROOM + 10, 539)
        assert reader.rest() == []
    told = [one.source for one in (first + rest)[:ROOM]]
    assert told == sources[:ROOM]


def test_across_the_end_of_the_buffer(cluster, sources_v4):
    """Records that go on at the buffer's begin are read like others, round after round."""
    group, sources = cluster(3), sources_v4(1_000)
    with reading(group) as reader:
        for _ in range(12):
            group.route(sources)
            assert [one.source for one in everything(reader)] == sources
        assert reader.lost == 0


def test_off_at_the_end(cluster, sources_v4):
    """The program writes only from start to stop, and other flags stay what they are."""
    group = cluster(3, strict=True)
    assert not is_on(group)
    with reading(group) as reader:
        assert is_on(group)
        assert group.group.config.strict
        reader.stop()
        reader.stop()
        assert not is_on(group)
        group.route(sources_v4(10))
        assert reader.rest() == []
    assert not is_on(group)
    assert group.group.config.strict


def test_a_reader_that_sleeps(cluster, sources_v4):
    """The program stops to write when a full buffer is not read for long, and goes on when its reader is awake."""
    group, sources = cluster(3, strict=True), sources_v4(ROOM + 100)
    with reading(group, patience=0) as reader:
        group.route(sources)
        # The first that finds no room begins the wait, which the second ends.
        assert (is_on(group), reader.lost) == (False, 2)
        assert group.group.config.strict
        assert [one.source for one in everything(reader)] == sources[:ROOM]
        assert (is_on(group), reader.pauses) == (True, 1)
        group.route(sources[:10])
        assert [one.source for one in everything(reader)] == sources[:10]


def test_a_reader_that_sleeps_until_the_end(cluster, sources_v4):
    """That the program has stopped to write is told also when the reader stops before it has read what is there."""
    group = cluster(3)
    with reading(group, patience=0) as reader:
        group.route(sources_v4(ROOM + 100))
        reader.stop()
        assert (len(reader.rest()), reader.lost, reader.pauses) == (ROOM, 2, 1)
        reader.stop()
        assert reader.pauses == 1


def test_a_reader_that_is_slow_but_reads(cluster, sources_v4):
    """A reader that takes anything out is waited for anew."""
    group, sources = cluster(3), sources_v4(ROOM + 1)
    with reading(group, patience=0) as reader:
        group.route(sources)
        assert (is_on(group), reader.lost) == (True, 1)
        taken = len(reader.read())
        group.route(sources[: taken + 1])
        assert (is_on(group), reader.lost) == (True, 2)


CHILD = """
import sys
from pathlib import Path
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.events import EventFilter
from aiolb.bpf.group import Group
group = Group.open(GroupName.parse(sys.argv[1]).address, bpffs=Path(sys.argv[2]))
reader = group.events(EventFilter(), patience=0)
reader.start()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def reading_elsewhere(group, bpffs):
    """A process that reads the group's decisions, and is killed at the end of the block."""
    command = [sys.executable, "-W", "error", "-c", CHILD, str(group.address), str(bpffs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def test_one_reader_at_a_time(cluster, bpffs):
    """A second reader is refused, and told who the first is; the first goes on."""
    group = cluster(3)
    with reading_elsewhere(group, bpffs) as child:
        with (
            pytest.raises(GroupError, match=rf"process {child.pid} \(user {os.getuid()}\) reads") as caught,
            reading(group),
        ):
            pass
        assert caught.value.hint == "end that one first"
        assert is_on(group)


def test_a_reader_that_is_killed(cluster, bpffs, sources_v4):
    """When its reader is killed, the program stops to write as soon as the buffer is full."""
    group = cluster(3)
    with reading_elsewhere(group, bpffs):
        pass
    assert is_on(group)
    group.route(sources_v4(ROOM + 100))
    assert not is_on(group)
    assert group.statistics.events_lost == 2


def test_after_a_reader_that_was_killed(cluster, bpffs, sources_v4):
    """The next reader begins at once, with its own filter, and gets nothing that was meant for the other."""
    group, sources = cluster(3), sources_v4(20)
    with reading_elsewhere(group, bpffs):
        group.route(sources)
    with reading(group, f"{sources[0]}/32") as reader:
        where = group.route(sources)
        assert brief(everything(reader)) == expected(group, {sources[0]: where[sources[0]]})
    assert not is_on(group)


def test_a_refused_reader_leaves_nothing(cluster, monkeypatch):
    """A reader that cannot take its name says so, and has nothing open or switched on."""
    group = cluster(1)

    def refuse(*_):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "listen", refuse)
    with pytest.raises(GroupError, match="another process reads the decisions"), reading(group):
        pass
    assert not is_on(group)
