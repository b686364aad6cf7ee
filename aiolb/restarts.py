"""What to do when a worker of a member dies: start another at once, or after a back-off; pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from random import Random

from aiolb.errors import ConfigurationError

DAY = 86_400
"""Seconds; no duration of a policy is longer."""

MAX_LIMIT = 1000
"""Deaths that are remembered at most, so that a policy cannot ask for memory without end."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a worker is started again, and when its member is flapping.

    A member is flapping when its workers die more than ``limit`` times within ``window`` seconds. Erlang's
    restart intensity and systemd's StartLimitBurst say it the same way and then give up; here the member is
    taken out of the group and retried after a back-off.

    The back-off has equal jitter: it is drawn from the upper half of a ceiling that starts at ``first`` seconds
    and grows by ``factor`` up to ``longest``. Full jitter (from zero up) spreads many clients of one service
    better, but knows no shortest pause; here few workers retry, each costs a whole start, and a pause that is
    never short is what keeps the machine free. Terms: M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015.

    So restarts are bounded, whenever the worker chooses to die. In any ``window`` at most ``limit`` are at once.
    The others each wait half a ceiling or more, and the ceiling is ``first`` again only once a worker stayed up
    for ``settle`` seconds. With the defaults that makes at most 21 in any minute: 5 at once and 16 after a
    back-off, by workers that alternate between dying and just settling (the tests derive the number). One that
    never settles is soon started once in 30 to 60 seconds.

    Args:
        limit: deaths within the window that are no flapping, 0 … 1000.
        window: seconds that a death counts.
        first: ceiling of the first back-off in seconds.
        factor: growth of the ceiling from one back-off to the next, 1 or more.
        longest: the highest ceiling in seconds.
        settle: seconds that a retried worker has to stay up before its member is put back.

    Durations are above 0 and at most a day. Raises ConfigurationError for anything else.

    """

    limit: int = 5
    window: float = 60.0
    first: float = 1.0
    factor: float = 2.0
    longest: float = 60.0
    settle: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= MAX_LIMIT:
            raise ConfigurationError(f"the limit is 0 to {MAX_LIMIT} deaths, not {self.limit}")
        _check_seconds("window of the limit", self.window)
        _check_seconds("first back-off", self.first)
        _check_seconds("longest back-off", self.longest)
        _check_seconds("time to settle", self.settle)
        if not 1 <= self.factor < math.inf:
            raise ConfigurationError(f"a back-off grows by a factor of 1 or more, not {self.factor:g}")
        if self.longest < self.first:
            raise ConfigurationError(
                f"the longest back-off of {self.longest:g} s is shorter than the first of {self.first:g} s"
            )

    def ceiling_after(self, ceiling: float | None) -> float:
        """The ceiling in seconds of the back-off that follows one with this ceiling; None: of the first."""
        return self.first if ceiling is None else min(ceiling * self.factor, self.longest)


def _check_seconds(name: str, value: float) -> None:
    if not 0 < value <= DAY:
        raise ConfigurationError(f"the {name} is above 0 and at most {DAY:,} seconds, not {value:g}")


@dataclass(frozen=True, slots=True)
class Restart:
    """The answer to a death: start another worker in ``delay`` seconds."""

    delay: float
    """Seconds from the death to the start; 0 is at once."""
    out: bool
    """Whether the member belongs outside of the group from now on."""


AT_ONCE = Restart(0.0, out=False)
"""What a death in a healthy member is answered with."""


class Restarts:
    """The deaths of one member's workers, and what follows from them.

    ``now`` is always in seconds of one monotonic clock. Only a worker that ended by itself has died; one that
    was stopped by order has not. The supervisor says what happens and does what it is told::

        restart = restarts.died(now)   # start a worker in restart.delay seconds; the member is out if restart.out
        restarts.ready(now)            # that worker reported ready; ask now and then whether it has settled
        if restarts.settled(now):      # it stayed up: put the member back

    A worker may be started before its delay is over, e.g. because an operator asked for new ones.

    Args:
        policy: the settings.
        rng: gives the jitter of the back-off.

    """

    def __init__(self, policy: RestartPolicy, rng: Random) -> None:
        self.policy = policy
        self._rng = rng
        # One more than the limit is all it takes to see that there were more within the window.
        self._deaths: deque[float] = deque(maxlen=policy.limit + 1)
        self._ceiling: float | None = None
        self._settled_at: float | None = None

    @property
    def out(self) -> bool:
        """Whether the member belongs outside of the group: from the death that was one too many until settled."""
        return self._ceiling is not None

    def died(self, now: float) -> Restart:
        """The worker ended by itself, whether it had been ready or not.

        A worker that stayed up for the time to settle has settled, even if nobody asked in time. So the answer
        may have a member back in the group that was out before: compare its ``out`` with what is.
        """
        self.settled(now)
        self._settled_at = None
        self._deaths.append(now)
        if not self.out and not self._flapping(now):
            return AT_ONCE
        self._ceiling = self.policy.ceiling_after(self._ceiling)
        return Restart(self._rng.uniform(self._ceiling / 2, self._ceiling), out=True)

    def ready(self, now: float) -> None:
        """A worker reported ready. If the member is out, the time to settle starts, anew if it had started."""
        if self.out:
            self._settled_at = now + self.policy.settle

    def settled(self, now: float) -> bool:
        """Whether the member is to be put back; true once.

        From then on it is in the group and its back-off starts with ``first`` again, but earlier deaths count
        as long as they are within the window: the next one may well take it out again.
        """
        if self._settled_at is None or now < self._settled_at:
            return False
        self._ceiling = self._settled_at = None
        return True

    def _flapping(self, now: float) -> bool:
        return len(self._deaths) > self.policy.limit and now - self._deaths[0] < self.policy.window
