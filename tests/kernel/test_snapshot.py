"""Snapshots of groups: what members told beside what the kernel counted, rates, and who is dead or silent."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
import supervision
from serving import Member

from aiolb.bpf import snapshot
from aiolb.bpf.abi import Report
from aiolb.bpf.group import Group
from aiolb.bpf.snapshot import State

EMPTY = Report.unpack(bytes(Report.STRUCT.size))


def test_a_group_that_nobody_told_anything_of(cluster):
    """Sockets that a program joined with by itself are alive, and what the kernel counted is there."""
    group = cluster(3, members=[0, 2])
    sources = [IPv4Address("127.0.0.1") + i for i in range(20)]
    found = Counter(group.route(sources).values())
    look = snapshot.take(group.group)
    assert [member.state for member in look.members] == [State.ALIVE, State.DEAD, State.ALIVE]
    assert [member.told for member in look.members] == [None] * 3
    assert [member.kernel.packets for member in look.members] == [found[0], 0, found[2]]
    assert (look.told, look.stale, look.kernel.count, look.sketch.count) == (False, False, 3, 0)
    group.kill(0, 2)
    assert snapshot.take(group.group).stale


def test_only_the_report_of_the_member_s_own_socket_counts(cluster, monkeypatch):
    """What was told of another socket is not the member's; what was told too long ago is a silent collector's."""
    group = cluster(2)
    cookie = group.memberships[0].cookie
    reports = group.group.reports
    reports.write(0, replace(EMPTY, cookie=cookie, received=5, written_ns=10**9))
    reports.write(1, replace(EMPTY, cookie=cookie, received=7))
    monkeypatch.setattr(snapshot.time, "time_ns", lambda: 2 * 10**9)
    look = snapshot.take(group.group)
    assert [member.told and member.told.received for member in look.members] == [5, None]
    assert [member.state for member in look.members] == [State.ALIVE, State.ALIVE]
    monkeypatch.setattr(snapshot.time, "time_ns", lambda: int((1.1 + snapshot.SILENT_AFTER) * 1e9))
    assert snapshot.take(group.group).members[0].state is State.SILENT
    group.kill(0)
    dead = snapshot.take(group.group).members[0]
    assert (dead.state, dead.told and dead.told.received) == (State.DEAD, 5)


def test_half_a_report_is_none(cluster):
    """An entry that was written by halves is not read."""
    group = cluster(1)
    reports = group.group.reports
    reports.write(0, replace(EMPTY, cookie=group.memberships[0].cookie, received=5, sent=5))
    other = replace(EMPTY, cookie=group.memberships[0].cookie, received=6, sent=6).pack()
    group.group._maps.reports[100 : len(other)] = other[100:]
    assert reports.read(0) is None
    assert snapshot.take(group.group).members[0].told is None


def test_rates(cluster):
    """Rates are what was told between two reports, by their own times; another socket began at nothing."""
    group = cluster(2)
    cookies = [group.memberships[index].cookie for index in range(2)]
    reports = group.group.reports
    for index, cookie in enumerate(cookies):
        reports.write(index, replace(EMPTY, cookie=cookie, received=100, received_bytes=1000, written_ns=10**9))
    before = snapshot.take(group.group)
    reports.write(0, replace(EMPTY, cookie=cookies[0], received=700, received_bytes=7000, written_ns=3 * 10**9))
    reports.write(1, replace(EMPTY, cookie=cookies[1], received=200, received_bytes=1000, written_ns=2 * 10**9))
    after = snapshot.take(group.group)
    first, second = snapshot.rates(before, after)
    assert (first.datagrams, first.bytes, first.share) == (300, 3000, 0.75)
    assert (second.datagrams, second.bytes, second.share) == (100, 0, 0.25)
    assert [one.share for one in snapshot.rates(after, after)] == [0, 0]
    fresh = replace(before, taken=after.taken - 10, members=())
    assert snapshot.rates(fresh, after)[0].datagrams == pytest.approx(70)


def test_quantiles():
    """So many percent of the values stayed below it, as a power of two."""
    assert snapshot.quantile([0] * 4, 50) is None
    assert snapshot.quantile([0, 2, 97, 1], 0) == 2
    assert snapshot.quantile([0, 2, 97, 1], 50) == 4
    assert snapshot.quantile([0, 2, 97, 1], 99) == 4
    assert snapshot.quantile([0, 2, 97, 1], 100) == 8


APP = """
from aiolb import Collector

class App(Collector):
    async def handle(self, datagram, addr):
        if datagram == b"bad":
            raise ValueError("bad")
        self.reply(datagram, addr)
"""


def ask(address, sources, *datagrams):
    """Send the datagrams from each source; how many bytes that were."""
    for source in sources:
        with supervision.Client(address, str(source)) as client:
            client.send(*datagrams)
    return len(sources) * sum(map(len, datagrams))


async def told(group, **wanted):
    """The snapshot when the members together have told these numbers."""
    looks = []

    def enough():
        looks.append(snapshot.take(group))
        found = {name: sum(getattr(one.told, name) for one in looks[-1].members if one.told) for name in wanted}
        return found == wanted

    await supervision.until(enough, f"members tell {wanted}")
    return looks[-1]


async def test_members_tell_what_they_counted(bpffs, address, tmp_path):
    """At rest it is exactly what was sent, and what the members themselves say at their end."""
    app = tmp_path / "app.py"
    app.write_text(APP)
    sources = [ip_address("127.0.2.1") + i for i in range(30)]
    options = [f"{app}:App", "--bind", str(address), "--bpffs", str(bpffs), "--count", "2"]
    async with (
        Member(*options, "--index", "0", report=tmp_path / "0") as zero,
        Member(*options, "--index", "1", report=tmp_path / "1") as one,
    ):
        for member in (zero, one):
            await member.ready()
        size = ask(address, sources, "one", "bad", "three")
        group = Group.open(address, bpffs=bpffs)
        try:
            look = await told(group, received=90, handled=60, errors=30, sent=60, sources=30)
            assert sum(member.told.received_bytes for member in look.members) == size
            assert sum(member.told.messages for member in look.members) == 90
            assert sum(member.kernel.packets for member in look.members) == 90
            assert sum(sum(member.told.batch_sizes) for member in look.members) >= 2
            assert all(sum(member.told.handler_times) for member in look.members)
            assert [member.pid for member in look.members] == [zero.process.pid, one.process.pid]
            top = [one for member in look.members for one in member.top]
            assert {one.received for one in top} == {3}
            assert {one.source for one in top} <= set(sources)
            owners = {source: group.locate(source) for source in sources}
            assert Counter(owners.values()) == {member.index: member.sources for member in look.members}
            ends = [await zero.stop(), await one.stop()]
            look = snapshot.take(group)
            assert [member.state for member in look.members] == [State.DEAD] * 2
            for member, end in zip(look.members, ends, strict=True):
                for counter in ("received", "handled", "errors", "received_bytes", "sent", "abandoned", "kernel_drops"):
                    assert getattr(member.told, counter) == end[counter], counter
        finally:
            group.delete()
            group.close()


async def test_workers_go_on_counting(bpffs, address):
    """Workers tell too, without any privilege; a new one goes on where the one before it ended."""
    sources = [ip_address("127.0.2.1") + i for i in range(10)]
    options = ["--bind", str(address), "--bpffs", str(bpffs), "--workers", "2", "--user", "nobody"]
    async with supervision.Supervisor("echo", *options) as supervisor:
        await supervisor.event("supervising")
        group = Group.open(address, bpffs=bpffs)
        try:
            ask(address, sources, "one", "two")
            first = await told(group, received=20, sources=10)
            supervisor.send_signal(signal.SIGHUP)
            await supervisor.event("restarted")
            ask(address, sources, "one")
            second = await told(group, received=30, handled=30, sources=10)
            for before, after in zip(first.members, second.members, strict=True):
                assert before.pid != after.pid
                assert before.uid == after.uid != 0
                assert before.kernel.cookie == after.kernel.cookie
                assert sum(after.told.handler_times) >= sum(before.told.handler_times)
        finally:
            group.close()


async def test_who_takes_over_begins_at_nothing(bpffs, address, tmp_path):
    """The member's entry is its new socket's; who drains writes there no more."""
    options = ["echo", "--bind", str(address), "--bpffs", str(bpffs)]
    async with Member(*options, report=tmp_path / "old") as old:
        await old.ready()
        group = Group.open(address, bpffs=bpffs)
        try:
            ask(address, [ip_address("127.0.2.1")], "one", "two")
            await told(group, received=2)
            async with Member(*options, "--takeover", report=tmp_path / "new") as new:
                await new.ready()
                assert (await old.ended())["received"] == 2
                ask(address, [ip_address("127.0.2.1")], "three")
                look = await told(group, received=1)
                assert (look.members[0].pid, look.members[0].kernel.packets) == (new.process.pid, 3)
                await new.stop()
        finally:
            group.delete()
            group.close()
