"""Datagrams that each have a time: sent when they are due, one by one, and never before."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from aiolb.alarm import Alarm
from aiolb.histogram import Histogram
from aiolb.pacing import CATCH_UP
from aiolb.send.refusals import BLOCKED, name_of
from aiolb.send.sources import Source

TURN = 0.001
"""Seconds of sending after which the event loop gets a turn."""


class Planned(NamedTuple):
    """What is to leave, from which source, and when (seconds, monotonic clock); sent before the next is made."""

    due: float
    source: Source
    datagram: bytes | bytearray


class Timed:
    """Sends a plan, and counts; close it in the loop that it ran in. Raises OSError without a descriptor left.

    Like the publisher's, it is open-loop: what is late is sent at once, and moves nothing that comes after it.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.bytes = 0
        self.failed = 0
        self.errors: Counter[str] = Counter()
        self.late = Histogram()
        """How long after they were due datagrams were sent, in nanoseconds."""
        self._clock = time.monotonic  # not loop.time(), which uvloop rounds to milliseconds
        self._alarm = Alarm()
        self._stopping = False
        self._blocked: Source | None = None
        self._began: float | None = None
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """How long sending took, or has taken so far."""
        return self._seconds if self._began is None else self._clock() - self._began

    async def run(self, plan: Iterable[Planned | None], *, end: float = math.inf) -> None:
        """Send the plan, or what fits until CATCH_UP seconds after ``end``, or until stop().

        A None in the plan gives the event loop its turn when it is time. What the plan raises comes through.
        """
        self._began = self._clock()
        try:
            await self._run(plan, end + CATCH_UP)
        finally:
            self._seconds = self._clock() - self._began
            self._began = None

    async def _run(self, plan: Iterable[Planned | None], end: float) -> None:
        turn_ends = self._clock() + TURN
        for item in plan:
            now = self._clock()
            if item is not None and item.due > now:
                await self._alarm.wait(item.due - now)
                turn_ends = self._clock() + TURN
            elif now >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = self._clock() + TURN
            if self._stopping or now >= end:
                return
            if item is not None:
                await self._send(item, end)

    def stop(self) -> None:
        """End run() at once, or the next one before it sends."""
        self._stopping = True
        self._alarm.ring()
        if self._blocked is not None:
            self._blocked.wake()

    def close(self) -> None:
        """Give the timer back."""
        self._alarm.close()

    async def _send(self, item: Planned, end: float) -> None:
        """Send one datagram; waits while the kernel's queue is full, until the end of the run or stop()."""
        source, late = item.source, self._clock() - item.due
        while True:
            try:
                source.send_settled(item.datagram, self.count_error)
                break
            except OSError as error:
                number = error.errno or -1
            if number not in BLOCKED:
                self.count_error(number)
                self.failed += 1
                return
            self.errors["blocked"] += 1
            self._blocked = source
            await source.wait_for_room(number, end - self._clock())
            self._blocked = None
            late = self._clock() - item.due
            if self._stopping or self._clock() >= end:
                return
        self.sent += 1
        self.bytes += len(item.datagram)
        self.late.record(round(late * 1e9))

    def count_error(self, number: int) -> None:
        """Count what the kernel said, under its name."""
        self.errors[name_of(number)] += 1
