"""`aiolb status` at rest, against what was sent and what the collectors say at their end: nothing is missing in it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import AsyncExitStack, closing

import pytest
import streams
from deadline import DEADLINE
from serving import AIOLB, Member
from supervision import Supervisor, until

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.group import Group

UDP_SEGMENT = 103
HOSTS = [f"127.0.3.{number}" for number in range(1, 41)]
TOLD = ("received", "received_bytes", "messages", "truncated", "handled", "errors", "abandoned", "kernel_drops")
CONNECTIONS = {"received": "accepted", "handled": "closed", "in_flight": "open"}
"""What status has of connections, and what a collector calls it."""


async def status(bpffs):
    """The only group as `aiolb status --json` tells of it after one look."""
    command = [*AIOLB, "status", "--json", "--interval", "0", "--bpffs", str(bpffs)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(DEADLINE):
        told, _ = await process.communicate()
    (found,) = json.loads(told)["groups"]
    return found


def total(group, name):
    """A counter of all members together."""
    return sum(member[name] or 0 for member in group["members"])


def tops(group):
    """The datagrams of each source that a member names."""
    return {one["received"] for member in group["members"] for one in member["top_sources"]}


async def once(bpffs, condition):
    """The group once it is so."""
    async with asyncio.timeout(DEADLINE):
        while True:
            found = await status(bpffs)
            if condition(found):
                return found
            await asyncio.sleep(0.05)


async def at_rest(bpffs, **wanted):
    """The group once its members together have told these numbers."""
    return await once(bpffs, lambda found: {name: total(found, name) for name in wanted} == wanted)


def send(to, hosts, datagrams, *, train=1):
    """Send so many datagrams of six bytes from each source, in trains; how many packets that were."""
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
            if train > 1:
                sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 6)
            for _ in range(datagrams // train):
                sock.sendto(b"sixsix" * train, (to.host, to.port))
    return len(hosts) * datagrams // train


@pytest.fixture
async def start(bpffs, tmp_path):
    """Members with the given options, started and ready; killed at the end."""
    reports = iter(range(100))
    async with AsyncExitStack() as stack:

        async def start(address, *options, app="discard"):
            arguments = [app, "--bind", str(address), "--bpffs", str(bpffs), *map(str, options)]
            member = await stack.enter_async_context(Member(*arguments, report=tmp_path / str(next(reports))))
            await member.ready()
            return member

        yield start


async def three(start, address, *options, app="discard"):
    """A group of three members."""
    return [await start(address, "--count", 3, "--index", index, *options, app=app) for index in range(3)]


async def check_ends(group, members):
    """What status has told of each member is what that one says itself at its end."""
    for told, member in zip(group["members"], members, strict=True):
        end = await member.stop()
        assert {name: told[name] for name in TOLD} == {name: end[name] for name in TOLD}


async def test_trains(start, bpffs, address):
    """The datagrams of a train are counted one by one, a train is one message and one packet."""
    members = await three(start, address)
    packets = send(address, HOSTS, 64, train=16)
    group = await at_rest(bpffs, received=64 * len(HOSTS), handled=64 * len(HOSTS), sources=len(HOSTS))
    assert total(group, "messages") == total(group, "packets") == packets == 160
    assert total(group, "bytes") == total(group, "received_bytes") == 6 * 64 * len(HOSTS)
    assert (group["sources"], group["sources_exact"]) == (len(HOSTS), True)
    group = await once(bpffs, lambda found: tops(found) == {64})
    await check_ends(group, members)


async def test_ipv6(start, bpffs):
    """An IPv6 group counts as others do; its only source, with the key flow, is at several members, and one source."""
    with sockets.reserved_port(Address("::1", 0)) as address:
        members = await three(start, address, "--key", "flow")
        send(address, ["::1"] * 40, 10)
        group = await at_rest(bpffs, received=400, handled=400, sources=3)
        assert [member["sources"] for member in group["members"]] == [1, 1, 1]
        assert (group["address"], group["sources"], total(group, "packets")) == (str(address), 1, 400)
        await check_ends(group, members)


async def test_connections(start, bpffs, tmp_path):
    """Of connections it tells what was accepted, is open, and came to its end, as the members and the clients do."""
    with sockets.reserved_port(streams.LOCAL, "tcp") as address:
        members = await three(start, address, "--protocol", "tcp", app=streams.write_app(tmp_path / "app.py"))
        async with streams.connected(address, HOSTS[0]) as client:
            await streams.ask(*client)
            async with streams.Load(address, HOSTS) as load:
                await load.more()
                await load.more()
            assert load.failures == []
            done = load.connections
            group = await at_rest(bpffs, received=done + 1, handled=done, in_flight=1, sources=len(HOSTS))
            assert (group["sources"], group["sources_exact"], total(group, "errors")) == (len(HOSTS), True, 0)
            assert {member["waiting"] for member in group["members"]} == {0}
            for member in group["members"]:
                assert member["queue_limit"] > 0
                assert 0 < member["handler_p50_ns"] <= member["handler_p99_ns"]
                assert sum(one["received"] for one in member["top_sources"]) <= member["received"]
        group = await at_rest(bpffs, handled=done + 1, in_flight=0, received_bytes=4 * (done + 1))
        for told, member in zip(group["members"], members, strict=True):
            end = await member.stop()
            assert {name: told[name] for name in CONNECTIONS} == {name: end[key] for name, key in CONNECTIONS.items()}
            assert [told[name] for name in ("received_bytes", "errors")] == [end["received_bytes"], 0]


async def test_connections_that_wait(start, bpffs, tmp_path):
    """Connections in the accept queue are told of, and how many it holds."""
    with sockets.reserved_port(streams.LOCAL, "tcp") as address:
        options = ["--protocol", "tcp", "--concurrency", 1, "--backlog", 7]
        await start(address, *options, app=streams.write_app(tmp_path / "app.py"))
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(streams.connected(address, host)) for host in HOSTS[:4]]
            group = await at_rest(bpffs, received=1, in_flight=1, waiting=3)
            assert group["members"][0]["queue_limit"] == 7
            for reader, writer in clients:
                await streams.ask(reader, writer)
                writer.close()
        await at_rest(bpffs, received=4, handled=4, in_flight=0, waiting=0)


async def test_after_a_kill(start, bpffs, address):
    """What a killed member told stays, its sources' packets are failovers of others, and the sum is what was sent."""
    members = await three(start, address)
    send(address, HOSTS, 10)
    before = await at_rest(bpffs, received=400, handled=400, sources=len(HOSTS))
    dead = before["members"][1]
    os.kill(members[1].process.pid, signal.SIGKILL)
    await members[1].process.wait()
    with closing(Group.open(address, bpffs=bpffs)) as group:
        await until(lambda: group.cookie_of(1) is None, "its place is empty")
    send(address, HOSTS, 10)
    after = await at_rest(bpffs, received=800, handled=800)
    assert [member["state"] for member in after["members"]] == ["alive", "dead", "alive"]
    assert {name: after["members"][1][name] for name in TOLD} == {name: dead[name] for name in TOLD}
    assert after["failovers"] == total(after, "failovers") == 10 * dead["sources"]
    assert total(after, "packets") == 800
    assert after["sources"] == len(HOSTS)
    for told, member in zip(after["members"][::2], members[::2], strict=True):
        assert (await member.stop())["received"] == told["received"] == told["packets"]


async def test_after_a_worker_was_killed(bpffs, address):
    """A supervisor's next worker goes on counting where the killed one was, sources included."""
    options = ["discard", "--bind", str(address), "--bpffs", str(bpffs), "--workers", "2"]
    async with Supervisor(*options) as supervisor:
        await supervisor.supervising(workers=2)
        send(address, HOSTS, 10)
        await at_rest(bpffs, received=400, handled=400, sources=len(HOSTS))
        os.kill(supervisor.worker(0), signal.SIGKILL)
        await supervisor.event("worker_died")
        send(address, HOSTS, 10)
        group = await at_rest(bpffs, received=800, handled=800, sources=len(HOSTS))
        assert (total(group, "packets"), group["failovers"], group["sources"]) == (800, 0, len(HOSTS))
        assert await supervisor.stop() == 0


async def test_after_a_takeover(start, bpffs, address):
    """The new socket begins at nothing, the place goes on: its packets are what both together received."""
    old = await start(address)
    send(address, HOSTS, 10)
    await at_rest(bpffs, received=400, sources=len(HOSTS))
    new = await start(address, "--takeover")
    assert (await old.ended())["received"] == 400
    send(address, HOSTS[:7], 10)
    group = await at_rest(bpffs, received=70, handled=70, sources=7)
    assert (total(group, "packets"), group["failovers"]) == (470, 0)
    await check_ends(group, [new])


async def test_the_guard(start, bpffs, address):
    """What the guard drops is counted by the group and reaches no member."""
    members = await three(start, address, "--deny", "127.0.3.1/32", "--deny", "127.0.3.2/32")
    send(address, HOSTS, 10)
    group = await at_rest(bpffs, received=380, handled=380, sources=38)
    assert (group["denied"], group["unlisted"], group["limited"], total(group, "packets")) == (20, 0, 0, 380)
    assert group["sources"] == 38
    await check_ends(group, members)


async def test_kernel_drops(start, bpffs, address):
    """What finds the receive queue of a stuck collector full is counted: with what was received it is what was sent."""
    member = await start(address, "--rcvbuf", 4096)
    os.kill(member.process.pid, signal.SIGSTOP)
    try:
        send(address, HOSTS, 10)
    finally:
        os.kill(member.process.pid, signal.SIGCONT)
    group = await once(bpffs, lambda found: 0 < total(found, "kernel_drops") == 400 - total(found, "handled"))
    (told,) = group["members"]
    assert told["packets"] == 400
    await check_ends(group, [member])
