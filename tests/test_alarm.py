"""An alarm wakes up who waits for it: after the time, not before it, and at once when it is rung."""

from __future__ import annotations

import asyncio
import time

import pytest

from aiolb.alarm import Alarm
from aiolb.bpf import syscall


@pytest.mark.usefixtures("nothing_left")
def test_it_waits(run):
    """Each wait takes its time at least, and the alarm gives its descriptor back."""

    async def wait():
        alarm = Alarm()
        try:
            for seconds in (0.002, 0.0, 0.0003):
                began = time.monotonic()
                await alarm.wait(seconds)
                assert time.monotonic() - began >= seconds
        finally:
            alarm.close()

    run(wait())


@pytest.mark.usefixtures("nothing_left")
def test_it_rings(run):
    """A wait of an hour ends when the alarm is rung, and the next one waits again."""

    async def ring():
        alarm = Alarm()
        try:
            alarm.ring()  # nobody waits
            waiting = asyncio.create_task(alarm.wait(3600))
            await asyncio.sleep(0)
            alarm.ring()
            alarm.ring()
            await waiting
            await alarm.wait(0.001)
        finally:
            alarm.close()

    run(ring())


@pytest.mark.usefixtures("nothing_left")
def test_a_wait_that_is_cancelled(run):
    """A task that waits can be cancelled, and another one can wait."""

    async def cancel():
        alarm = Alarm()
        try:
            waiting = asyncio.create_task(alarm.wait(3600))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await alarm.wait(0.001)
        finally:
            alarm.close()

    run(cancel())


@pytest.mark.usefixtures("nothing_left")
def test_a_timer_of_the_kernel_fails_as_an_oserror():
    """What the kernel refuses is an OSError that names the call."""
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        syscall.timer_set(-1, 1)
    assert caught.value.filename == "timerfd_settime"
