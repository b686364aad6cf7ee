"""The debug build writes every decision to the kernel's trace file."""

from __future__ import annotations

import secrets
import subprocess
from ipaddress import IPv4Address, IPv6Address

import pytest

from aiolb.bpf import hashing
from aiolb.bpf.keys import Key

READ = 'mount -t tracefs tracefs "$1" && cat "$1/trace"'


@pytest.fixture
def program(compiled_debug):
    """Groups here are made with the debug build."""
    return compiled_debug


@pytest.fixture
def traced(private_mounts, needs, tmp_path):
    """What the trace file says about some sources, line by line, in order: ``traced(sources)``."""
    command = [*private_mounts, needs("sh", "dash"), "-c", READ, "sh", str(tmp_path)]

    def read(sources):
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names = [f"source={written(source)} " for source in sources]
        return [line.partition(" aiolb: ")[2] for line in text.splitlines() if any(name in line for name in names)]

    return read


def written(source):
    """An address as the kernel writes it."""
    return source.exploded if source.version == 6 else str(source)


def lines(group, sources, actions):
    """The lines that are expected: each source with its slot, the member that got it, and what was done."""
    return sorted(
        f"source={written(source)} slot={hashing.slot_of(group.group.config.seed, group.group.key.bytes_of(source))} "
        f"member={member} action={action}"
        for source, (member, action) in zip(sources, actions, strict=True)
    )


def random_v4(number):
    """Sources that no other test of this machine sends from at the same time."""
    return [IPv4Address(127 << 24 | secrets.randbelow(1 << 24) | 1) for _ in range(number)]


def test_steered_and_failed_over(cluster, traced):
    """A line for each packet: source, slot, member, and whether it was steered or failed over."""
    group, sources = cluster(3), random_v4(20)
    before = group.route(sources)
    assert sorted(traced(sources)) == lines(group, sources, [(before[source], "steer") for source in sources])
    group.kill(1)
    moved = [source for source in sources if before[source] == 1] or random_v4(0)
    after = group.route(moved)
    assert sorted(line for line in traced(moved) if line.endswith("failover")) == lines(
        group, moved, [(after[source], "failover") for source in moved]
    )


def test_v6(netns, cluster, traced):
    """IPv6 sources are written out in full."""
    netns.add_local("fd00::/8")
    sources = [IPv6Address(0xFD << 120 | secrets.randbits(120)) for _ in range(10)]
    group = netns.call(cluster, 3, host="::1")
    received = netns.call(group.route, sources)
    assert sorted(traced(sources)) == lines(group, sources, [(received[source], "steer") for source in sources])


def test_the_slot_is_that_of_the_key(cluster, traced):
    """Sources of one prefix have one slot, that of the prefix."""
    group, (first,) = cluster(3, key=Key.parse("prefix/24,64")), random_v4(1)
    sources = [IPv4Address(int(first) & ~0xFF | host) for host in (1, 2, 3)]
    received = group.route(sources)
    told = traced(sources)
    assert sorted(told) == lines(group, sources, [(received[source], "steer") for source in sources])
    assert len({line.partition(" slot=")[2] for line in told}) == 1


def test_unsteered(cluster, traced):
    """Without a live member a line says that the kernel chose."""
    group, sources = cluster(2), random_v4(5)
    group.bind("outside")
    group.kill(0, 1)
    group.route(sources)
    assert sorted(traced(sources)) == lines(group, sources, [(-1, "unsteered")] * 5)


def test_dropped(cluster, traced, wait_until):
    """In a strict group without a live member a line says that the packet was dropped."""
    group, sources = cluster(2, strict=True), random_v4(5)
    group.bind("outside")
    group.kill(0, 1)
    group.send(sources)
    wait_until(lambda: group.statistics.dropped == 5, "five packets counted as dropped")
    assert sorted(traced(sources)) == lines(group, sources, [(-1, "drop")] * 5)
