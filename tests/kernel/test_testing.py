"""A whole group in a test, steered by the eBPF balancer, and by the classic one where the user may no more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiolb.builtin import Echo
from aiolb.builtin_streams import EchoStream

SOURCES = [f"127.{second}.0.{fourth}" for second in range(1, 5) for fourth in range(1, 26)]
UNPRIVILEGED = """
import asyncio, json
from aiolb.builtin import Echo
from aiolb.testing import group

async def main():
    async with group(Echo) as running:
        await running.send(b"x", source="127.0.0.9")
        return running.balancer, type(running.fallback).__name__, len(running.members_of("127.0.0.9"))

import structlog
with structlog.testing.capture_logs() as logged:
    found = asyncio.run(main())
print(json.dumps([*found, [event["event"] for event in logged if event["log_level"] == "warning"]]))
"""


def pins():
    """What is pinned where groups are pinned unless told otherwise."""
    return sorted(Path("/sys/fs/bpf").glob("aiolb/*/*"))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_failover(aiolb_group, host):
    """When a member stops, its sources go to the others and those of the others stay; nothing is pinned."""
    before = pins()
    running = await aiolb_group(Echo, members=4, host=host, seed=7)
    for source in SOURCES:
        await running.send(b"first", source=source)
    owners = {source: running.members_of(source) for source in SOURCES}
    assert (running.balancer, running.fallback) == ("ebpf", None)
    assert {len(owner) for owner in owners.values()} == {1}
    await running.stop(2)
    for source in SOURCES:
        await running.send(b"second", source=source)
    for source, owner in owners.items():
        assert running.members_of(source) > {2} if owner == {2} else running.members_of(source) == owner
    statistics = running.statistics()
    assert sum(member.handled for member in statistics) == 2 * len(SOURCES)
    assert statistics[2].handled == sum(owner == {2} for owner in owners.values()) > 0
    assert pins() == before


async def test_failover_of_connections(aiolb_group):
    """The same for connections: those that are open when their member stops go on in it."""
    before = pins()
    running = await aiolb_group(EchoStream, members=3, seed=7)
    for source in SOURCES:
        assert await running.send(b"first", source=source) == b"first"
    owners = {source: running.members_of(source) for source in SOURCES}
    assert (running.balancer, running.fallback, {len(owner) for owner in owners.values()}) == ("ebpf", None, {1})
    stopped = next(source for source, owner in owners.items() if owner == {1})
    async with running.connect(stopped) as (reader, writer):
        writer.write(b"open")
        assert await reader.read(4) == b"open"
        stopping = asyncio.create_task(running.stop(1))
        async with running.connect("127.9.9.9"):  # the stop has begun, and this one finds another member
            writer.write(b"still")
            assert await reader.read(5) == b"still"
    await stopping
    for source in SOURCES:
        assert await running.send(b"second", source=source) == b"second"
    for source, owner in owners.items():
        assert running.members_of(source) > {1} if owner == {1} else running.members_of(source) == owner
    statistics = running.statistics()
    assert sum(member.closed for member in statistics) == 2 * len(SOURCES) + 2
    assert pins() == before


async def test_two_groups(aiolb_group):
    """Groups of one test know nothing of each other."""
    first, second = await aiolb_group(Echo, members=1), await aiolb_group(Echo, members=2)
    await asyncio.gather(first.send(b"1"), second.send(b"2"))
    assert (await first.reply(), await second.reply()) == (b"1", b"2")


def test_without_privilege(python, powerless):
    """Who may not load programs gets the classic balancer, and is told why."""
    assert python(UNPRIVILEGED, prefix=powerless) == ["classic", "PrivilegeError", 1, ["balancer_fallback"]]
