"""A supervisor as a service: what it tells the service manager, and the sockets that outlive it."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack, closing
from ipaddress import ip_address
from pathlib import Path

import pytest
import service_manager
import supervision

from aiolb.bpf.group import Group
from aiolb.bpf.state import cookie
from aiolb.sockets import bind_reuseport
from aiolb.systemd import SocketName

TESTS = Path(__file__).parent.parent


Client = supervision.Client
ServiceManager = service_manager.ServiceManager
script = supervision.script

HOSTS = [f"127.0.5.{number}" for number in range(1, 41)]


@pytest.fixture
def service(script, address, bpffs, tmp_path):
    """Start the service with a number of workers: ``service(manager, 2)``; ``service.report()``, ``service.log()``."""
    report, log = tmp_path / "report.json", tmp_path / "log"
    fixed = ["serve", str(script.path), "--bind", str(address), "--bpffs", str(bpffs), "--report", str(report)]

    async def start(manager, workers):
        with log.open("w") as stderr:
            command = [*script.aiolb, *fixed, "--log-format", "json", "--workers", str(workers)]
            await manager.start(*command, stderr=stderr)
        return await manager.told("READY=1")

    start.report = lambda: json.loads(report.read_text())
    start.log = lambda: [json.loads(line) for line in log.read_text().splitlines()]
    return start


def names(address, *indexes):
    """Under which names the manager keeps a group's sockets."""
    return [str(SocketName(address, index)) for index in indexes]


async def test_states(script, service, address):
    """The manager hears of the start, of signs of life, of a reload and of the stop, from the supervisor alone."""
    async with ServiceManager(watchdog=0.6) as manager:
        ready = await service(manager, 2)
        assert ready["STATUS"] == f"2 of 2 workers receive at {address}"
        for _ in range(2):
            await manager.told("WATCHDOG=1")
        script.says("2")
        manager.reload()
        reloading = await manager.told("RELOADING=1")
        assert int(reloading["MONOTONIC_USEC"]) > 0
        assert (await manager.told("READY=1"))["STATUS"] == ready["STATUS"]
        with Client(address) as client:
            assert (await client.ask()).version == "2"
        assert await manager.stop() == 0
        assert [message.assignments[0] for message in manager.messages].count("STOPPING=1") == 1
        assert (manager.refused, manager.stored) == ([], [])
    assert service.report()["handled"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_kept_sockets(script, service, address, bpffs, number):
    """Sockets, places and queues outlive the supervisor; the next one's workers handle what came in between."""
    async with ServiceManager(store=8) as manager:
        await service(manager, 2)
        assert [name for name, _ in manager.stored] == names(address, 0, 1)
        with closing(Group.open(address, bpffs=bpffs)) as group, ExitStack() as stack:
            before = [group.cookie_of(index) for index in range(2)]
            clients = [stack.enter_context(Client(address, host)) for host in HOSTS]
            assert {(await client.ask()).version for client in clients} == {"1"}
            assert await manager.stop(number) == (0 if number == signal.SIGTERM else -number)
            await supervision.gone(pid for pid, *_ in script.steps)
            assert [group.cookie_of(index) for index in range(2)] == before
            for client in clients:
                client.send("a", "b", "c")
            script.says("2")
            await service(manager, 2)
            assert [group.cookie_of(index) for index in range(2)] == before
            for client in clients:
                assert [(await client.hear()).version for _ in range(3)] == ["2"] * 3
        assert await manager.stop() == 0
    assert service.report()["handled"] == service.report()["received"] == 3 * len(HOSTS)
    assert [step for *_, step in script.steps if step in ("drain", "hand_over", "gone")] == (
        ["hand_over"] * 4 if number == signal.SIGTERM else ["gone"] * 2 + ["hand_over"] * 2
    )


async def test_fewer_workers_than_kept_sockets(service, address, bpffs):
    """A restart with fewer workers handles what is queued for all, then gives the sockets that are too many up."""
    async with ServiceManager(store=8) as manager:
        await service(manager, 3)
        assert await manager.stop() == 0
        with closing(Group.open(address, bpffs=bpffs)) as group, ExitStack() as stack:
            clients = {host: stack.enter_context(Client(address, host)) for host in HOSTS}
            owners = {host: group.locate(ip_address(host)) for host in HOSTS}
            for client in clients.values():
                client.send("queued")
            await service(manager, 1)
            assert {host: (await client.hear()).index for host, client in clients.items()} == owners
            await manager.told("FDSTOREREMOVE=1", f"FDNAME={names(address, 2)[0]}")
            await manager.told("FDSTOREREMOVE=1", f"FDNAME={names(address, 1)[0]}")
            assert [name for name, _ in manager.stored] == names(address, 0)
            assert {(await client.ask()).index for client in clients.values()} == {0}
        assert await manager.stop() == 0
    assert set(owners.values()) == {0, 1, 2}
    assert service.report()["handled"] == 2 * len(HOSTS)


async def test_members_come_and_go(service, address):
    """The socket of a member that is added is kept too, and that of one that is taken away is not any more."""
    async with ServiceManager(store=8) as manager:
        await service(manager, 1)
        manager.process.send_signal(signal.SIGTTIN)
        await manager.told("STATUS=2 of 2 workers receive at " + str(address))
        assert [name for name, _ in manager.stored] == names(address, 0, 1)
        manager.process.send_signal(signal.SIGTTOU)
        await manager.told("FDSTOREREMOVE=1")
        assert [name for name, _ in manager.stored] == names(address, 0)
        assert await manager.stop() == 0


async def test_a_store_that_is_too_small(service, address):
    """Where not all sockets can be kept none is relied on: the group is left, and the queues are drained."""
    async with ServiceManager(store=1) as manager:
        await service(manager, 2)
        with Client(address) as client:
            client.send("a", "b")
            assert await manager.stop() == 0
    (warning,) = [event for event in service.log() if event["event"] == "socket_not_kept"]
    assert (warning["name"], warning["capacity"]) == (names(address, 1)[0], 1)
    assert service.report()["handled"] == 2


async def test_sockets_of_a_socket_unit(service, address, bpffs):
    """A socket that the manager opened becomes a member; one of another address is closed, with a remark."""
    with bind_reuseport(address) as ours, bind_reuseport(supervision.ANYWHERE) as other, Client(address) as client:
        async with ServiceManager() as manager:
            manager.stored += [("collector.socket", os.dup(ours.fileno())), ("strange", os.dup(other.fileno()))]
            await service(manager, 1)
            with closing(Group.open(address, bpffs=bpffs)) as group:
                assert group.cookie_of(0) == cookie(ours)
            assert (await client.ask()).index == 0
            assert await manager.stop() == 0
    (dropped,) = [event for event in service.log() if event["event"] == "socket_dropped"]
    assert (dropped["name"], dropped["level"]) == ("strange", "warning")
    assert dropped["hint"] == "ListenDatagram= and ReusePort=yes in the socket unit"
    assert service.report()["handled"] == 1


async def test_a_socket_unit_without_a_store(service, address):
    """A socket that the manager opened itself outlives a stop, with what is queued, though it keeps no others."""
    async with ServiceManager() as manager:
        with bind_reuseport(address) as ours, Client(address) as client:
            manager.stored.append(("collector.socket", os.dup(ours.fileno())))
            await service(manager, 1)
            assert (await client.ask()).index == 0
            assert await manager.stop() == 0
            client.send("queued")
            await service(manager, 1)
            assert (await client.hear()).index == 0
            assert await manager.stop() == 0
    assert service.report()["handled"] == 1
