"""Whole groups of member processes under load: affinity, death, return, takeover, stop."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack, closing
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import serving
from deadline import DEADLINE

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.group import Group
from aiolb.publisher import Publisher
from aiolb.verification import merge_reports

HERE = Path(__file__).parent
SOURCES = 300
EACH = 5
Member = serving.Member


async def until(condition):
    """Wait until the condition holds; fails at the deadline."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)


@pytest.fixture
async def start(bpffs, tmp_path):
    """Members with the given options, started and ready; killed at the end."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def start(address, *options, app="verify", ready=True):
            report = tmp_path / f"{next(numbers)}.json"
            arguments = [app, "--bind", str(address), "--bpffs", str(bpffs), *options]
            member = await stack.enter_async_context(Member(*arguments, report=report))
            if ready:
                await member.ready()
            return member

        yield start


@pytest.fixture
async def three(start):
    """A group of three verifying members: its address, and the members."""
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        options = [("--index", str(index), "--count", "3") for index in range(3)]
        return address, await asyncio.gather(*(start(address, *given) for given in options))


def verified(report):
    """What the verify collector of a member says, with the member's index."""
    return {**report["collector"], "member": report["index"]}


def sources_of(report, publisher):
    """Source address -> datagrams that this member received of one publisher."""
    run = f"{publisher.run_id:016x}"
    return {e["address"]: e["received"] for e in report["collector"]["per_source"] if e["run"] == run}


async def publish(address, **settings):
    """Send one after the other from all sources, EACH datagrams each, unless told otherwise; the publisher."""
    settings = {"rate": 10_000, "count": SOURCES * EACH, "sources": SOURCES} | settings
    async with Publisher(address, stamp=True, **settings) as publisher:
        await publisher.run()
    return publisher


@pytest.mark.parametrize(("host", "sources"), [("127.0.0.1", "1000"), ("::1", "fd00::/118")], ids=["v4", "v6"])
def test_a_hundred_thousand_datagrams(netns, bpffs, tmp_path, host, sources):
    """100,000 datagrams of 1,000 sources: none is lost or doubled, and no source is seen by two of three members."""
    number = 1000
    if ":" in host:
        number = 1023  # the first address of a prefix belongs to routers
        netns.add_addresses(*(f"fd00::{n:x}/128" for n in range(1, number + 1)))
    options = ["--members", "3", "--count", "100000", "--rate", "20000"]
    options += ["--bpffs", str(bpffs), "--folder", str(tmp_path)]
    command = netns.command(sys.executable, str(HERE / "affinity_run.py"), host, sources, *options)
    summary = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout)
    expected = {"sent": 100_000, "received": 100_000, "sources": number}
    nothing = dict.fromkeys(("lost", "duplicated", "unexpected", "split_sources", "unstamped", "reordered"), 0)
    assert {name: summary[name] for name in expected | nothing} == expected | nothing
    assert sum(member["sources"] for member in summary["members"]) == number
    # A member owns a third of the slots; 1,000 sources miss that by more than a fifth once in 10^5 runs.
    assert all(member["sources"] > number / 5 for member in summary["members"])


async def test_death_and_return_of_a_member(three, start):
    """After kill -9 the sources of the dead go elsewhere, from the next datagram on and they alone; then back."""
    address, (first, victim, last) = three
    before = await publish(address)
    victim.process.kill()
    await victim.process.wait()
    during = await publish(address)
    back = await start(address, "--index", "1")
    after = await publish(address)
    reports = [await member.stop() for member in (first, back, last)]

    survivors = reports[0], reports[2]
    old = [set(sources_of(report, before)) for report in survivors]
    everyone = {str(source) for source in before.statistics().sent_per_source}
    orphans = everyone - old[0] - old[1]
    assert len(everyone) == SOURCES
    assert old[0].isdisjoint(old[1])
    assert orphans
    meanwhile = [sources_of(report, during) for report in survivors]
    assert Counter(meanwhile[0]) + Counter(meanwhile[1]) == Counter(dict.fromkeys(everyone, EACH))
    assert meanwhile[0].keys().isdisjoint(meanwhile[1].keys())
    assert [set(now) - was for now, was in zip(meanwhile, old, strict=True)] == [
        set(now) & orphans for now in meanwhile
    ]
    assert all(set(now) & orphans for now in meanwhile), "the orphans went to one member only"
    again = [sources_of(report, after) for report in reports]
    assert [set(now) for now in again] == [old[0], orphans, old[1]]
    assert [set(now.values()) for now in again] == [{EACH}] * 3


async def test_death_under_load(three):
    """When a member is killed under load, a survivor has every datagram of a source from the first it gets on."""
    address, (first, victim, last) = three
    async with Publisher(address, rate=8000, count=16_000, sources=SOURCES, stamp=True) as publisher:
        sending = asyncio.create_task(publisher.run())
        await until(lambda: publisher.statistics().sent >= 4000)
        victim.process.kill()
        sent = await sending
    reports = [await member.stop() for member in (first, last)]
    entries = [entry for report in reports for entry in report["collector"]["per_source"]]
    assert len(entries) == SOURCES
    assert {entry["address"]: entry["ranges"][-1][1] + 1 for entry in entries} == sent.sent_per_source
    assert [entry["ranges"] for entry in entries if len(entry["ranges"]) > 1] == []
    assert sum(entry["duplicated"] + entry["reordered"] for entry in entries) == 0
    stayed = sum(entry["first"] == 0 for entry in entries)
    assert 0 < stayed < SOURCES


async def test_takeovers_under_load(three, start):
    """Five takeovers in a row lose and double nothing; each one displaced drains, reports and exits 0 by itself."""
    address, members = three
    members, displaced = list(members), []
    async with Publisher(address, rate=5000, sources=SOURCES, stamp=True) as publisher:
        sending = asyncio.create_task(publisher.run())
        for index in (0, 1, 2, 0, 0):
            displaced.append(members[index])
            members[index] = await start(address, "--index", str(index), "--takeover")
            await displaced[-1].event("stopped")
        publisher.stop()
        sent = await sending
    reports = [await member.ended() for member in displaced]
    for member in displaced:
        names = [event["event"] for event in member.events]
        assert names == ["ready", "displaced", "stopping", "verified", "stopped"]
    reports += [await member.stop() for member in members]
    summary = merge_reports(map(verified, reports), sent.sent_per_source)
    assert (summary.lost, summary.duplicated, summary.unexpected, summary.split_sources) == (0, 0, 0, 0)
    assert (summary.received, summary.sources) == (sent.sent, SOURCES)
    assert sum(report["abandoned"] + report["kernel_drops"] for report in reports) == 0


HOLD = """
import asyncio
from aiolb.builtin import Verify

class Hold(Verify):
    async def handle(self, datagram, addr):
        if datagram.startswith(b"/"):
            await asyncio.get_running_loop().run_in_executor(None, lambda: open(datagram, "rb").read())
        else:
            await super().handle(datagram, addr)
"""


@pytest.fixture
def hold(tmp_path):
    """A verifying app whose handler waits for a pipe that a datagram names, and that pipe."""
    app, pipe = tmp_path / "hold.py", tmp_path / "pipe"
    app.write_text(HOLD)
    os.mkfifo(pipe)
    return f"{app}:Hold", pipe


def release(pipe):
    """Let the handler that waits for the pipe go on; whether there was one."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


async def test_graceful_stop_under_load(start, hold, bpffs):
    """A member that is stopped under load, with a handler still at work, loses nothing: its sources go elsewhere."""
    app, pipe = hold
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        options = [("--index", str(index), "--count", "3") for index in range(3)]
        leaver, *others = await asyncio.gather(*(start(address, *given, app=app) for given in options))
    with closing(Group.open(address, bpffs=bpffs)) as group:
        source = next(ip for n in range(1, 1000) if group.locate(ip := IPv4Address("127.9.0.0") + n) == 0)
    async with Publisher(address, rate=5000, sources=SOURCES, stamp=True) as publisher:
        sending = asyncio.create_task(publisher.run())
        await until(lambda: publisher.statistics().sent >= 2000)
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind((str(source), 0))
            sock.sendto(str(pipe).encode(), (address.host, address.port))
        leaver.process.terminate()
        await leaver.event("stopping")
        beyond = publisher.statistics().sent + 3000
        await until(lambda: publisher.statistics().sent >= beyond)
        assert leaver.process.returncode is None
        await until(lambda: release(pipe))
        reports = [await leaver.ended()]
        publisher.stop()
        sent = await sending
    reports += [await member.stop() for member in others]
    summary = merge_reports(map(verified, reports), sent.sent_per_source)
    assert (summary.lost, summary.duplicated, summary.unexpected) == (0, 0, 0)
    assert sum(report["kernel_drops"] + report["abandoned"] for report in reports) == 0
    assert sum(report["handled"] for report in reports) == sent.sent + 1
    assert summary.split_sources == reports[0]["collector"]["sources"], "only the sources of the stopped one moved"


async def test_ten_members_at_the_same_instant(start, bpffs):
    """Ten collectors that start at once and ask for a place each make one group of ten."""
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        starting = [start(address, "--index", str(index), "--count", "10") for index in range(10)]
        members = await asyncio.gather(*starting)
    with closing(Group.open(address, bpffs=bpffs)) as group:
        assert group.alive() == set(range(10))
        assert [member.pid for member in group.statistics().members] == [m.process.pid for m in members]
    publisher = await publish(address)
    reports = await asyncio.gather(*(member.stop() for member in members))
    summary = merge_reports(map(verified, reports), publisher.statistics().sent_per_source)
    assert (summary.received, summary.lost, summary.split_sources) == (SOURCES * EACH, 0, 0)


def kernel_drops(address):
    """Packets that the kernel dropped at the sockets on a port (/proc/net/udp)."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return sum(int(line[-1]) for line in lines if line[1].endswith(f":{address.port:04X}"))


async def test_a_lone_member_stops_under_a_flood(start, hold):
    """A last member that stops refuses what still comes, counted by the kernel, and finishes what it has."""
    app, pipe = hold
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        member = await start(address, app=app)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(str(pipe).encode(), (address.host, address.port))
    # Without trains: the kernel counts a train that it drops as one packet.
    async with Publisher(address, sources=20, gso="off") as publisher:
        flood = asyncio.create_task(publisher.run())
        member.process.terminate()
        await member.event("stopping")
        await until(lambda: kernel_drops(address))
        publisher.stop()
        sent = await flood
    await until(lambda: release(pipe))
    report = await member.ended()
    assert report["kernel_drops"] > 0
    assert report["handled"] + report["kernel_drops"] == sent.sent + 1
    assert (report["received"], report["abandoned"], report["errors"]) == (report["handled"], 0, 0)


async def test_a_lone_member_stops_while_the_flood_goes_on(start):
    """A flood without end does not keep a lone member from ending."""
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        member = await start(address, app="discard")
    async with Publisher(address, sources=20) as publisher:
        flood = asyncio.create_task(publisher.run())
        report = await member.stop()
        assert not flood.done()
        publisher.stop()
        sent = await flood
    assert report["abandoned"] == 0
    assert 0 < report["handled"] + report["kernel_drops"] <= sent.sent
