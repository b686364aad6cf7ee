"""Workers that die, hang or keep dying: their queues wait, their sources go to others, and come back."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
import supervision

from aiolb.bpf.group import Group
from aiolb.recycling import RecyclePolicy
from aiolb.restarts import RestartPolicy

TESTS = Path(__file__).parent.parent


Client, Supervised, until = supervision.Client, supervision.Supervised, supervision.until
script = supervision.script

HOSTS = [f"127.0.3.{number}" for number in range(1, 31)]


def policy(**settings):
    """A policy whose times are short."""
    return supervision.WorkerPolicy(**{"graceful_timeout": 5.0} | settings)


def flapping(*, settle, pause=0.01):
    """The policy of a member that is out after its second death."""
    return policy(restart=RestartPolicy(limit=1, window=60, first=pause, longest=pause, settle=settle))


def host_of(group, index):
    """A source that a member owns."""
    return next(host for host in HOSTS if group.slots and group.locate(ip_address(host)) == index)


async def kill(supervised, client, deaths):
    """Let the worker of a source's member die of a datagram, and wait until that is noticed."""
    client.send("kill")
    return await supervised.event("worker_died", nth=deaths)


async def test_the_queue_waits(script, address, bpffs):
    """What is sent while no worker lives is handled by the next one; the other members go on."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group, Client(address, host_of(group, 0)) as client:
            (first,) = script.pids(0)
            os.kill(first, signal.SIGSTOP)
            client.send(*map(str, range(100)))
            os.kill(first, signal.SIGKILL)
            answers = [await client.hear() for _ in range(100)]
        report = await supervised.stop()
    assert {answer.pid for answer in answers} == {script.pids(0)[1]}
    assert [(member["workers"], member["killed"], member["handled"]) for member in report["members"]] == [
        (2, 1, 100),
        (1, 0, 0),
    ]
    (died,) = supervised.named("worker_died")
    assert (died["index"], died["pid"], died["reason"], died["restart_in"]) == (0, first, "SIGKILL", 0)


async def test_a_flapping_member(script, address, bpffs):
    """A member whose workers keep dying is taken out, its sources go to others, and back when a worker has settled."""
    async with Supervised(script, address, flapping(settle=0.05), count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group, Client(address, host_of(group, 0)) as client:
            assert (await client.ask()).index == 0
            await kill(supervised, client, 1)
            assert (await client.ask()).index == 0
            script.says("2", "stuck")  # the next one will not be ready
            await kill(supervised, client, 2)
            out = await supervised.event("member_out", index=0)
            assert (out["reason"], out["hint"]) == ("its workers keep dying", "its sources go to other members")
            assert group.alive() == {1}
            assert (await client.ask()).index == 1
            await until(lambda: len(script.pids(0, "started")) == 3, "the third worker")
            script.says("3")
            os.kill(script.pids(0, "started")[2], signal.SIGKILL)
            await supervised.event("member_back", index=0)
            assert group.alive() == {0, 1}
            answer = await client.ask()
            assert (answer.index, answer.version) == (0, "3")
        report = await supervised.stop()
    assert len(supervised.named("worker_died")) == 3
    assert [event["restart_in"] > 0 for event in supervised.named("worker_died")] == [False, True, True]
    assert len(supervised.named("member_out")) == len(supervised.named("member_back")) == 1
    assert [(member["workers"], member["killed"]) for member in report["members"]] == [(4, 2), (1, 0)]


async def test_a_flapping_member_that_is_replaced(script, address, bpffs):
    """SIGHUP does not wait for the back-off; a worker that settles then puts the member back."""
    async with Supervised(script, address, flapping(settle=0.05, pause=3600), count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group, Client(address, host_of(group, 1)) as client:
            await kill(supervised, client, 1)
            await kill(supervised, client, 2)
            await supervised.event("member_out", index=1)
            assert (await client.ask()).index == 0
            script.says("2")
            supervised.send_signal(signal.SIGHUP)
            await supervised.event("restarted")
            await supervised.event("member_back", index=1)
            answer = await client.ask()
            assert (answer.index, answer.version) == (1, "2")
        await supervised.stop()


@pytest.mark.parametrize("balancer", ["classic", "none"])
async def test_flapping_without_failover(script, bpffs, balancer):
    """Where a member cannot be left out its sources wait in its queue until a worker lives again."""
    async with Supervised(
        script, supervision.ANYWHERE, flapping(settle=0.05), balancer=balancer, bpffs=bpffs
    ) as supervised:
        await supervised.supervising()
        with Client(supervised.address) as client:
            await kill(supervised, client, 1)
            await kill(supervised, client, 2)
            client.send("waits")
            assert (await supervised.event("member_out"))["hint"] == "its sources wait in its queue"
            assert (await client.hear()).pid == script.pids(0)[2]
            await supervised.event("member_back")
        assert (await supervised.stop())["handled"] == 1


async def test_stopped_while_a_member_is_out(script, address, bpffs):
    """A stop does not wait for the back-off of a member that is out."""
    async with Supervised(script, address, flapping(settle=1, pause=3600), count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group, Client(address, host_of(group, 0)) as client:
            await kill(supervised, client, 1)
            await kill(supervised, client, 2)
            await supervised.event("member_out")
            report = await supervised.stop()
            assert group.alive() == set()
    assert [(member["workers"], member["killed"]) for member in report["members"]] == [(2, 2), (1, 0)]


async def test_stopped_after_a_death(script, address, bpffs):
    """A stop waits for the worker that is being started, for its queue is to be handled."""
    async with Supervised(script, address, count=1, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with Client(address) as client:
            (first,) = script.pids(0)
            os.kill(first, signal.SIGSTOP)
            client.send(*map(str, range(20)))
            os.kill(first, signal.SIGKILL)
            await supervised.event("worker_died")
            report = await supervised.stop()
    assert (report["handled"], report["workers"], report["killed"]) == (20, 2, 1)


async def test_a_worker_that_hangs(script, address, bpffs):
    """A worker that gives no sign of life is aborted, once, and replaced; what waits is handled."""
    async with Supervised(script, address, policy(worker_timeout=0.3), bpffs=bpffs) as supervised:
        await supervised.supervising()
        with Client(address) as client:
            client.send("hang", "waits")
            hung = await supervised.event("worker_hung")
            died = await supervised.event("worker_died")
            assert (died["pid"], died["reason"]) == (hung["pid"], "SIGABRT")
            assert (await client.hear()).pid == script.pids(0)[1]
        report = await supervised.stop()
    assert (report["handled"], report["killed"], len(supervised.named("worker_hung"))) == (1, 1, 1)


async def test_recycled_after_datagrams(script, address, bpffs):
    """Each worker is replaced after its share of datagrams, one at a time, without loss."""
    async with Supervised(
        script, address, policy(worker_timeout=1, recycle=RecyclePolicy(datagrams=100)), count=2, bpffs=bpffs
    ) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group:
            for index in range(2):
                with Client(address, host_of(group, index)) as client:
                    client.send(*map(str, range(120)))
        for index in range(2):
            await supervised.event("replaced", index=index, reason="recycle")
        report = await supervised.stop()
    steps = [(index, step) for _, index, step in script.steps if step in ("started", "hand_over")][2:]
    assert steps in ([(a, step) for a in order for step in ("started", "hand_over")] for order in ((0, 1), (1, 0)))
    assert [(member["workers"], member["received"]) for member in report["members"]] == [(2, 120)] * 2


async def test_recycled_after_a_time(script, address, bpffs):
    """Each worker is replaced after its time."""
    async with Supervised(script, address, policy(recycle=RecyclePolicy(seconds=1)), bpffs=bpffs) as supervised:
        await supervised.supervising()
        await supervised.event("replaced", reason="recycle")
        assert (await supervised.stop())["workers"] == 2


async def test_a_recycling_that_fails(script, address, bpffs):
    """When the next worker does not start the old one goes on, and it is not tried again and again."""
    async with Supervised(
        script, address, policy(worker_timeout=0.4, recycle=RecyclePolicy(datagrams=1)), bpffs=bpffs
    ) as supervised:
        await supervised.supervising()
        script.says("2", "exit")
        with Client(address) as client:
            await client.ask()
            await supervised.event("replacement_failed")
            for _ in range(3):
                signs = supervised.supervisor._members[0]._worker.last_sign
                await until(lambda: supervised.supervisor._members[0]._worker.last_sign > signs, "a sign of life")  # noqa: B023
            assert (await client.ask()).version == "1"
        await supervised.stop()
    assert len(script.pids(0, "started")) == 2
