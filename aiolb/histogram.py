"""A bounded log-linear histogram of integers, such as latencies in nanoseconds; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

RELATIVE_ERROR = 1 / 32
"""What a percentile may be above the recorded value it stands for, as a share of that value."""

MAX_VALUE = 2**64 - 1
"""The largest value that is told apart; with it, there are at most 1,920 buckets."""

_BITS = 5
_EXACT = 2 << _BITS


class Histogram:
    """Counts of integers in buckets: exact below 64, then 32 buckets for each power of two.

    Only buckets that hold something take memory.
    """

    __slots__ = ("_buckets", "_count", "_max")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0
        self._max = 0

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return self._count

    @property
    def max(self) -> int:
        """The largest value recorded, exactly; 0 when there is none."""
        return self._max

    def record(self, value: int) -> None:
        """Count one value; below 0 it counts as 0, above MAX_VALUE as MAX_VALUE."""
        value = min(max(value, 0), MAX_VALUE)
        bucket = _bucket_of(value)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self._count += 1
        self._max = max(self._max, value)

    def percentile(self, percent: float) -> int:
        """The value that ``percent`` (0 … 100) of the values do not exceed, by nearest rank; 0 when empty.

        It is never below the recorded value of that rank, and at most RELATIVE_ERROR of it above.
        Raises ValueError for another percentage.
        """
        if not 0 <= percent <= 100:  # noqa: PLR2004 - a percentage
            raise ValueError(f"{percent} is no percentage")
        rank = max(math.ceil(percent * self._count / 100), 1)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(_highest_of(bucket), self._max)
        return self._max

    def merge(self, other: Histogram) -> None:
        """Add what ``other`` recorded, as if it had been recorded here."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self._count += other._count
        self._max = max(self._max, other._max)


def _bucket_of(value: int) -> int:
    """The bucket's number: how far to shift, and the top six bits that are left then."""
    if value < _EXACT:
        return value
    shift = value.bit_length() - _BITS - 1
    return (shift << _BITS) + (value >> shift)


def _highest_of(bucket: int) -> int:
    if bucket < _EXACT:
        return bucket
    shift = (bucket >> _BITS) - 1
    top = bucket - (shift << _BITS)
    return ((top + 1) << shift) - 1


def microseconds(histogram: Histogram, percentages: Iterable[float]) -> dict[str, float]:
    """Nanoseconds that were recorded, as percentiles in microseconds by name (``p50``), and ``max``."""
    values = {f"p{percent:g}": histogram.percentile(percent) for percent in percentages}
    return {name: round(value / 1000, 1) for name, value in {**values, "max": histogram.max}.items()}
