"""When a worker has served long enough to be replaced by a fresh one: ``--recycle-after``; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from aiolb.errors import ConfigurationError

JITTER_PERCENT = 10
"""How far a worker's own limits may be from those of the policy, either way."""

MAX_DATAGRAMS = 10**18
"""More than a worker can handle in its life: 30,000 years at a million per second."""

MIN_SECONDS = 1
"""Seconds; a worker that is replaced sooner does little but start."""

MAX_SECONDS = 1000 * 86_400
"""Seconds: a thousand days, by which the machine was restarted anyway."""

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_DATAGRAMS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}

# As many digits as any limit needs, and few enough that no number of a user's is ever infinite.
_NUMBER = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)([A-Za-z]?)")

_DURATION_HINT = "write seconds, or a number and s, m, h or d, e.g. 30, 30s, 90m, 1.5h or 1d"
_RECYCLE_HINT = (
    "write datagrams (1000000, 500k, 1M), a duration (30s, 90m, 12h, 1d), or both with a comma: 1M,12h; "
    "M is millions and m is minutes"
)


def parse_duration(text: str) -> float:
    """Read a duration in seconds: ``30``, ``30s``, ``90m``, ``1.5h`` or ``1d``; 0 is one too.

    >>> parse_duration("1.5h")
    5400.0

    Raises ConfigurationError when it is none; which durations make sense is for the caller to say.
    """
    number = _parse_number(text.strip(), _SECONDS)
    if number is None:
        raise ConfigurationError(f"{text!r} is no duration", hint=_DURATION_HINT)
    return float(number)


@dataclass(frozen=True, slots=True)
class RecycleLimit:
    """The limits of one worker, drawn once when it starts; see :meth:`RecyclePolicy.draw`."""

    datagrams: int | None
    """Datagrams after which it is replaced, or None."""
    seconds: float | None
    """Seconds after which it is replaced, or None."""

    def due(self, now: float, started: float, datagrams: int) -> bool:
        """Whether the worker is to be replaced, because one of its limits is reached.

        ``now`` and the time at which it ``started`` are seconds of one monotonic clock; ``datagrams`` is how
        many it received since then.
        """
        return (self.seconds is not None and now - started >= self.seconds) or (
            self.datagrams is not None and datagrams >= self.datagrams
        )


@dataclass(frozen=True, slots=True)
class RecyclePolicy:
    """Replace a worker after so many datagrams, or so many seconds, or whichever of both comes first.

    Args:
        datagrams: 1 … 10^18, or None.
        seconds: 1 … a thousand days, or None.

    Raises ConfigurationError for anything else, and when both are None.

    """

    datagrams: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.datagrams is None and self.seconds is None:
            raise ConfigurationError("nothing says after what a worker is recycled", hint=_RECYCLE_HINT)
        if self.datagrams is not None and not 1 <= self.datagrams <= MAX_DATAGRAMS:
            raise ConfigurationError(
                f"a worker is recycled after 1 to 10^18 datagrams, not {self.datagrams}", hint=_RECYCLE_HINT
            )
        if self.seconds is not None and not MIN_SECONDS <= self.seconds <= MAX_SECONDS:
            raise ConfigurationError(
                f"a worker is recycled after 1 second to 1000 days, not {self.seconds:g} seconds", hint=_RECYCLE_HINT
            )

    def draw(self, rng: Random) -> RecycleLimit:
        """The limits of the next worker: each uniform within JITTER_PERCENT of the policy's, whole datagrams.

        Workers that started together thus end apart, and drift further apart with each of their successors.
        That is likely and not certain: that no two are replaced at the same time is for the supervisor to see to.
        """
        return RecycleLimit(
            None if self.datagrams is None else _jittered_count(self.datagrams, rng),
            None if self.seconds is None else _jittered(self.seconds, rng),
        )


def _jittered(value: float, rng: Random) -> float:
    spread = value * JITTER_PERCENT / 100
    return rng.uniform(value - spread, value + spread)


def _jittered_count(value: int, rng: Random) -> int:
    spread = value * JITTER_PERCENT // 100
    return rng.randint(value - spread, value + spread)


def parse_recycle_after(text: str) -> RecyclePolicy:
    """Read ``DATAGRAMS``, ``DURATION``, or both with a comma between; a plain number is datagrams.

    >>> parse_recycle_after("1M,12h")
    RecyclePolicy(datagrams=1000000, seconds=43200.0)

    Datagrams may be in thousands (``500k``), millions (``1M``) or billions (``1.5G``). Durations are those of
    :func:`parse_duration` with a unit. Raises ConfigurationError for anything else.
    """
    datagrams: int | None = None
    seconds: float | None = None
    for part in text.split(","):
        count, duration = _parse_limit(part.strip(), within=text)
        if (count is not None and datagrams is not None) or (duration is not None and seconds is not None):
            what = "datagrams" if count is not None else "a duration"
            raise ConfigurationError(f"{text!r} gives {what} twice", hint=_RECYCLE_HINT)
        datagrams = datagrams if count is None else count
        seconds = seconds if duration is None else duration
    return RecyclePolicy(datagrams, seconds)


def _parse_limit(part: str, *, within: str) -> tuple[int | None, float | None]:
    """The datagrams or the seconds that one part says; the other is None."""
    count = _parse_number(part, _DATAGRAMS)
    if count is not None and count.denominator == 1:
        return int(count), None
    seconds = None if count is not None else _parse_number(part, _SECONDS)
    if seconds is None:
        where = f" in {within!r}" if within != part else ""
        raise ConfigurationError(f"{part!r}{where} is no number of datagrams and no duration", hint=_RECYCLE_HINT)
    return None, float(seconds)


def _parse_number(text: str, units: dict[str, int]) -> Fraction | None:
    """The number times its unit, exactly; None when there is no number, or the unit is not one of these."""
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] not in units:
        return None
    return Fraction(match[1]) * units[match[2]]
