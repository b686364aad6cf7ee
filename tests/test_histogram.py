"""The histogram's bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.histogram import MAX_VALUE, RELATIVE_ERROR, Histogram

values = st.integers(0, 2**20) | st.integers(0, MAX_VALUE)


def histogram_of(recorded: list[int]) -> Histogram:
    """A histogram that recorded these values."""
    histogram = Histogram()
    for value in recorded:
        histogram.record(value)
    return histogram


def rank(recorded: list[int], percent: float) -> int:
    """The exact percentile by nearest rank."""
    return sorted(recorded)[max(math.ceil(percent * len(recorded) / 100), 1) - 1]


@given(st.lists(values, min_size=1), st.floats(0, 100))
def test_percentiles_are_close_from_above(recorded, percent):
    """A percentile is the value of its rank, or at most 1/32 of it more."""
    exact = rank(recorded, percent)
    answer = histogram_of(recorded).percentile(percent)
    assert exact <= answer
    assert (answer - exact) * 32 <= exact
    assert RELATIVE_ERROR == 1 / 32


@given(st.lists(values, min_size=1))
def test_count_and_max_are_exact(recorded):
    """The number of values and the largest of them are exact, and the last percentile is the largest."""
    histogram = histogram_of(recorded)
    assert histogram.count == len(recorded)
    assert histogram.max == max(recorded)
    assert histogram.percentile(100) == max(recorded)


@given(st.lists(values), st.lists(values), st.floats(0, 100))
def test_merging_is_recording_together(first, second, percent):
    """Two histograms merged answer as one that recorded everything."""
    merged = histogram_of(first)
    merged.merge(histogram_of(second))
    together = histogram_of(first + second)
    assert merged.count == together.count
    assert merged.max == together.max
    assert merged.percentile(percent) == together.percentile(percent)


@given(st.lists(values), st.floats(0, 100), st.floats(0, 100))
def test_percentiles_ascend(recorded, one, other):
    """A higher percentile is no lower value."""
    histogram = histogram_of(recorded)
    assert histogram.percentile(min(one, other)) <= histogram.percentile(max(one, other))


def test_small_values_are_exact():
    """Below 64 every value has its own bucket."""
    histogram = histogram_of(list(range(64)))
    assert [histogram.percentile((n + 1) * 100 / 64) for n in range(64)] == list(range(64))


def test_the_number_of_buckets_is_bounded():
    """The ends of all powers of two, and all between them, fit in 1,920 buckets."""
    histogram = histogram_of([top << shift for shift in range(59) for top in range(64)] + [2**n - 1 for n in range(65)])
    assert len(histogram._buckets) == 1920


def test_values_out_of_bounds_count_at_the_bounds():
    """A negative latency (clocks differ) is 0, a value past the top is the top."""
    assert histogram_of([-5]).percentile(50) == 0
    assert histogram_of([2**70]).max == MAX_VALUE


def test_empty():
    """An empty histogram answers 0."""
    assert (Histogram().count, Histogram().max, Histogram().percentile(99)) == (0, 0, 0)


@pytest.mark.parametrize("percent", [-1, 100.1, math.nan])
def test_no_percentage(percent):
    """Only 0 to 100 are percentages."""
    with pytest.raises(ValueError, match="percentage"):
        Histogram().percentile(percent)
