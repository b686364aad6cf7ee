"""A supervisor moves slots by itself, tells workers of what has moved, and leaves alone what is others'."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from contextlib import closing, contextmanager

import pytest
import structlog.testing
import supervision
import zipf

from aiolb.address import Address
from aiolb.balancing import Keeper, RebalancePolicy, keep_even
from aiolb.bpf import steering
from aiolb.bpf.group import Group
from aiolb.config import ServeConfig
from aiolb.errors import ConfigurationError, PrivilegeError
from aiolb.places import AllPlaces
from aiolb.sockets import bind_reuseport

Supervised, Supervisor, until = supervision.Supervised, supervision.Supervisor, supervision.until
script = supervision.script
MEMBERS, SOURCES, BOUND = 4, 30, 1.10


@contextmanager
def zipf_load(address):
    """Zipf sources that send, in a task: the sender."""
    stopping = asyncio.Event()
    with zipf.ZipfSender(address, sources=SOURCES) as sender:
        sender.stopping = stopping
        sender.task = asyncio.create_task(sender.send_until(stopping))
        yield sender


async def sent(sender, number):
    """Wait until so many more are sent."""
    beyond = sender.sent.total() + number
    await until(lambda: sender.sent.total() >= beyond, "datagrams")


async def stop(sender):
    """Stop sending."""
    sender.stopping.set()
    await sender.task


def check_affinity(report, sender):
    """Each source was with one member after the other, nothing lost, doubled or out of order; who had each."""
    pieces = defaultdict(list)
    for member in report["members"]:
        (verified,) = member["collector"]
        for entry in verified["per_source"]:
            assert (entry["duplicated"], entry["reordered"]) == (0, 0)
            pieces[entry["source"]] += [(first, last, member["index"]) for first, last in entry["ranges"]]
    owners = {}
    for source, number in sender.sent.items():
        runs = sorted(pieces[source])
        assert [first for first, _, _ in runs] == [0, *(last + 1 for _, last, _ in runs[:-1])]
        assert runs[-1][1] + 1 == number
        owners[source] = [index for _, _, index in runs]
    return owners


async def test_a_supervisor_evens_out(bpffs, tmp_path):
    """A supervisor that is told to moves slots by itself: each source is with one member at a time, nothing is lost."""
    report = tmp_path / "report.json"
    options = ["--bind", "127.0.0.1:0", "--workers", str(MEMBERS), "--seed", "5", "--bpffs", str(bpffs)]
    options += ["--rebalance", "--rebalance-interval", "1", "--report", str(report), "--rcvbuf", "8M"]
    async with Supervisor("verify", *options) as supervisor:
        address = await supervisor.supervising(workers=MEMBERS)
        with zipf_load(address) as sender:
            said = await supervisor.event("rebalanced")
            await sent(sender, 2000)
            await stop(sender)
        assert await supervisor.stop() == 0
    owners = check_affinity(json.loads(report.read_text()), sender)
    assert any(len(members) > 1 for members in owners.values())
    assert said["busiest_before"] > BOUND
    assert said["busiest_after"] < said["busiest_before"]
    told = {event["index"] for event in supervisor.named("slots_changed")}
    assert len(told) > 1, "workers are told"


async def test_drain_under_load(bpffs, tmp_path):
    """A member drained under load gets nothing from then on, and nothing is lost; undrained it has its share."""
    report = tmp_path / "report.json"
    options = ["--bind", "127.0.0.1:0", "--workers", "3", "--seed", "5", "--bpffs", str(bpffs)]
    options += ["--report", str(report), "--rcvbuf", "8M"]
    async with Supervisor("verify", *options) as supervisor:
        address = await supervisor.supervising(workers=3)
        with closing(Group.open(Address(*address), bpffs=bpffs)) as group, zipf_load(address) as sender:
            await sent(sender, 500)
            group.drain(1)
            steering.wait_for_packets_in_flight()
            at_drain = dict(sender.sent)
            await supervisor.event("drained", index=1)
            await sent(sender, 2000)
            await stop(sender)
            group.undrain(1)
            await supervisor.event("undrained", index=1)
            assert group.slots.count(1) == 16384 // 3
        assert await supervisor.stop() == 0
    said = json.loads(report.read_text())
    owners = check_affinity(said, sender)
    (verified,) = said["members"][1]["collector"]
    assert verified["received"] > 0
    assert all(entry["last"] < at_drain[entry["source"]] for entry in verified["per_source"])
    assert {tuple(members)[-1] for members in owners.values()} == {0, 2}


def refuse(_pins, *, create=False):
    """As where bpffs cannot be had."""
    raise PrivilegeError(f"no pins, {create=}")


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "unpinned"])
async def test_workers_are_told(script, bpffs, monkeypatch, pinned):
    """The workers whose slots have left or come are told which, within a look, and no others; unpinned groups too."""
    if not pinned:
        monkeypatch.setattr("aiolb.bpf.pins.Pins.locked", refuse)
    async with Supervised(script, supervision.ANYWHERE, count=3, bpffs=bpffs) as supervised:
        await supervised.supervising()
        (group,) = supervised.supervisor._places.groups
        assert group.pinned == pinned
        slot = group.slots.index(0)
        group.move([slot], to=2)
        told = "slots {} {} {} [0, 32, 128, 0] {}"
        of = supervised.address, group.config.seed
        await until(lambda: len(script.changes) == 2, "both are told")
        assert {(index, change) for _, index, change in script.changes} == {
            (0, told.format(of[0], [slot], [], of[1])),
            (2, told.format(of[0], [], [slot], of[1])),
        }
        await supervised.stop()


async def test_weights_and_drains_are_logged(script, address, bpffs):
    """A supervisor logs another weight, a drain and its end, with the member's index."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group:
            group.set_weight(0, 50)
            await supervised.event("weight_changed", index=0, before=100, now=50)
            group.drain(1)
            await supervised.event("drained", index=1)
            group.undrain(1)
            await supervised.event("undrained", index=1)
        await supervised.stop()


async def test_all_but_the_last_drained(script, address, bpffs):
    """A member that is the last not drained is not taken away, which is told; then it can be."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with closing(Group.open(address, bpffs=bpffs)) as group:
            group.drain(0)
            supervised.send_signal(supervision.signal.SIGTTOU)
            said = await supervised.event("operation_failed")
            assert "would own a slot" in said["reason"]
            assert (group.config.count, group.alive()) == (2, {0, 1})
            group.undrain(0)
            supervised.send_signal(supervision.signal.SIGTTOU)
            await supervised.event("count_changed", now=1)
        await supervised.stop()


async def test_what_is_others_is_left_alone(bpffs, address):
    """While not all places are its own a supervisor does not even look."""
    config = ServeConfig(bind=(address,), count=2, bpffs=bpffs, balancer="ebpf")
    with closing(AllPlaces.open(config)) as places, bind_reuseport(address) as other:
        assert places.whole
        with closing(Group.open(address, bpffs=bpffs)) as group:
            group.join(other, 1, takeover=True)
        assert not places.whole
        looked, stopping = [], asyncio.Event()

        def whole():
            looked.append(places.whole)
            if len(looked) == 3:
                stopping.set()
            return looked[-1]

        (ours,) = places.groups
        ours.slot_packets = None  # nobody reads them
        async with asyncio.timeout(supervision.DEADLINE):
            await keep_even([ours], RebalancePolicy(interval=0.1), whole, stopping)
        assert looked == [False] * 3


@pytest.mark.parametrize("settings", [{"bound": 1.0}, {"bound": float("nan")}, {"interval": 0.05}, {"interval": 601}])
def test_policies_that_cannot_be(settings):
    """A bound that is not above 1, and an interval that is too short or too long, are refused."""
    with pytest.raises(ConfigurationError, match=r"bound is above 1\.0|interval is 0\.1 to 600"):
        RebalancePolicy(**settings)


@pytest.mark.parametrize("balancer", ["classic", "none"])
async def test_without_slots(script, balancer):
    """Where the balancer turned out to have no slots, a warning says that nothing will be moved."""
    async with Supervised(
        script, supervision.ANYWHERE, count=2, balancer=balancer, rebalance=RebalancePolicy()
    ) as supervised:
        said = await supervised.event("rebalance_off")
        assert (said["log_level"], said["reason"]) == (
            "warning",
            f"the balancer {balancer} has no slots: --rebalance does nothing",
        )
        await supervised.stop()
    assert len(supervised.named("rebalance_off")) == 1


async def test_what_is_logged(cluster):
    """Each plan is one line, and so are slots that are too big, once; where nothing moves nothing is logged."""
    numbered = zipf.Numbered(cluster(MEMBERS))
    each = [3000] + [50] * (SOURCES - 1)
    keeper = Keeper(numbered.cluster.group, RebalancePolicy())
    await keeper.step()
    with structlog.testing.capture_logs() as logged:
        for seed in range(3):
            numbered.interval(each=each, seed=seed)
            await keeper.step()
    too_big, rebalanced = logged
    slot = numbered.cluster.group.slot_of(numbered.address(0))
    assert (too_big["event"], too_big["slots"], too_big["biggest"]) == ("slots_too_big", 1, slot)
    assert too_big["share_of_load"] == 0.674
    assert (rebalanced["event"], rebalanced["bound"]) == ("rebalanced", 1.1)
    assert rebalanced["busiest_before"] > rebalanced["busiest_after"]
