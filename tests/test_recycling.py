"""When a worker is replaced by a fresh one."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.errors import ConfigurationError
from aiolb.recycling import (
    MAX_DATAGRAMS,
    MAX_SECONDS,
    MIN_SECONDS,
    RecycleLimit,
    RecyclePolicy,
    parse_duration,
    parse_recycle_after,
)

datagram_counts = st.integers(1, MAX_DATAGRAMS)
durations = st.floats(MIN_SECONDS, MAX_SECONDS)
randoms = st.randoms(use_true_random=False)

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
"""The units of durations."""


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("30s", 30.0),
        ("90m", 5400.0),
        ("1.5h", 5400.0),
        ("12h", 43_200.0),
        ("1d", 86_400.0),
        ("0", 0.0),
        ("0.25", 0.25),
        ("0.1s", 0.1),
        ("007s", 7.0),
        (" 30s\n", 30.0),
    ],
)
def test_durations_that_are_read(text, seconds):
    """The ways to write a duration."""
    assert parse_duration(text) == seconds


@given(st.integers(0, 10**9), st.integers(0, 999), st.sampled_from(sorted(SECONDS)))
def test_a_duration_is_its_number_times_its_unit(whole, thousandths, unit):
    """Nothing but the last step, from an exact number to a float, rounds."""
    assert parse_duration(f"{whole}.{thousandths:03}{unit}") == (whole * 1000 + thousandths) * SECONDS[unit] / 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "-1s",
        "+1s",
        "1e3",
        "1.s",
        ".5h",
        "1 h",
        "1h30m",
        "1H",
        "1M",
        "1w",
        "1ms",
        "nan",
        "inf",
        "٣s",
        "1_0",
    ],
)
def test_durations_that_are_none(text):
    """Anything else is a configuration error with examples."""
    with pytest.raises(ConfigurationError) as caught:
        parse_duration(text)
    assert str(caught.value) == f"{text!r} is no duration"
    assert "1.5h" in caught.value.hint


@given(st.text() | st.text(alphabet="0123456789.smhd,M ", max_size=40))
def test_any_text_is_a_duration_or_one_error(text):
    """Whatever is written, it is a finite number of seconds or a ConfigurationError, and nothing else."""
    try:
        seconds = parse_duration(text)
    except ConfigurationError:
        return
    assert 0 <= seconds < math.inf


# --recycle-after


@pytest.mark.parametrize(
    ("text", "datagrams", "seconds"),
    [
        ("1000000", 1_000_000, None),
        ("1M", 1_000_000, None),
        ("1.1M", 1_100_000, None),
        ("500k", 500_000, None),
        ("500K", 500_000, None),
        ("2G", 2_000_000_000, None),
        ("1", 1, None),
        ("3.0", 3, None),
        ("12h", None, 43_200.0),
        ("90m", None, 5400.0),
        ("30s", None, 30.0),
        ("1d", None, 86_400.0),
        ("1M,12h", 1_000_000, 43_200.0),
        ("12h,1M", 1_000_000, 43_200.0),
        (" 1M , 12h ", 1_000_000, 43_200.0),
        ("1000000000G", 10**18, None),
        ("1000d", None, 86_400_000.0),
    ],
)
def test_limits_that_are_read(text, datagrams, seconds):
    """Datagrams, a duration, or both in any order; a plain number is datagrams."""
    assert parse_recycle_after(text) == RecyclePolicy(datagrams, seconds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no number of datagrams and no duration"),
        ("x", "'x' is no number of datagrams and no duration"),
        ("-1", "'-1' is no number of datagrams and no duration"),
        ("1.5", "'1.5' is no number of datagrams and no duration"),
        ("1.0005k", "'1.0005k' is no number of datagrams and no duration"),
        ("1D", "'1D' is no number of datagrams and no duration"),
        ("1M 12h", "'1M 12h' is no number of datagrams and no duration"),
        ("1M,", "'' in '1M,' is no number of datagrams and no duration"),
        ("1M,12x", "'12x' in '1M,12x' is no number of datagrams and no duration"),
        ("1,000,000", "'1,000,000' gives datagrams twice"),
        ("1M,12h,2M", "'1M,12h,2M' gives datagrams twice"),
        ("12h,30m", "'12h,30m' gives a duration twice"),
        ("0", "a worker is recycled after 1 to 10^18 datagrams, not 0"),
        ("1000000001G", "a worker is recycled after 1 to 10^18 datagrams, not 1000000001000000000"),
        ("0s", "a worker is recycled after 1 second to 1000 days, not 0 seconds"),
        ("0.5s", "a worker is recycled after 1 second to 1000 days, not 0.5 seconds"),
        ("1001d", "a worker is recycled after 1 second to 1000 days, not 8.64864e+07 seconds"),
    ],
)
def test_limits_that_are_none(text, message):
    """Anything else is a configuration error with examples."""
    with pytest.raises(ConfigurationError) as caught:
        parse_recycle_after(text)
    assert str(caught.value) == message
    assert "1M,12h" in caught.value.hint


@given(st.text() | st.text(alphabet="0123456789.smhdkMG, ", max_size=60))
def test_any_text_is_a_policy_or_one_error(text):
    """Whatever is written, it is a policy within its bounds or a ConfigurationError, and nothing else."""
    try:
        policy = parse_recycle_after(text)
    except ConfigurationError:
        return
    assert policy.datagrams is not None or policy.seconds is not None
    assert policy.datagrams is None or 1 <= policy.datagrams <= MAX_DATAGRAMS
    assert policy.seconds is None or MIN_SECONDS <= policy.seconds <= MAX_SECONDS


@given(datagram_counts, st.integers(1, 1000), st.sampled_from("smhd"))
def test_both_limits_round_trip(datagrams, number, unit):
    """What was written of both limits is what the policy holds."""
    policy = RecyclePolicy(datagrams, float(number * SECONDS[unit]))
    assert parse_recycle_after(f"{datagrams},{number}{unit}") == policy
    assert parse_recycle_after(f"{number}{unit},{datagrams}") == policy


@pytest.mark.parametrize("settings", [{}, {"datagrams": 0}, {"seconds": math.nan}, {"seconds": math.inf}])
def test_policies_that_cannot_be(settings):
    """A policy without a limit, or with one that is no limit, is a configuration error."""
    with pytest.raises(ConfigurationError, match="recycled") as caught:
        RecyclePolicy(**settings)
    assert caught.value.hint


# The limits of one worker


@given(datagram_counts, durations, randoms)
def test_limits_are_within_ten_percent(datagrams, seconds, rng):
    """A worker's own limits are whole datagrams, at least one, and near those of the policy."""
    limit = RecyclePolicy(datagrams, seconds).draw(rng)
    assert isinstance(limit.datagrams, int)
    assert limit.datagrams >= 1
    assert abs(limit.datagrams - datagrams) * 10 <= datagrams
    assert abs(limit.seconds - seconds) <= seconds / 10 * (1 + 1e-9)


@given(datagram_counts, durations, randoms)
def test_only_what_the_policy_limits_is_drawn(datagrams, seconds, rng):
    """A policy without one of the limits gives workers without it."""
    assert RecyclePolicy(datagrams=datagrams).draw(rng).seconds is None
    assert RecyclePolicy(seconds=seconds).draw(rng).datagrams is None


def test_the_jitter_is_uniform_over_the_whole_range():
    """Each of the 21 numbers from 90 to 110 comes up, about equally often, and so does every part of a duration."""
    rng = Random(1)
    limits = [RecyclePolicy(100, 100.0).draw(rng) for _ in range(21_000)]
    assert {limit.datagrams for limit in limits} == set(range(90, 111))
    assert all(800 < sum(limit.datagrams == n for limit in limits) < 1200 for n in range(90, 111))
    assert all(900 < sum(n <= limit.seconds < n + 1 for limit in limits) < 1200 for n in range(90, 110))


def test_members_that_start_together_end_apart():
    """A hundred workers of one policy draw a hundred different limits."""
    rng = Random(1)
    limits = [parse_recycle_after("1M,12h").draw(rng) for _ in range(100)]
    assert len({limit.datagrams for limit in limits}) == 100
    assert len({limit.seconds for limit in limits}) == 100


# Due


@pytest.mark.parametrize(
    ("limit", "age", "datagrams", "due"),
    [
        (RecycleLimit(100, None), 1e9, 99, False),
        (RecycleLimit(100, None), 0.0, 100, True),
        (RecycleLimit(None, 60.0), 59.875, 10**18, False),
        (RecycleLimit(None, 60.0), 60.0, 0, True),
        (RecycleLimit(100, 60.0), 59.875, 99, False),
        (RecycleLimit(100, 60.0), 60.0, 99, True),
        (RecycleLimit(100, 60.0), 59.875, 100, True),
    ],
)
def test_due_when_a_limit_is_reached(limit, age, datagrams, due):
    """A worker is due exactly when it reaches its datagrams or its age, whichever comes first."""
    assert limit.due(1000.0 + age, 1000.0, datagrams) is due


@given(datagram_counts, durations, randoms, st.integers(0, 2**60), st.floats(0, 2 * MAX_SECONDS))
def test_due_stays_due(datagrams, seconds, rng, received, now):
    """Once due, a worker stays due, however many datagrams and seconds follow."""
    limit = RecyclePolicy(datagrams, seconds).draw(rng)
    if limit.due(now, 0.0, received):
        assert limit.due(now + 1, 0.0, received)
        assert limit.due(now, 0.0, received + 1)
