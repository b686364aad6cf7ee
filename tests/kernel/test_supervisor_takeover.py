"""Places that change hands between supervisors, single members and others; groups that nobody else can reach."""

from __future__ import annotations

import asyncio
import errno
import signal
from contextlib import ExitStack, closing
from ipaddress import ip_address
from pathlib import Path

import pytest
import supervision

from aiolb.bpf import syscall
from aiolb.bpf.group import Group
from aiolb.errors import MemberTakenError, StartError
from aiolb.sockets import bind_reuseport

TESTS = Path(__file__).parent.parent


Client, Supervised, until = supervision.Client, supervision.Supervised, supervision.until
script = supervision.script

HOSTS = [f"127.0.4.{number}" for number in range(1, 21)]


@pytest.fixture
def another(tmp_path):
    """What the workers of another supervisor do."""
    other = supervision.Script(tmp_path / "another")
    other.says("2")
    return other


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A folder where no bpffs is, and none can be mounted."""

    def refuse(path):
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(syscall, "mount_bpffs", refuse)
    return tmp_path


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_all_members(script, another, address, bpffs, count):
    """A second supervisor takes each place when its worker is ready; the first one drains and ends; all is handled."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as first:
        await first.supervising()
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(address, host)) for host in HOSTS]
            async with Supervised(another, address, count=count, takeover=True, bpffs=bpffs) as second:
                sent = 0
                while not first._running.done() or not second.named("supervising"):
                    for client in clients:
                        client.send(str(sent))
                    sent += 1
                    await asyncio.sleep(0.002)
                before = await first.ended()
                with closing(Group.open(address, bpffs=bpffs)) as group:
                    assert (group.config.count, group.alive()) == (count, set(range(count)))
                after = await second.stop()
    assert before["handled"] + after["handled"] == before["received"] + after["received"] == sent * len(clients)
    assert after["handled"] > 0
    displaced = [event["index"] for event in second.named("displaced")]  # the events of both are in the newer log
    assert sorted(displaced) == [0, 1]


async def test_a_takeover_that_fails(script, another, address, bpffs):
    """When a worker of the second supervisor does not start, the first one keeps all its places."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as first:
        await first.supervising()
        another.says("2", "exit")
        async with Supervised(another, address, count=2, takeover=True, bpffs=bpffs) as second:
            with pytest.raises(StartError, match=r"the worker of member 0 did not start; what it said is above"):
                await second.ended()
        with Client(address) as client:
            assert (await client.ask()).version == "1"
        assert (await first.stop())["handled"] == 1
    assert len(another.pids(0, "started")) == 1
    assert another.pids(1, "started") == []


async def test_without_takeover(script, another, address, bpffs):
    """A second supervisor without takeover is refused before it starts a worker."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as first:
        await first.supervising()
        async with Supervised(another, address, count=2, bpffs=bpffs) as second:
            with pytest.raises(MemberTakenError, match=r"index 0 of the group at .* is held by pid"):
                await second.ended()
        await first.stop()
    assert another.steps == []


async def test_by_a_single_member(script, address, bpffs):
    """`aiolb serve --takeover` takes one place; the supervisor goes on with the others."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        arguments = ["echo", "--bind", str(address), "--bpffs", str(bpffs), "--index", "1", "--takeover"]
        async with supervision.Supervisor(*arguments) as single:
            await single.event("ready")
            assert (await supervised.event("displaced"))["index"] == 1
            with closing(Group.open(address, bpffs=bpffs)) as group:
                member = group.statistics().members[1]
                assert member.pid == single.pid
                host = next(host for host in HOSTS if group.locate(ip_address(host)) == 0)
            with Client(address, host) as client:
                assert (await client.ask()).index == 0
            assert await single.stop() == 0
        report = await supervised.stop()
    assert [(member["workers"], member["handled"]) for member in report["members"]] == [(1, 1), (1, 0)]
    assert supervised.named("worker_died") == []


async def test_the_last_place(script, address, bpffs):
    """`aiolb serve --workers` exits with 0 when its last place was taken over."""
    arguments = [str(script.path), "--workers", "1", "--bind", str(address), "--bpffs", str(bpffs)]
    async with supervision.Supervisor(*arguments, command=script.aiolb) as process:
        await process.event("supervising")
        with closing(Group.open(address, bpffs=bpffs)) as group, bind_reuseport(address) as other:
            group.join(other, 0, takeover=True)
            assert await process.ended() == 0
    assert [step for *_, step in script.steps][-2:] == ["drain", "ended"]


async def test_a_group_that_is_not_pinned(script, nowhere):
    """Where bpffs cannot be had all works but what others need pins for, which is told."""
    async with Supervised(script, supervision.ANYWHERE, count=2, bpffs=nowhere) as supervised:
        await supervised.supervising()
        (unpinned,) = supervised.named("unpinned")
        assert unpinned["reason"].startswith(f"no BPF file system is mounted at {nowhere}")
        assert supervised.supervisor._places.balancer == "ebpf"
        supervised.send_signal(signal.SIGTTIN)
        await supervised.event("count_changed", now=3)
        found = set()
        for host in HOSTS:
            with Client(supervised.address, host) as client:
                found.add((await client.ask()).index)
        assert found == {0, 1, 2}
        supervised.send_signal(signal.SIGHUP)
        await supervised.event("restarted")
        assert (await supervised.stop())["handled"] == len(HOSTS)


@pytest.mark.parametrize("balancer", ["ebpf", "auto"])
async def test_no_takeover_of_what_is_not_pinned(script, nowhere, balancer):
    """A takeover needs pins, also where anything would do."""
    settings = {"balancer": balancer, "takeover": True, "bpffs": nowhere}
    async with Supervised(script, supervision.ANYWHERE, **settings) as supervised:
        with pytest.raises(StartError, match="no BPF file system is mounted at"):
            await supervised.ended()
    assert script.steps == []
