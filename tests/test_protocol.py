"""The protocol: lanes, order per source, backpressure, errors, drain and stop, on both event loops."""

# ruff: noqa: D102 - methods of fakes are named after what they stand for

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from contextlib import suppress
from contextvars import ContextVar
from itertools import pairwise

import pytest
import uvloop
from deadline import DEADLINE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiolb import lanes as module
from aiolb.errors import ConfigurationError
from aiolb.protocol import CURRENT_TRANSPORT, CollectorProtocol

pytestmark = pytest.mark.usefixtures("logged", "nothing_left")

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def run_on(loop_name, main):
    """Run a coroutine function; fail if the event loop's exception handler was called."""
    complaints = []

    async def in_time():
        async with asyncio.timeout(DEADLINE):
            return await main()

    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        runner.get_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        result = runner.run(in_time())
    assert complaints == []
    return result


@pytest.fixture(autouse=True, scope="module")
def _libuv():
    """Open the pipe that libuv keeps from the first loop on, before descriptors are counted."""
    uvloop.new_event_loop().close()


@pytest.fixture(params=LOOPS)
def run(request):
    """Runs a coroutine function on each event loop."""
    return lambda main: run_on(request.param, main)


CHOSEN = {}
"""The options that the parameter of a test chose."""


@pytest.fixture(autouse=True)
def stepper(parts, monkeypatch):
    """Run every test on both inner loops."""
    monkeypatch.setitem(CHOSEN, "stepper", parts.stepper)


class PausableTransport(asyncio.DatagramTransport):
    """Remembers whether it was asked to read."""

    def __init__(self):
        super().__init__()
        self.reading = True
        self.calls = []
        self.sent = []

    def pause_reading(self):
        self.reading = False
        self.calls.append("pause")

    def resume_reading(self):
        self.reading = True
        self.calls.append("resume")

    def sendto(self, data, addr=None):
        self.sent.append((data, addr))


class Recorder:
    """An application whose datagrams say what their handler does: b'<verb> …'."""

    takes_batches = False

    def __init__(self):
        self.begun = []
        self.ended = []
        self.active = Counter()
        self.most = 0
        self.gates = defaultdict(asyncio.Event)
        self.errors = []
        self.batches = []

    async def handle(self, datagram, addr):
        source = addr[0]
        assert self.active[source] == 0, "two handlers of one source at a time"
        self.active[source] += 1
        self.most = max(self.most, self.active.total())
        self.begun.append((source, datagram))
        try:
            await self.act(datagram)
        finally:
            self.active[source] -= 1
            self.ended.append((source, datagram))

    async def act(self, datagram):
        verb, _, rest = datagram.partition(b" ")
        if verb == b"block":
            await self.gates[rest].wait()
        elif verb == b"raise":
            raise ValueError(rest)

    async def handle_batch(self, batch):
        self.batches.append(list(batch))
        for datagram, _ in batch:
            await self.act(datagram)

    def on_error(self, exc, datagram, addr):
        self.errors.append((type(exc), datagram, addr))


def make(app, **options):
    """A protocol on the running loop and its transport."""
    protocol = CollectorProtocol(app, loop=asyncio.get_running_loop(), **CHOSEN, **options)
    transport = PausableTransport()
    protocol.connection_made(transport)
    return protocol, transport


def datagrams(*specs):
    """``'a:block 1'`` is the datagram b'block 1' of source a."""
    pairs = [spec.partition(":") for spec in specs]
    return [(text.encode(), (source, 1000 + i)) for i, (source, _, text) in enumerate(pairs)]


async def settle(protocol):
    """Let the loop turn until nothing changes any more; nothing in these tests waits for time."""
    unchanged, before = 0, None
    while unchanged < 12:
        await asyncio.sleep(0)
        now = protocol.statistics()
        unchanged = unchanged + 1 if now == before else 0
        before = now


def counts(protocol, *names):
    """Some of the protocol's statistics."""
    statistics = protocol.statistics()
    return tuple(getattr(statistics, name) for name in names)


# Handling


def test_handlers_that_never_block_share_one_lane(run):
    """A thousand datagrams of many sources are handled in order by a single task."""

    async def main():
        app = Recorder()
        protocol, _ = make(app)
        tasks = set()
        act = app.act

        async def noting(datagram):
            tasks.add(asyncio.current_task())
            await act(datagram)

        app.act = noting
        batch = [(str(i).encode(), (f"127.0.0.{i % 50}", 9)) for i in range(1000)]
        for at in range(0, 1000, 64):
            protocol.datagrams_received(batch[at : at + 64])
            await asyncio.sleep(0)
        await protocol.drained()
        assert app.begun == [(addr[0], datagram) for datagram, addr in batch]
        assert len(tasks) == 1
        assert asyncio.all_tasks() == tasks | {asyncio.current_task()}
        assert counts(protocol, "received", "handled", "lanes") == (1000, 1000, 1)
        await protocol.aclose()

    run(main)


def test_single_datagrams_are_taken_too(run):
    """A transport without the batch door delivers one by one, an empty datagram included."""

    async def main():
        app = Recorder()
        protocol, _ = make(app)
        protocol.datagram_received(b"x", ("a", 1))
        protocol.datagram_received(b"", ("a", 1))
        await protocol.drained()
        assert app.begun == [("a", b"x"), ("a", b"")]
        await protocol.aclose()

    run(main)


def test_a_blocked_handler_holds_up_its_own_source_only(run):
    """While one source waits, the rest of the batch goes on; what waits is then handled in order."""

    async def main():
        app = Recorder()
        protocol, transport = make(app)
        protocol.datagrams_received(datagrams("a:1", "a:block x", "a:2", "b:1", "a:3", "c:1", "b:2", "a:4", "c:2"))
        await settle(protocol)
        assert app.begun == [
            ("a", b"1"),
            ("a", b"block x"),
            ("b", b"1"),
            ("c", b"1"),
            ("b", b"2"),
            ("c", b"2"),
        ]
        assert counts(protocol, "in_flight", "waiting", "pending", "handled") == (1, 3, 0, 5)
        protocol.datagrams_received(datagrams("a:5", "b:3"))
        await settle(protocol)
        assert counts(protocol, "in_flight", "waiting", "pending", "handled") == (1, 4, 0, 6)
        app.gates[b"x"].set()
        await protocol.drained()
        assert [d for source, d in app.begun if source == "a"] == [b"1", b"block x", b"2", b"3", b"4", b"5"]
        assert counts(protocol, "handled", "lanes") == (11, 2)
        assert transport.calls == []
        await protocol.aclose()

    run(main)


def test_lanes_are_parked_and_used_again(run):
    """As many lanes are made as were needed at once, however often handlers block."""

    async def main():
        app = Recorder()
        protocol, _ = make(app, concurrency=8)
        for turn in range(20):
            protocol.datagrams_received(datagrams(*(f"{source}:block {turn}" for source in "abc")))
            await settle(protocol)
            assert counts(protocol, "in_flight") == (3,)
            app.gates[str(turn).encode()].set()
            await protocol.drained()
        assert counts(protocol, "handled", "lanes") == (60, 3)
        assert app.most == 3
        assert len(asyncio.all_tasks()) == 3 + 1
        await protocol.aclose()
        assert counts(protocol, "lanes") == (0,)

    run(main)


def test_a_long_backlog_lets_the_loop_turn(run, monkeypatch):
    """A lane that works off what waited behind it yields when its time is over, and so does the runner."""
    monkeypatch.setattr(module, "_TURN", 0.0)

    async def main():
        app = Recorder()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:block x", *["a:1"] * 200, "b:block y"))
        await settle(protocol)
        app.gates[b"x"].set()
        seen = []
        while len(app.ended) < 201:
            await asyncio.sleep(0)
            seen.append(len(app.ended))
        assert max(b - a for a, b in pairwise(seen)) <= 65
        protocol.datagrams_received(datagrams(*["c:1"] * 200))
        seen = [len(app.ended)]
        while len(app.ended) < 401:
            await asyncio.sleep(0)
            seen.append(len(app.ended))
        assert max(b - a for a, b in pairwise(seen)) <= 64
        app.gates[b"y"].set()
        await protocol.drained()
        await protocol.aclose()

    run(main)


def test_handlers_find_their_transport(run):
    """CURRENT_TRANSPORT is the protocol's own transport in every lane, and is not set outside."""

    async def main():
        found = []

        class Asking(Recorder):
            async def act(self, datagram):
                found.append(CURRENT_TRANSPORT.get())
                await super().act(datagram)

        app = Asking()
        first, transport1 = make(app)
        second, transport2 = make(app)
        first.datagrams_received(datagrams("a:block x", "b:block x"))
        second.datagrams_received(datagrams("c:block x", "d:1"))
        await settle(second)
        assert Counter(found) == {transport1: 2, transport2: 2}
        assert CURRENT_TRANSPORT.get(None) is None
        app.gates[b"x"].set()
        await first.drained()
        await second.drained()
        await first.aclose()
        await second.aclose()

    run(main)


def test_a_new_lane_inherits_nothing_from_handlers(run):
    """A context variable that a handler sets is not seen in a lane that is made because it blocked."""
    variable = ContextVar("variable", default="unset")

    async def main():
        seen = {}

        class Setting(Recorder):
            async def act(self, datagram):
                seen[datagram] = variable.get()
                variable.set("set")
                await super().act(datagram)

        app = Setting()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:block x", "b:2"))
        await settle(protocol)
        assert seen == {b"block x": "unset", b"2": "unset"}
        await protocol.aclose()

    run(main)


def test_timeouts_work_in_handlers(run):
    """asyncio.timeout inside a handler ends in TimeoutError there, and the lane lives on."""

    async def main():
        class Impatient(Recorder):
            async def act(self, datagram):
                if datagram == b"slow":
                    async with asyncio.timeout(0.001):
                        await asyncio.Event().wait()

        app = Impatient()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:slow", "a:1", "b:1"))
        await protocol.drained()
        assert app.begun == [("a", b"slow"), ("b", b"1"), ("a", b"1")]
        assert [kind for kind, *_ in app.errors] == [TimeoutError]
        assert counts(protocol, "handled", "errors", "lanes") == (2, 1, 2)
        await protocol.aclose()

    run(main)


# Errors


def test_an_exception_is_counted_logged_and_handed_on(run, logged):
    """The lane goes on after an exception; on_error learns of each one, the log of the first."""

    async def main():
        app = Recorder()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:raise 1", "a:1", "b:raise 2", "a:raise 3"))
        await protocol.drained()
        assert app.errors == [
            (ValueError, b"raise 1", ("a", 1000)),
            (ValueError, b"raise 2", ("b", 1002)),
            (ValueError, b"raise 3", ("a", 1003)),
        ]
        assert counts(protocol, "received", "handled", "errors", "lanes") == (4, 1, 3, 1)
        await protocol.aclose()

    run(main)
    events = [entry for entry in logged if entry["event"] == "handler_error"]
    assert len(events) == 1
    assert events[0]["addr"] == ("a", 1000)
    assert isinstance(events[0]["exc_info"], ValueError)


def test_on_error_may_fail_itself(run, logged):
    """An exception in on_error is logged, and the lane lives on."""

    async def main():
        class Clumsy(Recorder):
            def on_error(self, exc, datagram, addr):
                super().on_error(exc, datagram, addr)
                raise KeyError("on_error")

        app = Clumsy()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:raise 1", "a:raise 2", "a:1"))
        await protocol.drained()
        assert counts(protocol, "handled", "errors", "lanes") == (1, 2, 1)
        assert len(app.errors) == 2
        await protocol.aclose()

    run(main)
    assert [entry["event"] for entry in logged].count("on_error_failed") == 2


@pytest.mark.parametrize("blocked_before", [False, True])
def test_a_cancellation_from_within_is_an_error_like_any_other(run, blocked_before):
    """A handler that runs into somebody's cancelled future fails; its lane and its source go on."""

    async def main():
        class Entangled(Recorder):
            async def act(self, datagram):
                await super().act(datagram)
                if datagram.startswith((b"dead", b"block")):
                    future = asyncio.get_running_loop().create_future()
                    future.cancel()
                    await future

        app = Entangled()
        protocol, _ = make(app)
        first = "a:block x" if blocked_before else "a:dead"
        protocol.datagrams_received(datagrams(first, "a:1", "b:1", "a:2"))
        await settle(protocol)
        lanes = {lane.task for lane in protocol._lanes.all}
        app.gates[b"x"].set()
        await protocol.drained()
        assert [d for source, d in app.begun if source == "a"] == [first[2:].encode(), b"1", b"2"]
        assert [kind for kind, *_ in app.errors] == [asyncio.CancelledError]
        assert counts(protocol, "handled", "errors") == (3, 1)
        assert {lane.task for lane in protocol._lanes.all} == lanes
        await protocol.aclose()

    run(main)


def test_a_handler_that_cancels_its_own_task_loses_nothing_else(run):
    """Its datagram is an error; what waits behind it is handled in order by another lane."""

    async def main():
        class Suicidal(Recorder):
            async def act(self, datagram):
                await super().act(datagram)
                if datagram.startswith(b"block"):
                    asyncio.current_task().cancel()
                    await asyncio.sleep(0)

        app = Suicidal()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:block x", "a:1", "b:1", "a:block y", "a:2"))
        await settle(protocol)
        app.gates[b"x"].set()
        await settle(protocol)
        app.gates[b"y"].set()
        await protocol.drained()
        assert [d for s, d in app.begun if s == "a"] == [b"block x", b"1", b"block y", b"2"]
        assert counts(protocol, "handled", "errors") == (3, 2)
        protocol.datagrams_received(datagrams("a:3"))
        await protocol.drained()
        assert counts(protocol, "handled") == (4,)
        await protocol.aclose()

    run(main)


def test_lanes_do_not_outlive_a_loop_that_cancels_everything(run):
    """asyncio.run's last act ends parked lanes and lanes whose handler swallows the cancellation."""

    async def main():
        class Stubborn(Recorder):
            async def act(self, datagram):
                with suppress(asyncio.CancelledError):
                    await super().act(datagram)

        app = Stubborn()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:block x", "b:1"))
        await settle(protocol)
        assert counts(protocol, "in_flight", "lanes") == (1, 2)

    run(main)


def test_a_cancelled_parked_lane_is_passed_over(run):
    """Datagrams that arrive while it ends get another lane, and it is forgotten."""

    async def main():
        app = Recorder()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:1"))
        await protocol.drained()
        (parked,) = protocol._lanes.all
        parked.task.cancel()
        protocol.datagrams_received(datagrams("a:2"))
        await protocol.drained()
        assert app.begun == [("a", b"1"), ("a", b"2")]
        (lane,) = protocol._lanes.all
        assert lane is not parked
        lane.task.cancel()
        await settle(protocol)
        assert (protocol._lanes.door.parked, counts(protocol, "lanes")) == ([], (0,))
        protocol.datagrams_received(datagrams("a:3"))
        await protocol.drained()
        assert counts(protocol, "handled", "lanes") == (3, 1)
        await protocol.aclose()

    run(main)


def test_a_lane_that_is_cancelled_as_it_is_appointed_loses_nothing(run):
    """Cancelled between the appointment and its first step, new or parked, it hands the role on."""

    async def main():
        app = Recorder()
        protocol, _ = make(app, concurrency=1)
        for turn in range(4):
            protocol.datagrams_received(datagrams(f"a:{turn}"))
            if turn % 2 == 0:
                protocol._lanes.door.runner.task.cancel()
            await protocol.drained()
        assert [datagram for _, datagram in app.begun] == [b"0", b"1", b"2", b"3"]
        assert counts(protocol, "handled", "errors", "lanes") == (4, 0, 1)
        await protocol.aclose()

    run(main)


def test_a_cancelled_lane_hands_its_backlog_on(run):
    """A handler that swallows the cancellation counts as handled; what waits behind it is another lane's."""

    async def main():
        tasks = {}

        class Stubborn(Recorder):
            async def act(self, datagram):
                tasks[datagram] = asyncio.current_task()
                with suppress(asyncio.CancelledError):
                    await super().act(datagram)

        app = Stubborn()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:1", "a:block x", "a:block y", "a:2", "b:1"))
        await settle(protocol)
        app.gates[b"x"].set()
        await settle(protocol)
        tasks[b"block y"].cancel()
        await protocol.drained()
        assert [d for s, d in app.begun if s == "a"] == [b"1", b"block x", b"block y", b"2"]
        assert tasks[b"block y"] is tasks[b"block x"]
        assert tasks[b"2"] is not tasks[b"block y"]
        assert tasks[b"block y"].done()
        assert counts(protocol, "handled", "errors") == (5, 0)
        await protocol.aclose()

    run(main)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("batches", "specs", "expected"),
    [
        (False, ["a:leave", "a:1"], (1, 1)),
        (False, ["a:1", "a:leave"], (1, 1)),
        (True, ["a:leave", "a:1"], (0, 2)),
    ],
)
@pytest.mark.parametrize("loop_name", LOOPS)
def test_interrupts_propagate(loop_name, batches, specs, expected, kind):
    """KeyboardInterrupt and SystemExit leave the loop; the rest of the datagrams is still there."""

    class Leaving(Recorder):
        async def act(self, datagram):
            if datagram == b"leave":
                raise kind

    app = Leaving()
    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:

        async def begin():
            return make(app, batches=batches, backlog=2)[0]

        async def leave():
            protocol.datagrams_received(datagrams(*specs))
            await protocol.drained()

        protocol = runner.run(begin())
        with pytest.raises(kind):
            runner.run(leave())
        runner.run(protocol.drained())
        runner.run(protocol.has_room())
        assert counts(protocol, "handled", "errors") == expected
        assert app.errors == []
        runner.run(protocol.aclose())


def test_socket_errors_are_counted_and_sampled(run, logged):
    """error_received counts each error and logs the first."""

    async def main():
        protocol, _ = make(Recorder())
        for _ in range(3):
            protocol.error_received(ConnectionRefusedError())
        assert counts(protocol, "socket_errors", "received") == (3, 0)

    run(main)
    assert [entry["event"] for entry in logged] == ["socket_error"]


def test_a_defect_of_a_lane_is_seen():
    """When logging itself fails the loop's exception handler is told, and datagrams are still handled."""
    told = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        app = Recorder()
        protocol, _ = make(app)

        def broken(_now):
            raise RuntimeError("sampling")

        protocol._handler_sampling.admit = broken
        protocol.datagrams_received(datagrams("a:raise 1", "a:1", "b:1"))
        await protocol.drained()
        assert counts(protocol, "handled", "errors") == (2, 1)
        await protocol.aclose()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert [str(context["exception"]) for context in told] == ["sampling"]


# Backpressure


def test_reading_pauses_when_every_lane_is_suspended(run):
    """With no free lane and a datagram pending, the transport is paused until all that is taken up."""

    async def main():
        app = Recorder()
        protocol, transport = make(app, concurrency=2)
        protocol.datagrams_received(datagrams("a:block a", "b:block b"))
        await settle(protocol)
        assert transport.calls == []
        protocol.datagrams_received(datagrams("c:1", "a:1", "d:1"))
        assert transport.calls == ["pause"]
        await settle(protocol)
        assert counts(protocol, "pending", "in_flight", "lanes") == (3, 2, 2)
        room = asyncio.ensure_future(protocol.has_room())
        await asyncio.sleep(0)
        assert not room.done()
        app.gates[b"b"].set()
        await room
        assert transport.calls == ["pause", "resume"]
        assert counts(protocol, "pending", "in_flight", "waiting", "handled") == (0, 1, 1, 3)
        app.gates[b"a"].set()
        await protocol.drained()
        assert counts(protocol, "received", "handled", "lanes") == (5, 5, 2)
        await protocol.aclose()

    run(main)


def test_reading_pauses_when_too_much_waits(run):
    """At `backlog` datagrams behind a suspended handler reading pauses; at half of them it resumes."""

    async def main():
        app = Recorder()
        protocol, transport = make(app, backlog=10)
        protocol.datagrams_received(datagrams("a:block x", *["a:1"] * 3, "a:block y", *["a:1"] * 4))
        await settle(protocol)
        assert counts(protocol, "waiting") == (8,)
        assert transport.calls == []
        protocol.datagrams_received(datagrams("a:block z", "b:1", "a:1"))
        await settle(protocol)
        assert counts(protocol, "waiting", "pending", "handled") == (10, 0, 1)
        assert transport.calls == ["pause"]
        app.gates[b"x"].set()
        await settle(protocol)
        assert counts(protocol, "waiting") == (6,)
        assert transport.calls == ["pause"]
        app.gates[b"y"].set()
        await settle(protocol)
        assert counts(protocol, "waiting") == (1,)
        assert transport.calls == ["pause", "resume"]
        app.gates[b"z"].set()
        await protocol.drained()
        assert counts(protocol, "received", "handled") == (12, 12)
        await protocol.aclose()

    run(main)


def test_reading_resumes_though_the_last_pending_datagram_blocks(run):
    """A batch as large as the backlog pauses reading; that its last handler blocks does not keep it paused."""

    async def main():
        app = Recorder()
        protocol, transport = make(app, backlog=4)
        protocol.datagrams_received(datagrams("a:1", "b:1", "c:1", "d:block x"))
        assert transport.calls == ["pause"]
        await settle(protocol)
        assert counts(protocol, "in_flight", "pending", "handled") == (1, 0, 3)
        assert transport.calls == ["pause", "resume"]
        app.gates[b"x"].set()
        await protocol.drained()
        await protocol.aclose()

    run(main)


def test_reading_pauses_while_replies_cannot_leave(run):
    """pause_writing stops reading, resume_writing resumes it."""

    async def main():
        protocol, transport = make(Recorder())
        protocol.pause_writing()
        protocol.datagrams_received(datagrams("a:1"))
        await protocol.drained()
        assert transport.calls == ["pause"]
        protocol.resume_writing()
        assert transport.calls == ["pause", "resume"]
        await protocol.aclose()

    run(main)


def test_stop_reading_is_for_good(run):
    """The end of backpressure does not resume a transport that is meant to be quiet; has_room still works."""

    async def main():
        app = Recorder()
        protocol, transport = make(app, backlog=2)
        protocol.datagrams_received(datagrams("a:block x", "a:1", "a:1"))
        protocol.stop_reading()
        await settle(protocol)
        app.gates[b"x"].set()
        await protocol.has_room()
        await protocol.drained()
        assert transport.calls == ["pause", "pause"]
        assert counts(protocol, "handled") == (3,)
        await protocol.aclose()

    run(main)


def test_a_transport_that_cannot_pause_is_no_obstacle(run):
    """On the loop's own transport everything is still handled, in order."""

    async def main():
        app = Recorder()
        protocol = CollectorProtocol(app, concurrency=1, backlog=2, loop=asyncio.get_running_loop())
        protocol.connection_made(asyncio.DatagramTransport())
        protocol.datagrams_received(datagrams("a:block x", *(f"{i % 7}:{i}" for i in range(500))))
        await settle(protocol)
        assert counts(protocol, "in_flight", "pending") == (1, 500)
        app.gates[b"x"].set()
        await protocol.drained()
        assert [datagram for _, datagram in app.begun[1:]] == [str(i).encode() for i in range(500)]
        await protocol.aclose()

    run(main)


# Handlers that start at once


def deliver(protocol, *specs):
    """As a transport does: from a callback of the loop, where no task runs; gives the statistics after it."""
    done = asyncio.get_running_loop().create_future()

    def call():
        protocol.datagrams_received(datagrams(*specs))
        done.set_result(protocol.statistics())

    asyncio.get_running_loop().call_soon(call)
    return done


async def warm(protocol):
    """Leave one parked lane behind."""
    protocol.datagrams_received(datagrams("w:warm"))
    await protocol.drained()
    (lane,) = protocol._lanes.all
    return lane


def test_a_parked_lane_handles_at_once(run):
    """Handlers run within the call, in the task and the context of the lane, and the lane stays parked."""

    async def main():
        seen = []
        variable = ContextVar("variable", default="unset")

        class Asking(Recorder):
            async def act(self, datagram):
                seen.append((asyncio.current_task(), variable.get(), CURRENT_TRANSPORT.get()))
                variable.set(datagram)

        protocol, transport = make(Asking())
        lane = await warm(protocol)
        done = []

        def call():
            protocol.datagrams_received(datagrams("a:1", "b:2"))
            done.append(counts(protocol, "handled", "in_flight", "pending"))
            done.append(asyncio.current_task())

        asyncio.get_running_loop().call_soon(call)
        await asyncio.sleep(0)
        assert done == [(3, 0, 0), None]
        assert seen == [(lane.task, value, transport) for value in ("unset", b"warm", b"1")]
        assert protocol._lanes.door.parked == [lane]
        await protocol.drained()
        await protocol.aclose()

    run(main)


def test_a_task_that_delivers_wakes_the_lane(run):
    """Where a task runs, handlers start with a later turn of the loop."""

    async def main():
        app = Recorder()
        protocol, _ = make(app)
        await warm(protocol)
        protocol.datagrams_received(datagrams("a:1"))
        assert counts(protocol, "handled", "pending") == (1, 1)
        await protocol.drained()
        assert counts(protocol, "handled", "pending", "lanes") == (2, 0, 1)
        await protocol.aclose()

    run(main)


def test_a_handler_that_started_at_once_may_wait(run):
    """It goes on in the lane's task, timeouts included, and the rest of the batch in another lane."""

    async def main():
        outcome = []

        class Patient(Recorder):
            async def act(self, datagram):
                task = asyncio.current_task()
                if datagram == b"timeout":
                    try:
                        async with asyncio.timeout(0):
                            await asyncio.Event().wait()
                    except TimeoutError:
                        outcome.append((task is asyncio.current_task(), task.cancelling()))
                await super().act(datagram)

        app = Patient()
        protocol, _ = make(app)
        lane = await warm(protocol)
        await deliver(protocol, "a:timeout", "b:block x", "a:1", "c:1")
        await asyncio.sleep(0)
        app.gates[b"x"].set()
        await protocol.drained()
        assert outcome == [(True, 0)]
        assert lane in protocol._lanes.all
        assert [d for s, d in app.begun if s == "a"] == [b"timeout", b"1"]
        assert counts(protocol, "handled", "errors") == (5, 0)
        await protocol.aclose()

    run(main)


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_cancellation_reaches_a_handler_that_started_at_once(run, turns):
    """Whenever it comes, before or after the lane woke, it arrives where the handler waits, once."""

    async def main():
        caught = []

        class Catching(Recorder):
            async def act(self, datagram):
                try:
                    await super().act(datagram)
                except asyncio.CancelledError as error:
                    caught.append(error.args)
                    asyncio.current_task().uncancel()

        protocol, _ = make(Catching())
        lane = await warm(protocol)

        def call():
            protocol.datagrams_received(datagrams("a:block x", "a:1"))
            if turns == 0:
                lane.task.cancel("why")

        asyncio.get_running_loop().call_soon(call)
        await asyncio.sleep(0)
        if turns:
            for _ in range(turns - 1):
                await asyncio.sleep(0)
            lane.task.cancel("why")
        await protocol.drained()
        assert caught == [("why",)]
        assert not lane.task.done()
        assert counts(protocol, "handled", "errors") == (3, 0)
        await protocol.aclose()

    run(main)


def test_a_handler_that_started_at_once_may_cancel_its_lane(run):
    """With and without a wait afterwards: the lane ends, and nothing that waits is lost."""

    async def main():
        class Ending(Recorder):
            async def act(self, datagram):
                if datagram.startswith(b"end"):
                    asyncio.current_task().cancel()
                if datagram.endswith(b"wait"):
                    await asyncio.sleep(0)

        protocol, _ = make(Ending())
        for spec, expected in (("a:end", (3, 0)), ("a:end wait", (5, 1))):
            lane = await warm(protocol)
            await deliver(protocol, spec, "b:1")
            await protocol.drained()
            await settle(protocol)
            assert lane.task.done()
            assert counts(protocol, "handled", "errors") == expected
        await protocol.aclose()

    run(main)


def test_stopping_from_a_handler_that_started_at_once(run):
    """stop() in it gives up the rest; aclose() in it ends with its cancellation."""

    async def main():
        class Stopping(Recorder):
            async def act(self, datagram):
                if datagram == b"stop":
                    protocol.stop()
                elif datagram == b"aclose":
                    await protocol.aclose()

        for verb in ("stop", "aclose"):
            protocol, _ = make(Stopping())
            await warm(protocol)
            await deliver(protocol, f"a:{verb}", "b:1")
            await settle(protocol)
            await protocol.aclose()
            assert counts(protocol, "handled", "abandoned", "in_flight", "lanes") == (1, 2, 0, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("loop_name", LOOPS)
def test_interrupts_leave_the_loop_from_a_handler_that_started_at_once(loop_name, kind):
    """The lane ends with it, and what is pending is handled when the loop runs again."""

    class Leaving(Recorder):
        async def act(self, datagram):
            if datagram == b"leave":
                raise kind

    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:

        async def begin():
            protocol, _ = make(Leaving())
            await warm(protocol)
            return protocol

        protocol = runner.run(begin())
        loop = runner.get_loop()
        loop.call_soon(protocol.datagrams_received, datagrams("a:leave", "a:1"))
        with pytest.raises(kind):
            loop.run_until_complete(asyncio.sleep(DEADLINE))
        runner.run(protocol.drained())
        assert counts(protocol, "handled", "errors") == (2, 1)
        runner.run(protocol.aclose())


def test_a_turn_that_is_over_is_continued_by_the_lane(run, monkeypatch):
    """Handlers that start at once do not hold the loop for longer than others."""
    monkeypatch.setattr(module, "_TURN", 0.0)

    async def main():
        app = Recorder()
        protocol, _ = make(app)
        lane = await warm(protocol)
        then = await deliver(protocol, *["a:1"] * 200)
        assert (then.handled, then.pending) == (1 + module._STEP, 200 - module._STEP)
        await protocol.drained()
        assert counts(protocol, "handled", "lanes") == (201, 1)
        assert protocol._lanes.door.parked == [lane]
        await protocol.aclose()

    run(main)


def test_what_handlers_send_in_a_turn_leaves_together(run):
    """The transport is corked around them, also when one of them waits or raises."""

    async def main():
        class Corked(PausableTransport):
            def cork(self):
                self.calls.append("cork")

            def uncork(self):
                self.calls.append("uncork")

        protocol = CollectorProtocol(Recorder(), loop=asyncio.get_running_loop(), **CHOSEN)
        transport = Corked()
        protocol.connection_made(transport)
        await warm(protocol)
        assert transport.calls == ["cork", "uncork"]
        await deliver(protocol, "a:raise", "a:block x", "a:1")
        await settle(protocol)
        assert transport.calls == ["cork", "uncork"] * 3
        protocol.stop()
        await protocol.aclose()

    run(main)


# Batches


def test_batches_come_one_at_a_time(run):
    """What arrives while handle_batch works is its next batch, and `backlog` pending pause reading."""

    async def main():
        app = Recorder()
        protocol, transport = make(app, batches=True, backlog=3)
        first, second = datagrams("a:block x", "b:1"), datagrams("a:2", "c:1", "c:2")
        protocol.datagrams_received(first)
        await settle(protocol)
        assert counts(protocol, "in_flight", "pending") == (2, 0)
        protocol.datagrams_received(second[:2])
        assert transport.calls == []
        protocol.datagrams_received(second[2:])
        await settle(protocol)
        assert transport.calls == ["pause"]
        assert counts(protocol, "in_flight", "pending", "lanes") == (2, 3, 1)
        app.gates[b"x"].set()
        await protocol.drained()
        assert app.batches == [first, second]
        assert transport.calls == ["pause", "resume"]
        assert counts(protocol, "received", "handled", "lanes") == (5, 5, 1)
        await protocol.aclose()

    run(main)


def test_a_failed_batch_counts_each_datagram(run, logged):
    """on_error is called for every datagram of the batch as it was handed over, the log once."""

    async def main():
        class Consuming(Recorder):
            async def handle_batch(self, batch):
                copy = list(batch)
                batch.clear()
                await super().handle_batch(copy)

        app = Consuming()
        protocol, _ = make(app, batches=True)
        batch = datagrams("a:1", "b:raise", "c:1")
        protocol.datagrams_received(batch)
        await protocol.drained()
        assert app.errors == [(ValueError, *item) for item in batch]
        protocol.datagrams_received(datagrams("a:2"))
        await protocol.drained()
        assert counts(protocol, "received", "handled", "errors", "lanes") == (4, 1, 3, 1)
        await protocol.aclose()

    run(main)
    assert [(entry["event"], entry["datagrams"]) for entry in logged] == [("handler_error", 3)]


def test_batch_lane_survives_cancellation(run):
    """A batch whose task is cancelled from outside is an error, and what is pending gets another lane."""

    async def main():
        app = Recorder()
        protocol, _ = make(app, batches=True)
        protocol.datagrams_received(datagrams("a:block x", "b:1"))
        await settle(protocol)
        protocol.datagrams_received(datagrams("c:1"))
        next(iter(protocol._lanes.all)).task.cancel()
        await protocol.drained()
        assert counts(protocol, "handled", "errors", "lanes") == (1, 2, 1)
        await protocol.aclose()

    run(main)


# The end


def test_stop_counts_what_it_gives_up(run):
    """stop() cancels handlers and returns pending, waiting and in-flight datagrams, once."""

    async def main():
        app = Recorder()
        protocol, transport = make(app, concurrency=2)
        protocol.datagrams_received(datagrams("z:1", "a:block x", "a:1", "a:2", "b:block x"))
        await settle(protocol)
        protocol.datagrams_received(datagrams("c:1", "d:1"))
        assert counts(protocol, "in_flight", "waiting", "pending") == (2, 2, 2)
        waiters = [asyncio.ensure_future(wait()) for wait in (protocol.drained, protocol.has_room)]
        await asyncio.sleep(0)
        assert protocol.stop() == 6
        assert protocol.stop() == 0
        await asyncio.gather(*waiters)
        await protocol.aclose()
        assert app.active.total() == 0
        assert counts(protocol, "handled", "errors", "abandoned", "in_flight", "lanes") == (1, 0, 6, 0, 0)
        assert not transport.reading
        protocol.datagrams_received(datagrams("e:1"))
        assert counts(protocol, "received", "abandoned", "lanes") == (8, 7, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert app.errors == []

    run(main)


def test_aclose_waits_for_clean_up_in_handlers(run):
    """A cancelled handler may take its time, swallow the cancellation or fail; nothing starts after it."""

    async def main():
        class Careful(Recorder):
            async def act(self, datagram):
                try:
                    await super().act(datagram)
                except asyncio.CancelledError:
                    for _ in range(5):
                        await asyncio.sleep(0)
                    if datagram == b"block raise":
                        raise OSError from None

        app = Careful()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:block x", "a:block y", "a:1", "b:block raise", "b:1"))
        await settle(protocol)
        app.gates[b"x"].set()
        await settle(protocol)
        assert protocol.stop() == 4
        assert app.active.total() == 2
        await protocol.aclose()
        assert app.active.total() == 0
        assert len(app.begun) == 3
        assert counts(protocol, "handled", "errors", "abandoned", "lanes") == (1, 0, 4, 0)

    run(main)


def test_a_handler_may_stop_the_protocol(run):
    """stop() and aclose() from inside a handler end everything, that handler included."""

    async def main():
        class Stopping(Recorder):
            async def act(self, datagram):
                if datagram == b"stop":
                    await protocol.aclose()
                await super().act(datagram)

        app = Stopping()
        protocol, _ = make(app)
        protocol.datagrams_received(datagrams("a:block x", "b:stop", "c:1"))
        await settle(protocol)
        await protocol.aclose()
        assert counts(protocol, "handled", "abandoned", "lanes") == (0, 3, 0)

    run(main)


def test_a_handler_that_runs_at_once_may_bring_more(run):
    """What comes in during such a handler pauses reading only until it is handled, too."""

    async def main():
        class Bringing(Recorder):
            async def act(self, datagram):
                if datagram == b"more":
                    protocol.datagrams_received(datagrams("b:2"))
                    reading.append(transport.reading)
                await super().act(datagram)

        reading = []
        protocol, transport = make(Bringing(), backlog=1)
        protocol.datagrams_received(datagrams("a:1"))
        await settle(protocol)
        asyncio.get_running_loop().call_soon(protocol.datagrams_received, datagrams("a:more"))
        await settle(protocol)
        assert (reading, transport.reading) == ([False], True)
        assert counts(protocol, "handled", "pending", "lanes") == (3, 0, 1)

    run(main)


@pytest.mark.parametrize("behind", [b"last", b"resume"])
def test_writing_may_pause_and_resume_while_handlers_run_at_once(run, behind):
    """Reading goes on when all of them are through, whatever is handled after the one that lets it."""

    async def main():
        class Writing(Recorder):
            async def act(self, datagram):
                if datagram in (b"pause", b"resume"):
                    (protocol.pause_writing if datagram == b"pause" else protocol.resume_writing)()
                    reading.append(transport.reading)
                await super().act(datagram)

        reading = []
        protocol, transport = make(Writing())
        protocol.datagrams_received(datagrams("a:1"))
        await settle(protocol)
        batch = datagrams("a:pause", "a:resume", f"a:{behind.decode()}")
        asyncio.get_running_loop().call_soon(protocol.datagrams_received, batch)
        await settle(protocol)
        assert (reading[:2], transport.reading) == ([False, False], True)
        assert counts(protocol, "handled", "pending", "lanes") == (4, 0, 1)

    run(main)


def test_drained_and_has_room_return_at_once_when_there_is_nothing(run):
    """Both are immediate on a fresh protocol, and closed() follows connection_lost."""

    async def main():
        protocol, _ = make(Recorder())
        await protocol.drained()
        await protocol.has_room()
        closed = asyncio.ensure_future(protocol.closed())
        await asyncio.sleep(0)
        assert not closed.done()
        protocol.connection_lost(None)
        await closed
        assert await protocol.aclose() is None
        assert counts(protocol, "lanes", "received") == (0, 0)

    run(main)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"backlog": 0}])
def test_impossible_limits_are_refused(run, options):
    """Neither limit may be below one."""

    async def main():
        with pytest.raises(ConfigurationError):
            make(Recorder(), **options)

    run(main)


# Random schedules

VERBS = [
    "return",
    "raise",
    "turn 1",
    "turn 2",
    "turn 3",
    "block",
    "block then raise",
    "dead",
    "suicide",
    "more",
]
PLANS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(VERBS)), min_size=1, max_size=40)
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["deliver", "deliver soon", "turn", "release", "settle", "kick"]), st.integers(1, 9)),
    max_size=40,
)


class Scripted(Recorder):
    """Its datagrams are indices of a plan; blocked handlers wait until they are released."""

    def __init__(self, plan, deliver):
        super().__init__()
        self.plan = plan
        self.deliver = deliver
        self.blocked = []
        self.open = False

    async def act(self, datagram):
        _, verb = self.plan[int(datagram)]
        if verb.startswith("turn"):
            for _ in range(int(verb[-1])):
                await asyncio.sleep(0)
        elif verb.startswith("block") and not self.open:
            future = asyncio.get_running_loop().create_future()
            self.blocked.append(future)
            await future
        elif verb == "dead":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        elif verb == "suicide":
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        elif verb == "more":
            self.deliver(2)
        if verb.endswith("raise"):
            raise ValueError(verb)

    def release(self, k):
        if self.blocked:
            future = self.blocked.pop(k % len(self.blocked))
            if not future.done():
                future.set_result(None)


class Schedule:
    """Plays actions against a protocol and checks what must hold after each."""

    def __init__(self, plan, concurrency, backlog):
        self.items = [(str(i).encode(), (source, i)) for i, (source, _) in enumerate(plan)]
        self.app = Scripted(plan, self.deliver)
        self.protocol, self.transport = make(self.app, concurrency=concurrency, backlog=backlog)
        self.concurrency, self.backlog = concurrency, backlog
        self.at = 0
        self.largest = 0

    def deliver(self, n):
        if self.transport.reading:
            batch = self.items[self.at : self.at + n]
            self.at += len(batch)
            self.largest = max(self.largest, len(batch))
            self.protocol.datagrams_received(batch)

    async def play(self, action, n):
        if action == "deliver":
            self.deliver(n)
        elif action == "deliver soon":
            asyncio.get_running_loop().call_soon(self.deliver, n)
        elif action == "turn":
            for _ in range(n):
                await asyncio.sleep(0)
        elif action == "release":
            self.app.release(n)
        elif action == "kick":
            lanes = sorted(self.protocol._lanes.all, key=lambda lane: lane.task.get_name())
            if lanes:
                lanes[n % len(lanes)].task.cancel()
        else:
            await settle(self.protocol)
            self.check_settled()
        self.check()

    def check(self):
        now = self.protocol.statistics()
        assert now.received == self.at
        assert now.received - len(self.app.begun) == now.pending + now.waiting
        assert now.in_flight <= self.app.active.total() <= self.concurrency
        assert now.handled + now.errors == len(self.app.begun) - now.in_flight
        assert now.lanes <= self.concurrency
        assert min(now.handled, now.errors, now.pending, now.waiting) >= 0
        assert now.pending + now.waiting < self.backlog + 3 * self.largest

    def check_settled(self):
        """Nobody is held up but by a blocked handler of the same source, or for want of a lane."""
        now, active = self.protocol.statistics(), +self.app.active
        assert now.in_flight == active.total()
        assert now.pending == 0 or now.in_flight == self.concurrency
        begun = {int(datagram) for _, datagram in self.app.begun}
        held_up = [i for i in range(self.at) if i not in begun]
        assert len(held_up) == now.waiting + now.pending
        if now.pending == 0:
            assert all(self.app.plan[i][0] in active for i in held_up)
        if self.transport.reading:
            assert now.pending == 0
            assert now.waiting < self.backlog
        else:
            assert now.pending > 0 or now.waiting > self.backlog // 2

    async def finish(self):
        """Let every handler return, deliver the rest, and see each datagram handled once, in order."""
        self.app.open = True
        while self.at < len(self.items) or not self.protocol._lanes.is_drained():
            self.app.release(0)
            self.deliver(7)
            await asyncio.sleep(0)
            self.check()
        await self.protocol.drained()
        for source in "abcde":
            expected = [datagram for datagram, addr in self.items if addr[0] == source]
            assert [datagram for name, datagram in self.app.begun if name == source] == expected
        assert Counter(self.app.begun) == Counter(self.app.ended)
        assert self.transport.reading
        await self.protocol.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("loop_name", LOOPS)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=PLANS,
    actions=ACTIONS,
    concurrency=st.integers(1, 4),
    backlog=st.integers(1, 12),
    step=st.sampled_from([1, 2, 3, 64]),
    turn=st.sampled_from([0.0, DEADLINE]),
    stop=st.booleans(),
)
def test_any_schedule(loop_name, plan, actions, concurrency, backlog, step, turn, stop):  # noqa: PLR0917 - drawn
    """Whatever blocks, fails or is cancelled when: each datagram once, in order per source, within limits."""

    async def main():
        schedule = Schedule(plan, concurrency, backlog)
        for action, n in actions:
            await schedule.play(action, n)
        if not stop:
            await schedule.finish()
            return
        before = schedule.protocol.statistics()
        assert schedule.protocol.stop() == before.pending + before.waiting + before.in_flight
        await schedule.protocol.aclose()
        after = schedule.protocol.statistics()
        assert (after.handled, after.errors, after.lanes) == (before.handled, before.errors, 0)
        assert after.received == after.handled + after.errors + after.abandoned
        assert schedule.app.active.total() == 0
        await asyncio.sleep(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STEP", step)
        patch.setattr(module, "_TURN", turn)
        run_on(loop_name, main)


@pytest.mark.parametrize("loop_name", LOOPS)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=PLANS, sizes=st.lists(st.integers(1, 6), min_size=1), kicks=st.sets(st.integers(0, 30), max_size=3))
def test_any_schedule_of_batches(loop_name, plan, sizes, kicks):
    """In batches too each datagram is handed over exactly once and in order."""

    async def main():
        app = Scripted(plan, lambda _n: None)
        app.open = True
        protocol, transport = make(app, batches=True, backlog=5)
        items = [(str(i).encode(), (source, i)) for i, (source, _) in enumerate(plan)]
        at = turn = 0
        while at < len(items) or not protocol._lanes.is_drained():
            if transport.reading and at < len(items):
                size = sizes[turn % len(sizes)]
                protocol.datagrams_received(items[at : at + size])
                at += size
            if turn in kicks and protocol._lanes.all:
                next(iter(protocol._lanes.all)).task.cancel()
            turn += 1
            await asyncio.sleep(0)
        await protocol.drained()
        assert [item for batch in app.batches for item in batch] == items
        assert counts(protocol, "received", "abandoned") == (len(items), 0)
        await protocol.aclose()

    run_on(loop_name, main)
