"""Waiting: who comes first decides, and nothing goes on behind the waiter's back."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from aiolb.waiting import happens, run_until


class Work:
    """Work that takes for ever, and tells how it ended."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.cleaned_up = False

    async def __call__(self):
        """Begin, and wait to be cancelled."""
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned_up = True


async def test_work_that_ends():
    """Work that ends by itself is done, though the event never came."""
    done = []

    async def work():
        await asyncio.sleep(0)
        done.append(1)

    await run_until(asyncio.Event(), work())
    assert done == [1]


async def test_work_that_fails():
    """What the work raises is raised."""

    async def fail():
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        await run_until(asyncio.Event(), fail())


async def test_the_event_ends_the_work():
    """When the event is set the work is cancelled, and has ended."""
    event, work = asyncio.Event(), Work()
    waiting = asyncio.create_task(run_until(event, work()))
    await work.begun.wait()
    assert not work.cleaned_up
    event.set()
    await waiting
    assert work.cleaned_up


async def test_time_ends_the_work():
    """When the seconds are over the work is cancelled, and has ended."""
    work = Work()
    await run_until(asyncio.Event(), work(), seconds=0.001)
    assert work.cleaned_up


async def test_the_waiter_is_cancelled():
    """Who waits may be cancelled: then the work has ended too, and no task is left."""
    work = Work()
    waiting = asyncio.create_task(run_until(asyncio.Event(), work()))
    await work.begun.wait()
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()
    assert work.cleaned_up
    await asyncio.sleep(0)  # who waited for the event ends too
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_it_happens():
    """An event that is set, now or later, has happened, however long was to be waited."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    assert await happens(event)
    assert await happens(event, seconds=0)


async def test_it_does_not_happen():
    """An event that is not set in time has not happened."""
    assert not await happens(asyncio.Event(), seconds=0)
    assert not await happens(asyncio.Event(), seconds=0.001)
