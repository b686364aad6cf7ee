"""Collectors without a socket: what a test sees of order, concurrency, errors, replies, start and stop."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
from recording import Recording

from aiolb import AiolbError, Collector, ConfigurationError
from aiolb.builtin import Echo
from aiolb.receive import choose
from aiolb.server import ApplicationError
from aiolb.testing import SOURCE, UnhandledError, collector

A, B = ("192.0.2.1", 1), ("192.0.2.2", 2)

pytestmark = pytest.mark.usefixtures("logged", "nothing_left")


@pytest.fixture(autouse=True)
def _parts(parts, monkeypatch):
    """Run every test on the plain parts and on the compiled ones."""
    monkeypatch.setattr(choose, "best", lambda: parts)


async def until(condition):
    """Wait until the condition holds; the deadline is that of the run."""
    while not condition():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)


class Recorder(Recording, Collector):
    """Notes what happens to it; ``wait`` waits for ``gate``, ``raise …`` raises."""

    async def handle(self, datagram, addr):
        """Note it, and do what it says."""
        self.calls.append((datagram, addr))
        if datagram == b"wait":
            await self.gate.wait()
        if datagram.startswith(b"raise"):
            raise ValueError(datagram.decode())
        if datagram == b"cancel":
            raise asyncio.CancelledError


def test_the_life_of_a_collector(run):
    """startup() comes before the first datagram, shutdown() after the last, and all of it is counted."""

    async def live():
        async with collector(Recorder, index=2, count=5) as member:
            assert member.collector.calls == ["startup"]
            await member.feed(b"1")
            await member.feed(b"", B)
            assert (member.stopping, member.collector.statistics()) == (False, member.statistics())
            member.put(b"last")
        return member

    member = run(live())
    assert member.collector.calls == ["startup", (b"1", SOURCE), (b"", B), (b"last", SOURCE), "shutdown"]
    statistics = member.statistics()
    assert (statistics.index, statistics.count, statistics.received, statistics.handled) == (2, 5, 3, 3)
    assert (statistics.received_bytes, statistics.queued_bytes, statistics.abandoned) == (5, 0, 0)
    assert member.stopping


def test_replies(run):
    """What is replied is kept with its address, also outside of handlers, and counted."""

    async def live():
        async with collector(Echo()) as member:
            await member.feed(b"one", A)
            await member.feed(b"two", ("2001:db8::1", 5, 0, 0))
            member.collector.reply(bytearray(b"unasked"), B)
            assert member.replies == [(b"one", A), (b"two", ("2001:db8::1", 5, 0, 0)), (b"unasked", B)]
            assert (member.statistics().sent, member.statistics().sent_bytes) == (3, 13)

    run(live())


@pytest.mark.parametrize(
    ("data", "addr", "error"), [("text", A, TypeError), (b"x", None, ValueError), (b"x" * 65508, A, None)]
)
def test_replies_that_cannot_be_sent(run, data, addr, error):
    """They are refused as a socket refuses them: wrong arguments are raised, what is too long is counted."""

    class Wrong(Collector):
        async def handle(self, _datagram, _addr):
            self.reply(data, addr)

    async def live():
        async with collector(Wrong, raise_errors=False) as member:
            await member.feed(b"x")
        assert (member.replies, [type(raised) for raised in member.errors]) == ([], [error] if error else [])
        return member.statistics().send_errors

    assert run(live()) == (error is None)


def test_order_and_concurrency(run):
    """A handler that waits holds up its own source only, whose datagrams are handled in order."""

    async def live():
        async with collector(Recorder) as member:
            for datagram in (b"wait", b"behind it", b"and last"):
                member.put(datagram, A)
            await member.feed(b"quick", B)
            assert member.collector.calls[1:] == [(b"wait", A), (b"quick", B)]
            assert (member.statistics().in_flight, member.statistics().waiting) == (1, 2)
            member.collector.gate.set()
            await member.drained()
            assert member.collector.calls[3:] == [(b"behind it", A), (b"and last", A)]

    run(live())


def test_backpressure(run):
    """With all handlers waiting nothing more is taken off the queue, until one ends."""

    async def live():
        async with collector(Recorder, concurrency=2) as member:
            for number in range(4):
                member.put(b"wait", ("192.0.2.7", number))  # one source
                member.put(b"wait", (f"192.0.2.{number + 10}", 1))
            await until(lambda: member.statistics().in_flight == 2)
            for _ in range(10):
                await asyncio.sleep(0)
            assert member.statistics().in_flight == 2
            member.put(b"in the queue")
            await asyncio.sleep(0)
            assert (member.statistics().received, member.statistics().queued_bytes) == (8, 12)
            member.collector.gate.set()
            await member.drained()
            return member.statistics()

    assert run(live()).handled == 9


def test_batches(run):
    """What was put before the loop turned arrives as one batch, of 64 datagrams at most."""

    class Bulk(Collector):
        async def handle_batch(self, batch):
            sizes.append(len(batch))
            if batch[0][0] == b"bad":
                raise ValueError

    async def live():
        async with collector(Bulk) as member:
            for number in range(65):
                member.put(b"%d" % number)
            await member.drained()
            member.put(b"bad")
            with pytest.raises(ValueError, match=r"^$"):
                await member.feed(b"in the same batch")
            return member.statistics()

    sizes = []
    statistics = run(live())
    assert (sizes, statistics.handled, statistics.errors) == ([64, 1, 2], 65, 2)


def test_an_error_is_raised_by_who_waits_for_it(run):
    """feed() raises what the handler of its own datagram raised; it was counted and given to on_error() too."""

    class Telling(Recorder):
        def on_error(self, error, datagram, addr):
            self.calls.append((str(error), datagram, addr))

    async def live():
        async with collector(Telling) as member:
            with pytest.raises(ValueError, match="raise me"):
                await member.feed(b"raise me", A)
            await member.feed(b"fine", B)
            await member.drained()
        return member

    member = run(live())
    assert member.collector.calls[2:4] == [("raise me", b"raise me", A), (b"fine", B)]
    assert [str(error) for error in member.errors] == ["raise me"]
    assert member.statistics().errors == 1


def test_equal_datagrams_are_told_apart_by_their_order(run):
    """feed() waits for its own datagram, also behind an equal one that was put before."""

    class Once(Recorder):
        async def handle(self, datagram, addr):
            await super().handle(datagram, addr)
            if len(self.calls) == 3:
                raise KeyError("second")

    async def live():
        async with collector(Once) as member:
            member.put(b"x")
            with pytest.raises(KeyError, match="second"):
                await member.feed(b"x")

    run(live())


def test_an_error_that_nobody_waited_for(run):
    """drained(), or the end of the block, raises what was raised meanwhile; several errors as a group; each once."""

    async def live():
        async with collector(app) as member:
            member.put(b"raise 1")
            member.put(b"raise 2")
            with pytest.raises(ExceptionGroup, match="handlers raised 2 errors") as caught:
                await member.drained()
            assert [str(error) for error in caught.value.exceptions] == ["raise 1", "raise 2"]
            member.put(b"raise 3")

    app = Recorder()
    with pytest.raises(ValueError, match="raise 3"):
        run(live())
    assert app.calls[-1] == "shutdown"


def test_errors_that_are_not_raised(run):
    """When asked, errors are kept and nothing more."""

    async def live():
        async with collector(Recorder, raise_errors=False) as member:
            await member.feed(b"raise 1")
            member.put(b"raise 2")
            await member.drained()
        return member.errors

    assert [str(error) for error in run(live())] == ["raise 1", "raise 2"]


def test_the_error_of_the_test_comes_first(run):
    """What the test itself raises is not hidden by what handlers raised."""

    async def live():
        async with collector(Recorder) as member:
            member.put(b"raise")
            raise LookupError("the test's")

    with pytest.raises(LookupError, match="the test's"):
        run(live())


def test_a_handler_that_cancels_itself(run):
    """It is an error that does not cancel the test."""

    async def live():
        async with collector(Recorder) as member:
            with pytest.raises(AiolbError, match="a handler was cancelled, and not by its server") as caught:
                await member.feed(b"cancel")
            assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert [type(error) for error in member.errors] == [asyncio.CancelledError]

    run(live())


def test_a_handler_that_never_ends(run):
    """After the deadline that is told with numbers; the stop gives up what is still handled, and counts it."""

    async def live():
        async with collector(Recorder, deadline=0.01, graceful_timeout=0) as member:
            with pytest.raises(UnhandledError, match=r"^1 of 1 datagrams not handled after 0\.01 s") as caught:
                await member.feed(b"wait")
            member.put(b"behind")
            with pytest.raises(UnhandledError, match=r"^2 of 2 datagrams"):
                await member.drained()
        assert caught.value.hint
        return member

    member = run(live())
    assert member.statistics().abandoned == 2
    assert member.collector.calls[-1] == "shutdown"
    assert member.errors == []


@pytest.mark.parametrize("raise_errors", [True, False])
def test_who_waits_when_the_collector_stops(run, raise_errors):
    """A stop ends the waiting for what it gives up, whatever handlers' errors do; afterwards nothing can be put."""

    async def live():
        async with collector(Recorder, graceful_timeout=0, raise_errors=raise_errors) as member:
            feeding = [asyncio.create_task(member.feed(datagram)) for datagram in (b"wait", b"behind")]
            await until(lambda: member.statistics().in_flight)
            await member.stop()
            await member.stop()
            for task in feeding:
                with pytest.raises(UnhandledError, match="the collector stopped before the datagram was handled"):
                    await task
            with pytest.raises(AiolbError, match="Recorder has stopped, and receives nothing"):
                member.put(b"late")
            member.collector.reply(b"late", A)
        assert member.replies == []

    run(live())


def test_a_collector_that_asks_to_stop(run):
    """It is told, and nothing else happens: the test decides."""

    class Once(Echo):
        async def handle(self, datagram, addr):
            self.stop()
            self.reply(datagram, addr)

    async def live():
        async with collector(Once) as member:
            await member.feed(b"1")
            assert member.stopping
            await member.feed(b"2")
            return len(member.replies)

    assert run(live()) == 2


def test_startup_and_shutdown_in_one_task(run):
    """What startup() enters, shutdown() may leave, and handlers see the context that startup() made."""

    class Grouped(Echo):
        async def startup(self):
            self.group = asyncio.TaskGroup()
            await self.group.__aenter__()

        async def handle(self, datagram, addr):
            self.group.create_task(self.later(datagram, addr))

        async def later(self, datagram, addr):
            self.reply(datagram, addr)

        async def shutdown(self):
            await self.group.__aexit__(None, None, None)

    async def live():
        async with collector(Grouped) as member:
            await member.feed(b"x")
            await until(lambda: member.replies)
        return member.replies

    assert run(live()) == [(b"x", SOURCE)]


@pytest.mark.parametrize("failing", ["startup", "shutdown"])
def test_a_start_or_a_stop_that_fails(run, logged, failing):
    """A failed start is an ApplicationError with its cause; what shutdown() raises is raised at the end."""

    async def fail(self):  # noqa: ARG001 - as methods are
        raise RuntimeError("no")

    cls = type("Failing", (Recorder,), {failing: fail})

    async def live():
        async with collector(cls) as member:
            await member.feed(b"x")

    expected = {"startup": ApplicationError, "shutdown": RuntimeError}[failing]
    with pytest.raises(expected, match="no"):
        run(live())
    errors = [event["event"] for event in logged if event["log_level"] == "error"]
    assert errors == {"startup": [], "shutdown": ["shutdown_failed"]}[failing]


def test_a_start_that_is_cancelled(run):
    """A test that gives up during startup() leaves nothing running."""

    class Slow(Recorder):
        async def startup(self):
            begun.set()
            await asyncio.Event().wait()

    begun = asyncio.Event()

    async def live():
        async def start():
            async with collector(Slow):
                raise AssertionError

        starting = asyncio.create_task(start())
        await begun.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("aiolb")]

    assert run(live()) == []


def test_timestamps(run):
    """A collector with timestamps is told the given time, or that of the test."""

    class Timed(Collector):
        timestamps = True

        async def handle(self, _datagram, _addr):
            times.append(self.received_at)

    async def live():
        async with collector(Timed) as member:
            await member.feed(b"x", received_at=5)
            await member.feed(b"x")

    times, begin = [], time.time_ns()
    run(live())
    assert times[0] == 5
    assert begin <= times[1] <= time.time_ns()


def test_what_cannot_work(run):
    """Unusable classes and settings, a change of the user, and a payload that no datagram has are refused."""

    class Nothing(Collector):
        pass

    async def live(app, **settings):
        async with collector(app, **settings) as member:
            await member.feed(b"x" * 65508)

    for app in (Nothing, Nothing(), partial(Nothing)):
        with pytest.raises(ConfigurationError, match="Nothing overrides neither handle nor handle_batch"):
            run(live(app))
    with pytest.raises(ConfigurationError, match="concurrency"):
        run(live(Echo, concurrency=0))
    with pytest.raises(ConfigurationError, match="a test keeps its user"):
        run(live(Echo, user="nobody"))
    with pytest.raises(TypeError, match="'bind'"):
        run(live(Echo, bind="127.0.0.1:0"))
    with pytest.raises(AiolbError, match="no datagram has 65508 bytes"):
        run(live(Echo))


def test_before_the_start(run):
    """A member that was made by hand receives nothing before it is started."""

    async def live():
        async with collector(Echo) as member:
            pass
        member._listener = None
        with pytest.raises(AiolbError, match="Echo has not been started"):
            member.put(b"x")

    run(live())
