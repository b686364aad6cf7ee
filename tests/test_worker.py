"""A worker in this process, ordered about over its channel, on sockets that are somebody else's."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest
import structlog.testing

from aiolb import Collector, StreamCollector, sockets
from aiolb.address import Address
from aiolb.assignment import Assignment
from aiolb.binding import binder
from aiolb.bpf.changes import SlotsChange
from aiolb.bpf.keys import Key
from aiolb.channel import Channel
from aiolb.config import ServeConfig
from aiolb.server import ApplicationError
from aiolb.tally import Tally
from aiolb.worker import Worker

pytestmark = pytest.mark.usefixtures("nothing_left")


class Recorder(Collector):
    """Notes what it handles; ``wait`` waits for ever."""

    def __init__(self):
        self.handled = []
        self.waiting = asyncio.Event()

    async def handle(self, datagram, _addr):
        """Note it."""
        if datagram == b"wait":
            self.waiting.set()
            await asyncio.Event().wait()
        self.handled.append(datagram.decode())

    def report(self):
        """What it handled."""
        return {"handled": self.handled}


class Failing(Recorder):
    """Does not start."""

    async def startup(self):
        """Fail."""
        raise OSError("no database")


class Run:
    """A worker that runs, with the supervisor's end of its channel and of its socket."""

    def __init__(self, app, sock, channel, task):
        self.app, self.sock, self.task = app, sock, task
        self._channel = channel
        self._messages = channel.messages()
        self.order = channel.send
        self.told = []

    async def until(self, name):
        """The next message of that name, which must come before any other but signs of life."""
        async for message in self._messages:
            if message["name"] != "beat" or name == "beat":
                self.told.append(message["name"])
                assert message["name"] == name
                return message
        raise AssertionError(f"no {name}: {self.told}")

    async def receiving(self):
        """Let it receive."""
        await self.until("prepared")
        self.order("receive")
        await self.until("receiving")

    async def ended(self):
        """Its report."""
        await self.until("released")
        report = (await self.until("ended"))["report"]
        await self.task
        return report

    def send(self, *datagrams):
        """Send datagrams to its socket."""
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            for datagram in datagrams:
                client.sendto(datagram, self.sock.getsockname())

    def queued(self):
        """What waits in the socket, taken out of it."""
        found = []
        while True:
            try:
                found.append(self.sock.recv(100))
            except BlockingIOError:
                return found


@asynccontextmanager
async def worker(kind=Recorder, *, kept=False, beat=3600.0, graceful_timeout=30.0):
    """A worker that runs; given up at the end if it still does."""
    app = kind()
    ours, theirs = socket.socketpair()
    channel = await Channel.over(ours)
    tally = Tally.create(1)
    config = ServeConfig(protocol=kind.protocol, graceful_timeout=graceful_timeout)
    with closing(tally), binder(config)(Address("127.0.0.1", 0)) as sock:
        work = Assignment(
            app="",
            index=1,
            count=2,
            balancer="ebpf",
            sockets=((str(sockets.address_of(sock, kind.protocol)), os.dup(sock.fileno())),),
            tally=os.dup(tally.descriptor),
            kept=kept,
            beat=beat,
            settings=Assignment.settings_of(config),
        )
        task = asyncio.create_task(Worker(app, work, await Channel.over(theirs)).serve())
        run = Run(app, sock, channel, task)
        try:
            yield run
        finally:
            channel.send("give_up")
            await asyncio.wait([task])
            await channel.close()


def test_a_life(run):
    """It reads nothing before it is to receive, handles what waits then, and reports at its end."""

    async def live():
        with structlog.testing.capture_logs() as logged:
            async with worker() as it:
                await it.until("prepared")
                it.send(b"early")
                it.order("receive")
                await it.until("receiving")
                it.order("drain")
                report = await it.ended()
                assert (report["index"], report["pid"], report["count"]) == (1, os.getpid(), 2)
                assert (report["received"], report["handled"], report["collector"]) == (1, 1, {"handled": ["early"]})
                assert it.sock.fileno() >= 0
        assert [event["event"] for event in logged] == ["ready", "stopping"]

    run(live())


def test_drain(run):
    """Ordered to drain it handles what is queued, and lets nothing more be queued."""

    async def live():
        async with worker() as it:
            await it.receiving()
            it.send(b"1", b"2")
            it.order("drain")
            await it.ended()
            it.send(b"3")
            assert (it.app.handled, it.queued()) == (["1", "2"], [])

    run(live())


def test_hand_over(run):
    """Ordered to hand over it finishes what it has read; what is sent from then on waits for the next reader."""

    async def live():
        async with worker() as it:
            await it.receiving()
            it.order("hand_over")
            await it.until("released")
            it.send(b"1", b"2")
            await it.until("ended")
            await it.task
            assert (it.app.handled, it.queued()) == ([], [b"1", b"2"])

    run(live())


@pytest.mark.parametrize("order", ["drain", "hand_over"])
def test_give_up(run, order):
    """Ordered to give up it waits no longer for its handlers, which count as abandoned."""

    async def live():
        async with worker() as it:
            await it.receiving()
            it.send(b"wait")
            await it.app.waiting.wait()
            it.order(order)
            it.order("give_up")
            report = await it.ended()
            assert (report["handled"], report["abandoned"]) == (0, 1)

    run(live())


def test_the_graceful_timeout(run):
    """Handlers that take longer than the graceful timeout are abandoned."""

    async def live():
        async with worker(graceful_timeout=0.01) as it:
            await it.receiving()
            it.send(b"wait")
            await it.app.waiting.wait()
            it.order("hand_over")
            assert (await it.ended())["abandoned"] == 1

    run(live())


@pytest.mark.parametrize("kept", [False, True])
def test_without_a_supervisor(run, kept):
    """When the supervisor has gone it stops: it hands a socket over that somebody keeps, and drains it otherwise."""

    async def live():
        with structlog.testing.capture_logs() as logged:
            async with worker(kept=kept) as it:
                await it.receiving()
                await it._channel.close()
                await it.task
                it.send(b"after")
                assert it.queued() == ([b"after"] if kept else [])
        assert [event["event"] for event in logged] == ["ready", "supervisor_gone", "stopping"]

    run(live())


def test_a_signal(run):
    """Told to end by a signal it asks its supervisor, who may know better, and goes on."""

    async def live():
        async with worker() as it:
            await it.receiving()
            signal.raise_signal(signal.SIGTERM)
            await it.until("asks_to_end")
            it.send(b"1")
            it.order("drain")
            assert (await it.ended())["handled"] == 1

    run(live())


def test_another_count(run):
    """Told of another number of members it says so in its log and its report."""

    async def live():
        with structlog.testing.capture_logs() as logged:
            async with worker() as it:
                await it.receiving()
                it.order("count", count=5)
                while "count_changed" not in (event["event"] for event in logged):  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0.005)
                it.order("drain")
                assert (await it.ended())["count"] == 5
        (changed,) = [event for event in logged if event["event"] == "count_changed"]
        assert (changed["before"], changed["now"]) == (2, 5)

    run(live())


def test_beats(run):
    """It tells how much it received from time to time."""

    async def live():
        async with worker(beat=0.01) as it:
            await it.receiving()
            it.send(b"1")
            while (beat := await it.until("beat"))["received"] == 0:
                pass
            beat = await it.until("beat")
            assert beat == {"name": "beat", "received": 1, "handled": 1, "errors": 0, "abandoned": 0}

    run(live())


def test_a_start_that_fails(run):
    """What startup() raises ends it before it is prepared, and says why."""

    async def live():
        async with worker(Failing) as it:
            with pytest.raises(ApplicationError, match=r"startup\(\) failed: OSError: no database"):
                await it.task

    run(live())


def test_ended_before_it_receives(run):
    """A prepared worker that is not wanted any more reports, and has read nothing."""

    async def live():
        async with worker() as it:
            await it.until("prepared")
            it.send(b"1")
            it.order("hand_over")
            assert (await it.ended())["received"] == 0
            assert it.queued() == [b"1"]

    run(live())


class Waits(StreamCollector):
    """Handles a connection until its other end has no more."""

    def __init__(self):
        self.opened = asyncio.Event()

    async def handle_stream(self, reader, _writer):
        """Read all."""
        self.opened.set()
        await reader.read()


def test_connections_are_released_at_once(run):
    """A worker of connections releases its socket before the open ones have ended, and once."""

    async def live():
        async with worker(Waits) as it:
            await it.receiving()
            with socket.create_connection(it.sock.getsockname()):
                await it.app.opened.wait()
                it.order("hand_over")
                await it.until("released")
                assert not it.task.done()
            report = (await it.until("ended"))["report"]
            assert (report["accepted"], report["closed"], report["open"]) == (1, 1, 0)
            assert it.told == ["prepared", "receiving", "released", "ended"]

    run(live())


class Told(Recorder):
    """Notes what it is told of slots, and raises."""

    def __init__(self):
        super().__init__()
        self.changes = asyncio.Queue()

    def on_slots_changed(self, change):
        """Note it."""
        self.changes.put_nowait(change)
        raise ValueError("my mistake")


def test_slots_change(run):
    """Told of slots, it tells the collector, whose mistakes are logged; before it receives it tells nothing."""

    async def live():
        with structlog.testing.capture_logs() as logged:
            async with worker(Told) as it:
                address = sockets.address_of(it.sock)
                change = SlotsChange(address, frozenset({1}), frozenset({2, 3}), Key(), 1 << 127)
                await it.until("prepared")
                it.order("slots", **change.as_message())
                it.order("receive")
                await it.until("receiving")
                it.order("slots", **replace(change, address=Address("127.0.0.9", 1)).as_message())
                it.order("slots", **change.as_message())
                assert await it.app.changes.get() == change
                it.order("drain")
                await it.ended()
                assert it.app.changes.empty()
        assert [event["event"] for event in logged if "slots" in event["event"]] == [
            "slots_changed",
            "on_slots_changed_failed",
        ]

    run(live())
