"""`aiolb serve --protocol tcp`: members that come, leave, die and are taken over while connections come in."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
from contextlib import AsyncExitStack

import pytest
import streams
from events import until
from serving import Member
from streams import ask, connected

from aiolb import listening, sockets
from aiolb.address import Address

address = streams.address

HOSTS = [f"127.0.6.{number}" for number in range(1, 21)]


@pytest.fixture
async def start(bpffs, tmp_path):
    """Members with the given options, started and ready; killed at the end."""
    numbers, app = itertools.count(), streams.write_app(tmp_path / "app.py")
    async with AsyncExitStack() as stack:

        async def start(address, *options, app=app):
            report = tmp_path / f"{next(numbers)}.json"
            arguments = [app, "--protocol", "tcp", "--bind", str(address), "--bpffs", str(bpffs), *options]
            member = await stack.enter_async_context(Member(*arguments, report=report))
            await member.ready()
            return member

        yield start


async def three(start, address):
    """A group of three members."""
    return [await start(address, "--count", "3", "--index", str(index)) for index in range(3)]


def by_member(found):
    """The sources of each member."""
    return {index: {host for host, indexes in found.items() if indexes == {index}} for index in range(3)}


async def test_affinity(start, address):
    """Each source's connections are at one member, all members have some, and all of them are counted exactly."""
    members = await three(start, address)
    async with streams.Load(address, HOSTS) as load:
        await load.more()
        await load.more()
    assert load.failures == []
    found = load.indexes()
    assert {len(indexes) for indexes in found.values()} == {1}
    reports = [await member.stop() for member in members]
    assert [report["accepted"] for report in reports] == [
        sum(len(load.answers[host]) for host in hosts) for hosts in by_member(found).values()
    ]
    assert all(report["accepted"] == report["closed"] > 0 for report in reports)
    assert sum(report["received_bytes"] for report in reports) == load.connections * len("who\n")
    assert {report[name] for report in reports for name in ("errors", "abandoned", "open", "kernel_drops")} == {0}


async def test_a_member_that_leaves(start, address):
    """A member that is stopped under load refuses and resets nobody; only its sources move, once."""
    members = await three(start, address)
    async with streams.Load(address, HOSTS) as load:
        await load.more()
        before = by_member(load.indexes())
        report = await members[1].stop()
        await load.more()
    assert load.failures == []
    assert report["accepted"] == report["closed"]
    for host, answers in load.answers.items():
        moves = [index for index, _ in itertools.groupby(answer.index for answer in answers)]
        assert len(moves) == (2 if host in before[1] else 1)
    rest = [await members[index].stop() for index in (0, 2)]
    assert report["accepted"] + sum(report["accepted"] for report in rest) == load.connections


async def test_a_member_that_is_killed(start, address):
    """Sources of a killed member are at others with their next connection; the others' see nothing of it."""
    members = await three(start, address)
    async with streams.Load(address, HOSTS) as load:
        await load.more()
        before = by_member(load.indexes())
        os.kill(members[1].process.pid, signal.SIGKILL)
        await load.more()
    theirs = before[1]
    assert {failure.split(":")[0] for failure in load.failures} <= theirs  # those that were open died with it
    for host, answers in load.answers.items():
        moves = [index for index, _ in itertools.groupby(answer.index for answer in answers)]
        assert len(moves) == (2 if host in theirs else 1)


async def test_takeovers(start, address):
    """A member that is taken over under load hands on everything: nobody is refused, reset or split."""
    await start(address, "--count", "2", "--index", "1")
    member = await start(address, "--count", "2", "--index", "0")
    reports = []
    async with streams.Load(address, HOSTS) as load:
        for _ in range(3):
            await load.more()
            new = await start(address, "--index", "0", "--takeover")
            reports.append(await member.ended())
            member = new
        await load.more()
    assert load.failures == []
    assert {len(indexes) for indexes in load.indexes().values()} == {1}
    assert all(report["accepted"] == report["closed"] > 0 for report in reports)
    assert len({answer.pid for answers in load.answers.values() for answer in answers}) == 5


async def test_what_waits_when_a_member_is_stopped(start, address):
    """Connections that the kernel took before a member left are handled by it, those of a lone one too."""
    member = await start(address)
    async with AsyncExitStack() as stack:
        os.kill(member.process.pid, signal.SIGSTOP)
        clients = [await stack.enter_async_context(connected(address, host)) for host in HOSTS]
        stopped = asyncio.create_task(member.stop())
        await asyncio.sleep(0)
        os.kill(member.process.pid, signal.SIGCONT)
        pids = {(await ask(*client)).split()[2] for client in clients}
        assert pids == {str(member.process.pid)}
        assert not stopped.done()  # it waits for them
    report = await stopped
    assert (report["accepted"], report["closed"], report["abandoned"]) == (20, 20, 0)
    with pytest.raises(ConnectionRefusedError):
        await streams.who(address, HOSTS[0])


async def test_the_graceful_timeout(start, address):
    """Connections that are still open at its end are cut and counted; none of the others waits for them."""
    member = await start(address, "--graceful-timeout", "0.2")
    async with connected(address) as (reader, writer):
        await ask(reader, writer)
        report = await member.stop()
        assert await reader.read() == b""
    assert (report["accepted"], report["closed"], report["abandoned"]) == (1, 0, 1)
    (event,) = [event for event in member.events if event["event"] == "abandoned"]
    assert event["connections"] == 1


async def test_the_bound(start, address):
    """With as many connections open as may be the others wait, which is told, and come in one by one."""
    member = await start(address, "--concurrency", "2")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(address, host)) for host in HOSTS[:5]]
        event = await member.event("connections_wait")
        assert (event["log_level"] if "log_level" in event else event["level"]) == "warning"
        assert (event["open"], event["hint"]) == (2, "raise --concurrency, or add members")
        for client in clients:
            await ask(*client)
            client[1].close()
    report = await member.stop()
    assert (report["accepted"], report["closed"]) == (5, 5)


async def test_a_queue_that_overflows(start, address):
    """Attempts to connect that the kernel drops are counted, logged and told at the end."""
    member = await start(address, "--backlog", "1", "--concurrency", "1")
    async with AsyncExitStack() as stack:
        for host in HOSTS[:3]:  # one is open, two wait
            client = await stack.enter_async_context(connected(address, host))
        await member.event("connections_wait")
        late = stack.enter_context(socket.socket())
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.connect((address.host, address.port))
        event = await member.event("kernel_drops")
        assert event["hint"] == "raise --backlog and net.core.somaxconn, or --concurrency, or add members"
        assert event["total"] >= 1
        del client
    assert (await member.stop())["kernel_drops"] >= 1


@pytest.mark.parametrize("balancer", ["ebpf", "classic", "none"])
async def test_several_addresses(start, address, balancer):
    """One member serves IPv4 and IPv6, and counts each address apart."""
    with sockets.reserved_port(Address("::1", 0), "tcp") as other:
        member = await start(address, "--bind", str(other), "--balancer", balancer)
        for host in ("127.0.0.1", "127.0.0.2"):
            await streams.who(address, host)
        await streams.who(other, "::1")
        report = await member.stop()
    assert [(sock["bind"], sock["balancer"], sock["closed"]) for sock in report["sockets"]] == [
        (str(address), balancer, 2),
        (str(other), balancer, 1),
    ]


async def test_a_port_that_the_kernel_chooses(start, bpffs):
    """A group at such a port is a TCP one, and goes with its last member."""
    member = await start("127.0.0.1:0", app="echo")
    host, port = (await member.ready())["bind"].rsplit(":", 1)
    assert [folder.name for folder in bpffs.glob("aiolb/*/*")] == [f"tcp_127-0-0-1_{port}"]
    async with connected((host, int(port))) as client:
        assert await ask(*client, "hello") == "hello"
    await member.stop()
    assert list(bpffs.glob("aiolb")) == []


async def test_connections_that_are_not_accepted_yet(start, address):
    """A lone member that is given up tells the connections that nobody accepted as abandoned."""
    member = await start(address, "--concurrency", "1", "--graceful-timeout", "0.2")
    async with AsyncExitStack() as stack:
        for host in HOSTS[:4]:
            await stack.enter_async_context(connected(address, host))
        await member.event("connections_wait")
        report = await member.stop()
    assert (report["accepted"], report["closed"], report["abandoned"]) == (4, 0, 4)


async def test_nothing_listens_after_the_end(start, address):
    """When a member has ended the port has no listener any more."""
    member = await start(address)
    assert len(sockets.sockets_on(address, protocol="tcp")) == 1
    await member.stop()
    assert sockets.sockets_on(address, protocol="tcp") == {}
    with sockets.bind_listening(address, backlog=8) as sock:
        await until(lambda: listening.waiting_connections(sock) == 0)
