"""A few handlers are timed, and all of them handle."""

from __future__ import annotations

import asyncio

import pytest

from aiolb import handler_times
from aiolb.handler_times import BUCKETS, HandlerTimes


class Application:
    """Handlers that note what they got; ``bad`` raises, ``wait`` waits."""

    def __init__(self):
        self.handled = []
        self.go_on = asyncio.Event()

    async def handle(self, datagram, addr):
        """Handle one."""
        if datagram == b"wait":
            await self.go_on.wait()
        self.handled.append((datagram, addr))
        if datagram == b"bad":
            raise ValueError("bad")

    async def handle_batch(self, batch):
        """Handle many."""
        self.handled += batch


@pytest.fixture
def clock(monkeypatch):
    """A clock that is 100 ns later whenever somebody looks."""
    now = iter(range(0, 10**6, 100))
    monkeypatch.setattr(handler_times, "perf_counter_ns", lambda: next(now))


async def test_nobody_is_timed_unasked():
    """Without a sample the handler is the application's own."""
    application = Application()
    times = HandlerTimes(application, batches=False)
    assert times.handle == application.handle
    await times.handle(b"one", 1)
    assert (times.buckets, times.total_ns, application.handled) == ([0] * BUCKETS, 0, [(b"one", 1)])


@pytest.mark.usefixtures("clock")
async def test_a_turn_is_timed():
    """All that one turn of a lane calls is timed, also what raises; the next turn is not."""
    application = Application()
    times = HandlerTimes(application, batches=False)
    times.sample()
    handle = times.handle
    await handle(b"one", 1)
    with pytest.raises(ValueError, match="bad"):
        await handle(b"bad", 2)
    assert times.handle == application.handle
    assert (sum(times.buckets), times.buckets[7], times.total_ns) == (2, 2, 200)
    assert application.handled == [(b"one", 1), (b"bad", 2)]


@pytest.mark.usefixtures("clock")
async def test_waiting_counts():
    """What a handler waits for is in its time, also where it is cancelled."""
    application = Application()
    times = HandlerTimes(application, batches=False)
    times.sample()
    handle = times.handle
    tasks = [asyncio.create_task(handle(b"wait", number)) for number in (1, 2)]
    await asyncio.sleep(0)
    assert sum(times.buckets) == 0
    tasks[1].cancel()
    application.go_on.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(times.buckets) == 2


@pytest.mark.usefixtures("clock")
async def test_batches_are_timed():
    """With batches the time is that of one call for a batch."""
    application = Application()
    times = HandlerTimes(application, batches=True)
    times.sample()
    await times.handle_batch([(b"one", 1), (b"two", 2)])
    await times.handle_batch([(b"three", 3)])
    assert (sum(times.buckets), times.total_ns, len(application.handled)) == (1, 100, 3)


async def test_very_long_times(monkeypatch):
    """A time beyond the last bucket counts there."""
    now = iter((0, 1 << 50))
    monkeypatch.setattr(handler_times, "perf_counter_ns", lambda: next(now))
    times = HandlerTimes(Application(), batches=False)
    times.sample()
    await times.handle(b"one", 1)
    assert times.buckets[-1] == 1
