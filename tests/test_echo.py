"""Round trips: every answer is found, what is missing is lost, and a stall is measured in full."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from itertools import pairwise

import pytest
from events import until

from aiolb import echo
from aiolb.address import Address
from aiolb.echo import EchoPublisher
from aiolb.errors import AiolbError, ConfigurationError
from aiolb.stamp import stamp_from_wire

pytestmark = pytest.mark.usefixtures("nothing_left")


class Echo(asyncio.DatagramProtocol):
    """Answers with ``before``, and then as often as ``answers`` says for a datagram's place among all."""

    def __init__(self, answers, before=()):
        self.answers = answers
        self.before = before
        self.received = []

    def connection_made(self, transport):
        """Keep the way back."""
        self.transport = transport

    def datagram_received(self, data, addr):
        """Answer."""
        self.received.append((addr[0], data))
        for other in self.before:
            self.transport.sendto(other, addr)
        for _ in range(self.answers(len(self.received) - 1)):
            self.transport.sendto(data, addr)


async def measured(answers=lambda _: 1, host="127.0.0.1", before=(), **settings):
    """Run against an echo, and return what both counted."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: Echo(answers, before), local_addr=(host, 0))
    try:
        address = Address(*transport.get_extra_info("sockname")[:2])
        async with EchoPublisher(address, **settings) as publisher:
            statistics = await publisher.run()
        return publisher, statistics, protocol
    finally:
        transport.close()
        await asyncio.sleep(0)


def test_every_datagram_is_answered(run):
    """All are answered, once, from each source in turn; they are numbered, and their times are told."""
    publisher, statistics, echoed = run(measured(rate=2000, count=100, sources=3))
    assert (statistics.sent, statistics.answered, statistics.lost) == (100, 100, 0)
    assert (statistics.duplicated, statistics.foreign, statistics.failed, statistics.errors) == (0, 0, 0, {})
    assert statistics.sent_per_source == {"127.0.0.2": 34, "127.0.0.3": 33, "127.0.0.4": 33}
    stamps = [stamp_from_wire(data) for _, data in echoed.received]
    assert {stamp.run for stamp in stamps} == {publisher.run_id}
    assert [(stamp.source, stamp.sequence) for stamp in stamps] == [(n % 3, n // 3) for n in range(100)]
    times = statistics.round_trip_us
    assert list(times) == list(statistics.late_us) == ["p50", "p90", "p99", "p99.9", "max"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99.9"] <= times["max"]


def test_stamps_hold_when_datagrams_are_due(run):
    """The time in a stamp is the one of the schedule: exactly one interval after the one before it."""
    _, _, echoed = run(measured(rate=1000, count=20))
    times = [stamp_from_wire(data).sent_ns for _, data in echoed.received]
    assert {round((later - earlier) / 1000) for earlier, later in pairwise(times)} == {1000}


def test_ipv6(run):
    """An IPv6 collector is measured the same."""
    _, statistics, _ = run(measured(host="::1", rate=1000, count=5))
    assert (statistics.sent, statistics.answered, statistics.sent_per_source) == (5, 5, {"::1": 5})


@pytest.mark.parametrize(("size", "payload", "length"), [(None, None, 64), (1400, None, 1400), (40, b"ab", 40)])
def test_size_and_payload(run, size, payload, length):
    """Datagrams have the size that is asked for, and come back whole."""
    _, statistics, echoed = run(measured(rate=1000, count=3, size=size, payload=payload))
    assert [len(data) for _, data in echoed.received] == [length] * 3
    assert (statistics.answered, statistics.foreign, statistics.bytes) == (3, 0, 3 * length)


def test_lost_and_duplicated(run, monkeypatch):
    """What is not answered is lost, and what is answered twice is duplicated; both exactly."""
    monkeypatch.setattr(echo, "PATIENCE", 0.3)
    _, statistics, _ = run(measured(lambda n: (1, 0, 2)[n % 3], rate=1000, count=30))
    assert (statistics.sent, statistics.answered, statistics.lost, statistics.duplicated) == (30, 20, 10, 10)


def test_a_collector_that_stalls(run):
    """While nobody answers the sending goes on, and all that was due meanwhile is late: not one datagram."""

    def stall(n):
        if n == 0:
            time.sleep(0.2)
        return 1

    _, statistics, _ = run(measured(stall, rate=1000, count=200))
    assert (statistics.sent, statistics.answered) == (200, 200)
    assert statistics.round_trip_us["max"] >= 200_000
    assert statistics.round_trip_us["p50"] >= 80_000


def test_what_is_no_answer(run):
    """What the target sends besides is counted apart."""
    _, statistics, _ = run(measured(before=(b"hello", bytes(2000)), rate=1000, count=3))
    assert (statistics.answered, statistics.foreign, statistics.lost) == (3, 6, 0)


def test_nobody_listens(run, monkeypatch):
    """Without anybody there all is lost, and the refusals are counted."""
    monkeypatch.setattr(echo, "PATIENCE", 0.05)

    async def alone():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            target = Address(*sock.getsockname())
            sock.connect(("127.0.0.1", 9))  # keeps the port, and takes nothing from us
            async with EchoPublisher(target, rate=1000, count=10) as publisher:
                return await publisher.run()

    statistics = run(alone())
    assert (statistics.sent, statistics.answered, statistics.lost) == (10, 0, 10)
    assert statistics.errors == {"refused": 10}
    assert statistics.round_trip_us["max"] == 0


def test_a_collector_that_comes_back(run):
    """Refusals do not end the listening: what is answered later is counted."""

    async def coming_back():
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            target = sock.getsockname()
            sock.connect(("127.0.0.1", 9))
            async with EchoPublisher(Address(*target), rate=1000, sources=2) as publisher:
                running = asyncio.create_task(publisher.run())
                await until(lambda: publisher.statistics().errors.get("refused", 0) >= 6)
                sock.close()
                transport, _ = await loop.create_datagram_endpoint(lambda: Echo(lambda _: 1), local_addr=target)
                await until(lambda: publisher.statistics().answered >= 6)
                publisher.stop()
                publisher.stop()
                statistics = await running
                transport.close()
                await asyncio.sleep(0)
                return statistics

    assert run(coming_back()).answered >= 6


def test_duration(run):
    """What is due before the end is sent, and no more."""
    _, statistics, _ = run(measured(rate=500, duration=0.1))
    assert (statistics.sent, statistics.answered) == (50, 50)


def test_stopped_twice(run):
    """The first stop ends the sending; the second one the waiting for answers that do not come."""

    async def stopped():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            async with EchoPublisher(Address(*sock.getsockname()), rate=1000) as publisher:
                running = asyncio.create_task(publisher.run())
                await until(lambda: publisher.statistics().sent >= 3)
                publisher.stop()
                await asyncio.sleep(0.01)
                assert not running.done()
                publisher.stop()
                return await running

    statistics = run(stopped())
    assert 3 <= statistics.sent == statistics.lost


def test_entered_and_run_once(run):
    """It is entered once, run once, and not run when it is not open; statistics are there all the time."""

    async def twice():
        publisher, statistics, _ = await measured(rate=1000, count=1)
        assert statistics == publisher.statistics()
        with pytest.raises(AiolbError, match="or was run"):
            await publisher.run()
        with pytest.raises(AiolbError, match="entered before"):
            await publisher.__aenter__()
        other = EchoPublisher("127.0.0.1:9", rate=1)
        assert other.statistics().sent == 0
        with pytest.raises(AiolbError, match="is not open"):
            await other.run()

    run(twice())


@pytest.mark.parametrize("rate", [None, math.inf])
def test_without_a_rate(rate):
    """As fast as possible nothing is due at a time, so there is nothing to measure from."""
    with pytest.raises(ConfigurationError, match="without a rate there is none") as caught:
        EchoPublisher("127.0.0.1:9", rate=rate)
    assert caught.value.hint == "give a rate, e.g. --rate 1000"


@pytest.mark.parametrize("settings", [{"size": 31}, {"count": -1}, {"rate": 0}, {"sources": 0}])
def test_settings_that_cannot_work(settings):
    """What a publisher refuses is refused."""
    with pytest.raises(ConfigurationError):
        EchoPublisher("127.0.0.1:9", **{"rate": 10, **settings})
