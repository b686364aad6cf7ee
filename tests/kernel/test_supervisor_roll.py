"""SIGHUP: every worker is replaced, one at a time, without loss; a version that does not start changes nothing."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
import supervision

TESTS = Path(__file__).parent.parent


Client, Supervised, until = supervision.Client, supervision.Supervised, supervision.until
script = supervision.script


async def test_one_at_a_time(script, address, bpffs):
    """The old worker stops reading when the new one is prepared, and the next member's turn is after that."""
    async with Supervised(script, address, count=3, bpffs=bpffs) as supervised:
        await supervised.supervising()
        script.says("2")
        supervised.send_signal(signal.SIGHUP)
        assert (await supervised.event("restarted"))["workers"] == 3
        pids = [script.pids(index) for index in range(3)]
        assert [len(both) for both in pids] == [2, 2, 2]
        steps = script.steps
        order = [
            position
            for old, new, index in ((*both, index) for index, both in enumerate(pids))
            for position in (
                steps.index((new, index, "started")),
                steps.index((new, index, "prepared")),
                steps.index((old, index, "hand_over")),
                steps.index((new, index, "receive")),
            )
        ]
        assert order == sorted(order)
        replaced = [(event["index"], event["old"], event["new"]) for event in supervised.named("replaced")]
        assert replaced == [(index, *both) for index, both in enumerate(pids)]
        assert {event["reason"] for event in supervised.named("replaced")} == {"restart"}
        report = await supervised.stop()
    assert [(member["workers"], member["killed"]) for member in report["members"]] == [(2, 0)] * 3
    assert supervised.named("worker_died") == []


async def test_nothing_is_lost(script, address, bpffs):
    """Every datagram that is sent while workers are replaced is handled, once, in order, by its source's member."""
    names = [f"127.0.1.{number}" for number in range(1, 21)]
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        with ExitStack() as stack:
            clients = {name: stack.enter_context(Client(address, name)) for name in names}
            supervised.send_signal(signal.SIGHUP)
            sent = 0
            while not supervised.named("restarted"):
                for name, client in clients.items():
                    client.send(f"{name} {sent}")
                sent += 1
                await asyncio.sleep(0.001)
            report = await supervised.stop()
    assert report["received"] == report["handled"] == sent * len(names)
    handled = [[item for worker in member["collector"] for item in worker] for member in report["members"]]
    for name in names:
        found = [[item for item in items if item.startswith(f"{name} ")] for items in handled]
        assert [f"{name} {number}" for number in range(sent)] in found
    assert all(handled)


@pytest.mark.parametrize("word", ["exit", "stuck"])
async def test_a_version_that_does_not_start(script, address, bpffs, word):
    """The old worker goes on, which is told; the other members are not touched; a better version is then taken."""
    policy = supervision.WorkerPolicy(start_timeout=0.5 if word == "stuck" else 30, graceful_timeout=5)
    async with Supervised(script, address, policy, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        script.says("2", word)
        supervised.send_signal(signal.SIGHUP)
        failed = await supervised.event("replacement_failed")
        assert (failed["index"], failed["log_level"]) == (0, "error")
        assert failed["reason"] == ("exit status 3" if word == "exit" else "SIGKILL")
        with Client(address) as client:
            assert (await client.ask()).version == "1"
            script.says("3")
            supervised.send_signal(signal.SIGHUP)
            await supervised.event("restarted")
            assert (await client.ask()).version == "3"
        report = await supervised.stop()
    assert [len(script.pids(index, "started")) for index in range(2)] == [3, 2]
    assert (report["handled"], report["killed"]) == (2, 0)
    assert len(supervised.named("replacement_failed")) == len(supervised.named("restarted")) == 1


async def test_a_version_that_fails_late(script, address, bpffs):
    """A new worker that dies when it is to receive is replaced as any that dies; the queue waits for that one."""
    async with Supervised(script, address, count=1, bpffs=bpffs) as supervised:
        await supervised.supervising()
        script.says("2", "exit-receive")
        supervised.send_signal(signal.SIGHUP)
        await until(lambda: script.pids(0, "hand_over"), "the old one's end")
        with Client(address) as client:
            client.send("waits")
            script.says("3")
            assert (await client.hear()).version == "3"
        assert (await supervised.stop())["handled"] == 1
    assert supervised.named("worker_died")[0]["reason"] == "exit status 4"
    assert supervised.named("restarted") == []


async def test_hangups_during_a_roll(script, address, bpffs):
    """However many SIGHUPs come while workers are replaced, all are replaced once more after that."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        supervised.send_signal(signal.SIGHUP)
        await until(lambda: len(script.pids(0, "started")) == 2, "the first new worker")
        script.says("2")
        for _ in range(3):
            supervised.send_signal(signal.SIGHUP)
        await supervised.event("restarted", nth=2)
        with Client(address) as client:
            assert (await client.ask()).version == "2"
        await supervised.stop()
    assert [len(script.pids(index)) for index in range(2)] == [3, 3]
    assert len(supervised.named("restarted")) == 2


@pytest.mark.parametrize("words", [(), ("stuck",)], ids=["in time", "stuck"])
async def test_stopped_during_a_roll(script, address, bpffs, words):
    """A stop does not wait for a worker that starts, and is no failure of that; all is handled."""
    async with Supervised(script, address, count=2, bpffs=bpffs) as supervised:
        await supervised.supervising()
        script.says("2", *words)
        supervised.send_signal(signal.SIGHUP)
        await until(lambda: len(script.pids(0, "started")) == 2, "the first new worker")
        with Client(address) as client:
            client.send(*map(str, range(10)))
            report = await supervised.stop()
            assert len([await client.hear() for _ in range(10)]) == report["handled"] == 10
    assert supervised.named("replacement_failed") == supervised.named("worker_died") == []
    assert supervised.named("restarted") == []


async def test_a_worker_that_does_not_hand_over(script, address, bpffs, monkeypatch):
    """An old worker that obeys no order is killed after the graceful timeout and a margin; the new one goes on."""
    monkeypatch.setattr("aiolb.supervised.MARGIN", 0.1)
    script.says("1", "deaf")
    async with Supervised(script, address, supervision.WorkerPolicy(graceful_timeout=0), bpffs=bpffs) as supervised:
        await supervised.supervising()
        script.says("2")
        supervised.send_signal(signal.SIGHUP)
        await supervised.event("restarted")
        with Client(address) as client:
            assert (await client.ask()).version == "2"
        report = await supervised.stop()
    assert (report["handled"], report["killed"], report["workers"]) == (1, 1, 2)
