"""The open-loop schedule of a publisher, given the time; pure."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from aiolb.errors import ConfigurationError

UNLIMITED = sys.maxsize
"""What :meth:`Schedule.due` answers when nothing limits the rate."""

MAX_RATE = 1e9
"""Datagrams per second; beyond it a monotonic clock in a float cannot tell two of them apart."""

BURST = 256
"""Datagrams sent before the event loop gets a turn: about 1 ms of ``socket.send``."""

SHORTEST_PAUSE = 0.001
"""Seconds: the resolution of epoll and of uvloop's timers, so waking more often only burns a core."""

CATCH_UP = 0.1
"""Seconds past its duration that a run may take to send what was due before its end."""


def validate_rate(rate: float | None) -> float | None:
    """The rate in datagrams per second, or None for no limit (also spelled infinity).

    Raises ConfigurationError when it is not above 0 and at most MAX_RATE.
    """
    if rate is None or rate == math.inf:
        return None
    if not 0 < rate <= MAX_RATE:
        raise ConfigurationError(
            f"the rate is {rate:g}, which is not above 0 and at most {MAX_RATE:,.0f} datagrams per second",
            hint="give datagrams per second, or no rate (--rate max) to send as fast as possible",
        )
    return float(rate)


class Schedule:
    """Datagram n (from 0) is due at ``start + n / rate`` seconds, whatever happened before.

    Nothing is summed up, so nothing drifts. ``rate`` is in datagrams per second; None or infinity
    makes every datagram due at the start. Raises ConfigurationError for any other rate that is not
    above 0 and at most MAX_RATE.
    """

    def __init__(self, rate: float | None, start: float) -> None:
        self.rate = validate_rate(rate)
        self.start = start

    def time_of(self, n: int) -> float:
        """The time in seconds at which datagram ``n`` is due, on the clock that gave ``start``."""
        return self.start if self.rate is None else self.start + n / self.rate

    def due(self, now: float) -> int:
        """The number of datagrams due by ``now``, that moment included; agrees with :meth:`time_of`."""
        if now < self.start:
            return 0
        if self.rate is None:
            return UNLIMITED
        count = math.floor((now - self.start) * self.rate)
        # Multiplying and dividing round differently: settle the last place by time_of alone.
        while self.time_of(count) <= now:
            count += 1
        while count and self.time_of(count - 1) > now:
            count -= 1
        return count

    def due_before(self, moment: float) -> int:
        """The number of datagrams due before ``moment``, that moment excluded."""
        return self.due(math.nextafter(moment, -math.inf))


@dataclass(frozen=True, slots=True)
class Step:
    """Send ``datagrams`` now, then wait ``pause`` seconds; a pause of 0 only gives the event loop a turn."""

    datagrams: int
    pause: float


class Pacer:
    """What a run does next: bursts of bounded length, and pauses of a millisecond or more between them.

    A run ends once it sent ``count`` datagrams, or after ``duration`` seconds, whichever comes first. With a
    rate, a duration gives the datagrams due before its end: 100 per second for 1 second are 100. If sending
    lags behind, they may take up to CATCH_UP seconds longer; what is left then is given up.
    """

    def __init__(
        self, rate: float | None, start: float, *, count: int | None = None, duration: float | None = None
    ) -> None:
        self._schedule = Schedule(rate, start)
        self._count = UNLIMITED if count is None else count
        self._end = math.inf if duration is None else start + duration

    @property
    def end(self) -> float:
        """The time in seconds at which the duration is over, or infinity."""
        return self._end

    def step(self, now: float, done: int) -> Step | None:
        """What to do at ``now`` when ``done`` datagrams are behind us; None when the run is over."""
        due = self._due(now)
        if done >= self._count or (now >= self._end and (done >= due or now >= self._end + CATCH_UP)):
            return None
        behind = due - done
        if behind > BURST:
            return Step(BURST, 0.0)
        return Step(max(behind, 0), self._pause(now, max(done, due)))

    def _due(self, now: float) -> int:
        if now < self._end:
            return min(self._schedule.due(now), self._count)
        if self._schedule.rate is None:
            return 0
        return min(self._schedule.due_before(self._end), self._count)

    def _pause(self, now: float, done: int) -> float:
        if done >= self._count or now >= self._end:
            return 0.0
        return min(max(self._schedule.time_of(done) - now, SHORTEST_PAUSE), self._end - now)
