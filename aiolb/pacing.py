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
class Share:
    """What one of several workers sends of a whole run: that of every ``workers``-th source from ``index`` on.

    The datagrams of a run go to the sources in turn, datagram n to source ``n % sources``; so the shares of
    all workers are the whole run, datagram for datagram, and each is due when it is due in the whole.
    """

    index: int
    workers: int
    sources: int

    @property
    def own_sources(self) -> int:
        """The number of sources of this worker."""
        return self._below(self.sources)

    def of(self, datagrams: int) -> int:
        """How many of the first ``datagrams`` of the whole run are this worker's."""
        rounds, rest = divmod(datagrams, self.sources)
        return rounds * self.own_sources + self._below(rest)

    def nth(self, n: int) -> int:
        """The place in the whole run of this worker's datagram ``n``, both from 0."""
        rounds, place = divmod(n, self.own_sources)
        return rounds * self.sources + self.index + place * self.workers

    def _below(self, limit: int) -> int:
        return max(0, -((self.index - limit) // self.workers))


WHOLE = Share(0, 1, 1)
"""The share of a lone worker."""


@dataclass(frozen=True, slots=True)
class Step:
    """Send ``datagrams`` now, then wait ``pause`` seconds."""

    datagrams: int
    pause: float


class Pacer:
    """What a run does next: send what is due, then wait a millisecond or more for the next.

    A run ends once it sent ``count`` datagrams, or after ``duration`` seconds, whichever comes first. With a
    rate, a duration gives the datagrams due before its end: 100 per second for 1 second are 100. If sending
    lags behind, they may take up to CATCH_UP seconds longer; what is left then is given up. Datagrams come
    ``train`` at a time, when the last of them is due; only the end of a run may have fewer. ``rate`` and
    ``count`` are those of the whole run, of which ``share`` is sent here.
    """

    def __init__(
        self,
        rate: float | None,
        start: float,
        *,
        count: int | None = None,
        duration: float | None = None,
        train: int = 1,
        share: Share = WHOLE,
    ) -> None:
        self._schedule = Schedule(rate, start)
        self._share = share
        self._train = train
        self._count = UNLIMITED if count is None else share.of(count)
        self._end = math.inf if duration is None else start + duration
        self._total = self._count
        if duration is not None and self._schedule.rate is not None:
            self._total = min(self._count, share.of(self._schedule.due_before(self._end)))

    @property
    def end(self) -> float:
        """The time in seconds at which the duration is over, or infinity."""
        return self._end

    def step(self, now: float, done: int) -> Step | None:
        """What to do at ``now`` when ``done`` datagrams are behind us; None when the run is over.

        The pause is the one to make when all of the step's datagrams went out, and is 0 at the end.
        """
        due = self._due(now)
        if done >= self._count or (now >= self._end and (done >= due or now >= self._end + CATCH_UP)):
            return None
        due = max(due, done)
        return Step(due - done, self._pause(now, due))

    def _due(self, now: float) -> int:
        if self._schedule.rate is None:
            return self._total if now < self._end else 0
        due = min(self._share.of(self._schedule.due(now)), self._total)
        return due if due == self._total else due - due % self._train

    def _pause(self, now: float, done: int) -> float:
        if done >= self._count or now >= self._end:
            return 0.0
        if done >= self._total:
            return self._end - now
        last_of_next = min(done + self._train, self._total) - 1
        due = self._schedule.time_of(self._share.nth(last_of_next))
        return min(max(due - now, SHORTEST_PAUSE), self._end - now)


def validate_speed(speed: float) -> float:
    """How many times as fast as it was recorded. Raises ConfigurationError when it is not above 0 and finite."""
    if not 0 < speed < math.inf:
        raise ConfigurationError(
            f"the speed is {speed:g}, which is not above 0", hint="--speed 2 is twice as fast, --speed 0.5 half as fast"
        )
    return float(speed)


class Timeline:
    """When recorded datagrams are due: as far apart as they were recorded, ``speed`` times as fast, from ``start`` on.

    Clocks that were set back in between cost no time: a datagram is due with the one before it at the earliest.
    Raises ConfigurationError when the speed is not above 0 and finite.
    """

    def __init__(self, start: float, *, speed: float = 1.0) -> None:
        self._speed = validate_speed(speed)
        self._due = self._began = start
        self._first: float | None = None

    def due(self, recorded: float | None) -> float:
        """When the next datagram is due, which was recorded at that time in seconds; with the last one for None."""
        if recorded is not None:
            if self._first is None:
                self._first = recorded
            self._due = max(self._due, self._began + (recorded - self._first) / self._speed)
        return self._due

    def rewind(self) -> None:
        """Begin a round: its first datagram is due with the last one before it."""
        self._began = self._due
        self._first = None


class Beat:
    """When recorded datagrams are due that are sent at a rate: like a :class:`Timeline`, whatever was recorded."""

    def __init__(self, start: float, rate: float | None) -> None:
        self._schedule = Schedule(rate, start)
        self._n = 0

    def due(self, _recorded: float | None) -> float:
        """When the next datagram is due."""
        self._n += 1
        return self._schedule.time_of(self._n - 1)

    def rewind(self) -> None:
        """The beat goes on."""
