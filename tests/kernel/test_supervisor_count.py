"""SIGTTIN and SIGTTOU: a member more, a member less, with every balancer; what is refused."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
import supervision

from aiolb.bpf.group import Group
from aiolb.sockets import bind_reuseport

TESTS = Path(__file__).parent.parent


Client, Supervised, until = supervision.Client, supervision.Supervised, supervision.until
script = supervision.script


def own(sources):
    """Clients with these sources, by name."""
    return [f"127.0.2.{number}" for number in range(1, sources + 1)]


async def owners(address, hosts):
    """Which member has each source."""
    found = {}
    for host in hosts:
        with Client(address, host) as client:
            found[host] = (await client.ask()).index
    return found


async def test_slots_move(script, address, bpffs):
    """One member more takes slots from the others, one less gives its own to them; no other slot moves."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group:
            two, sources = group.slots, await owners(address, own(30))
            supervised.send_signal(signal.SIGTTIN)
            await supervised.event("count_changed", now=3)
            three = group.slots
            moved = [slot for slot, owner in enumerate(three) if owner != two[slot]]
            assert {three[slot] for slot in moved} == {2}
            assert (group.config.count, group.alive()) == (3, {0, 1, 2})
            assert {host for host, index in (await owners(address, sources)).items() if index != sources[host]} == {
                host for host in sources if group.locate(ip_address(host)) == 2
            }
            supervised.send_signal(signal.SIGTTOU)
            await supervised.event("count_changed", now=2)
            assert (group.config.count, group.alive()) == (2, {0, 1})
            again = group.slots
            assert [slot for slot, owner in enumerate(again) if owner != three[slot]] == moved
            assert await owners(address, sources) == {host: group.locate(ip_address(host)) for host in sources}
        report = await supervised.stop()
    assert [member["index"] for member in report["members"]] == [0, 1, 2]
    assert report["handled"] == report["received"] == 90


@pytest.mark.parametrize("balancer", ["ebpf", "classic", "none"])
async def test_more_and_less(script, bpffs, balancer):
    """Workers come and go one by one, and are told of every change; the last one stays."""
    async with Supervised(script, supervision.ANYWHERE, count=1, balancer=balancer, bpffs=bpffs) as supervised:
        await supervised.supervising()
        for _ in range(2):
            supervised.send_signal(signal.SIGTTIN)
        await supervised.event("count_changed", now=3)
        assert set((await owners(supervised.address, own(60))).values()) == {0, 1, 2}
        for _ in range(3):
            supervised.send_signal(signal.SIGTTOU)
        refused = await supervised.event("last_member")
        assert (refused["log_level"], refused["hint"]) == ("warning", "SIGTERM stops it")
        assert set((await owners(supervised.address, own(60))).values()) == {0}
        report = await supervised.stop()
    assert [event["now"] for event in supervised.named("count_changed")] == [2, 3, 2, 1]
    steps = [step for _, index, step in script.steps if index == 0]
    assert steps == ["started", "prepared", "receive", *(f"count {now}" for now in (2, 3, 2, 1)), "drain", "ended"]
    assert report["handled"] == report["received"] == 120
    assert [(member["workers"], member["killed"]) for member in report["members"]] == [(1, 0)] * 3


async def test_what_is_queued_is_drained(script, address, bpffs):
    """What waits for a member that is taken away is handled by it."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        sources = await owners(address, own(20))
        (last,) = script.pids(1)
        os.kill(last, signal.SIGSTOP)
        host = next(host for host, index in sources.items() if index == 1)
        with Client(address, host) as client:
            client.send(*map(str, range(50)))
            supervised.send_signal(signal.SIGTTOU)
            await supervised.event("count_changed", now=1)
            os.kill(last, signal.SIGCONT)
            assert {(await client.hear()).pid for _ in range(50)} == {last}
            assert (await client.ask()).index == 0
        report = await supervised.stop()
    assert report["received"] == report["handled"] == 71


@pytest.mark.parametrize("word", ["exit", "exit-receive"])
async def test_a_member_that_does_not_start(script, address, bpffs, word):
    """When the worker of a new member fails, the group stays as it is, and can grow later."""
    async with Supervised(script, address, count=1, bpffs=bpffs) as supervised:
        await supervised.supervising()
        script.says("2", word)
        supervised.send_signal(signal.SIGTTIN)
        assert (await supervised.event("member_failed"))["index"] == 1
        script.says("3")
        supervised.send_signal(signal.SIGTTIN)
        await supervised.event("count_changed", now=2)
        with closing(Group.open(address, bpffs=bpffs)) as group:
            assert (group.config.count, group.alive()) == (2, {0, 1})
        report = await supervised.stop()
    assert [(member["index"], member["workers"]) for member in report["members"]] == [(0, 1), (1, 1), (1, 1)]


async def test_places_of_others(script, address, bpffs):
    """While another process holds one of the places the count stays, which is told."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group, bind_reuseport(address) as other:
            group.join(other, 0, takeover=True)
            assert (await supervised.event("displaced"))["index"] == 0
            for number, kind in enumerate((signal.SIGTTIN, signal.SIGTTOU), 1):
                supervised.send_signal(kind)
                await supervised.event(
                    "count_kept", nth=number, reason="other processes hold some of the group's places"
                )
            assert (group.config.count, group.alive()) == (2, {0, 1})
            report = await supervised.stop()
            assert group.alive() == {0}
    assert [member["workers"] for member in report["members"]] == [1, 1]
    assert supervised.named("count_changed") == []


async def test_a_place_that_another_process_has(script, address, bpffs):
    """A member whose place is taken already is not added: its worker ends, and the group is left as it is."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group, bind_reuseport(address) as other:
            group.join(other, 2, count=3)
            supervised.send_signal(signal.SIGTTOU)
            await supervised.event("count_kept")
            assert (group.config.count, group.alive()) == (3, {0, 1, 2})
        report = await supervised.stop()
    assert [(member["index"], member["workers"]) for member in report["members"]] == [(0, 1), (1, 1)]
