"""The schedule of a publisher."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.errors import ConfigurationError
from aiolb.pacing import (
    CATCH_UP,
    SHORTEST_PAUSE,
    UNLIMITED,
    WHOLE,
    Beat,
    Pacer,
    Schedule,
    Share,
    Step,
    Timeline,
)

rates = st.floats(1e-3, 1e6)
starts = st.floats(0, 1e7)
counts = st.integers(0, 10**9)


@given(rates, starts, counts)
def test_a_datagram_is_due_at_its_time_and_not_before(rate, start, n):
    """due() and time_of() agree to the last bit of a float."""
    schedule = Schedule(rate, start)
    moment = schedule.time_of(n)
    assert schedule.due(moment) >= n + 1
    assert schedule.due_before(moment) <= n


@given(rates, starts, st.floats(0, 1e6))
def test_due_counts_what_time_of_says(rate, start, elapsed):
    """What is due at a moment has a time up to it, and the next one a later time."""
    schedule = Schedule(rate, start)
    now = start + elapsed
    due = schedule.due(now)
    assert schedule.time_of(due - 1) <= now < schedule.time_of(due)


@given(rates, starts, counts)
def test_time_of_does_not_drift(rate, start, n):
    """The error of a datagram's time does not grow with the datagrams before it."""
    assert math.isclose(Schedule(rate, start).time_of(n) - start, n / rate, rel_tol=1e-15, abs_tol=4e-9)


@given(rates, starts, st.lists(st.floats(0, 1e5), min_size=2))
def test_due_never_goes_back(rate, start, moments):
    """Later moments have at least as many datagrams due."""
    schedule = Schedule(rate, start)
    due = [schedule.due(start + moment) for moment in sorted(moments)]
    assert due == sorted(due)


def test_a_hundred_per_second_for_a_day():
    """After a day at 100/s exactly 8,640,000 datagrams were due."""
    schedule = Schedule(100, 12_345.678)
    assert schedule.due_before(12_345.678 + 86_400) == 8_640_000


def test_nothing_is_due_before_the_start():
    """A clock before the start has nothing due."""
    assert Schedule(100, 10.0).due(9.999) == 0
    assert Schedule(None, 10.0).due(9.999) == 0


@pytest.mark.parametrize("rate", [None, math.inf])
def test_without_a_rate_all_is_due_at_the_start(rate):
    """No rate and an infinite rate both mean: as fast as possible."""
    schedule = Schedule(rate, 5.0)
    assert schedule.rate is None
    assert schedule.due(5.0) == UNLIMITED
    assert schedule.time_of(10**9) == 5.0


@pytest.mark.parametrize("rate", [0, -1, math.nan, -math.inf, 2e9])
def test_a_rate_that_cannot_be(rate):
    """A rate of zero or less, none at all, or past the clock's resolution is a configuration error."""
    with pytest.raises(ConfigurationError, match="rate") as caught:
        Schedule(rate, 0.0)
    assert caught.value.hint


BURST = 256
"""Datagrams that the simulated sender sends at once."""


def simulate(pacer: Pacer, now: float, late: list[float]) -> tuple[int, float, list[Step]]:
    """Follow the steps on a clock that is late by these seconds, one after the other, then punctual."""
    done, steps = 0, []
    while (step := pacer.step(now, done)) is not None:
        steps.append(step)
        done += min(step.datagrams, BURST)
        pause = step.pause if step.datagrams <= BURST else 0.0
        now += pause + (late.pop() if late else 1e-6)
    return done, now, steps


lateness = st.lists(st.floats(0, 0.05), max_size=20)


@given(st.floats(10, 1e5), st.integers(0, 3000), lateness)
def test_a_count_is_sent_exactly(rate, count, late):
    """However late the loop is, count datagrams are sent, none before its time."""
    done, now, _ = simulate(Pacer(rate, 7.0, count=count), 7.0, late)
    assert done == count
    assert now >= Schedule(rate, 7.0).time_of(count - 1) or count == 0


@given(st.integers(1, 2000), st.floats(0, 1), lateness)
def test_a_duration_gives_what_is_due_before_its_end(rate, duration, late):
    """With a rate, a duration ends when it is over, and with all that was due before."""
    pacer = Pacer(rate, 3.0, duration=duration)
    done, now, _ = simulate(pacer, 3.0, late)
    assert done == Schedule(rate, 3.0).due_before(3.0 + duration)
    assert now >= pacer.end


@given(st.floats(1, 1e6), st.integers(0, 2000), lateness)
def test_pauses_are_not_short(rate, count, late):
    """A pause takes a millisecond or more; only the last step has none."""
    _, _, steps = simulate(Pacer(rate, 0.0, count=count), 0.0, late)
    assert all(step.pause >= SHORTEST_PAUSE for step in steps[:-1] if step.datagrams <= BURST)


def test_what_cannot_be_caught_up_is_given_up():
    """A run far behind its rate ends soon after its duration all the same."""
    pacer = Pacer(1e6, 0.0, duration=1.0)
    assert pacer.step(1.0 + CATCH_UP / 2, 1000) == Step(999_000, 0.0)
    assert pacer.step(1.0 + CATCH_UP, 1000) is None


def test_without_a_rate_the_duration_is_the_end():
    """As fast as possible stops at the end of the duration, with nothing to catch up."""
    pacer = Pacer(None, 0.0, duration=1.0)
    assert pacer.step(0.999, 10**6).datagrams == UNLIMITED - 10**6
    assert pacer.step(1.0, 10**6) is None


def test_a_low_rate_waits_for_the_end_of_the_duration():
    """One datagram per 100 seconds for 10 seconds: one at the start, then the wait."""
    pacer = Pacer(0.01, 0.0, duration=10.0)
    assert pacer.step(0.0, 0) == Step(1, 10.0)
    assert pacer.step(4.0, 1) == Step(0, 6.0)
    assert pacer.step(10.0, 1) is None


def test_nothing_to_do():
    """A count or a duration of 0 is over before it begins."""
    assert Pacer(100, 0.0, count=0).step(0.0, 0) is None
    assert Pacer(100, 0.0, duration=0.0).step(0.0, 0) is None
    assert Pacer(None, 0.0, duration=0.0).step(0.0, 0) is None


# Trains


def test_a_train_is_due_when_its_last_datagram_is():
    """No datagram of a train leaves before its time, and the pause leads to the next whole train."""
    pacer = Pacer(8.0, 0.0, train=4, count=10)
    assert pacer.step(0.0, 0) == Step(0, 0.375)
    assert pacer.step(0.25, 0) == Step(0, 0.125)
    assert pacer.step(0.375, 0) == Step(4, 0.5)
    assert pacer.step(0.5, 4) == Step(0, 0.375)
    assert pacer.step(0.875, 4) == Step(4, 0.25)
    assert pacer.step(1.125, 8) == Step(2, 0.0)
    assert pacer.step(1.125, 10) is None


def test_a_duration_ends_with_a_short_train():
    """What is due before the end goes out, a whole train or not."""
    pacer = Pacer(8.0, 0.0, train=16, duration=1.0)
    assert pacer.step(0.5, 0) == Step(0, 0.375)
    assert pacer.step(0.875, 0) == Step(8, 0.125)
    assert pacer.step(0.9375, 8) == Step(0, 0.0625)
    assert pacer.step(1.0, 8) is None


@given(st.floats(10, 1e5), st.integers(0, 3000), st.integers(1, 64), lateness)
def test_trains_give_exact_counts(rate, count, train, late):
    """With trains of any length, count datagrams are sent, and none before its time."""
    pacer, now, done = Pacer(rate, 0.0, count=count, train=train), 0.0, 0
    schedule = Schedule(rate, 0.0)
    while (step := pacer.step(now, done)) is not None:
        done += step.datagrams
        assert done <= schedule.due(now)
        assert done % train == 0 or done == count
        now += step.pause + (late.pop() if late else 1e-6)
    assert done == count


# Shares


shares = st.integers(1, 8).flatmap(
    lambda workers: st.builds(
        lambda sources: [Share(index, workers, sources) for index in range(workers)], st.integers(workers, 50)
    )
)


@given(shares, st.integers(0, 2000))
def test_the_shares_are_the_whole(parts, datagrams):
    """Every datagram of a run is one worker's, and goes to the source that it would go to without workers."""
    sources = parts[0].sources
    own = [[share.nth(n) for n in range(share.of(datagrams))] for share in parts]
    assert sorted(n for ns in own for n in ns) == list(range(datagrams))
    for share, ns in zip(parts, own, strict=True):
        assert ns == sorted(ns)
        numbers = range(share.index, sources, share.workers)
        assert share.own_sources == len(numbers)
        assert [n % sources for n in ns] == [numbers[k % len(numbers)] for k in range(len(ns))]


@given(st.integers(0, 10**6))
def test_a_lone_worker_has_it_all(n):
    """The share of one is the whole."""
    assert (WHOLE.of(n), WHOLE.nth(n), WHOLE.own_sources) == (n, n, 1)


@given(shares, st.integers(1, 2000), st.floats(0.01, 1))
def test_workers_keep_the_rate_and_the_duration(parts, rate, duration):
    """All workers together send what one would have sent before the end."""
    done = [simulate(Pacer(rate, 5.0, duration=duration, share=share), 5.0, [])[0] for share in parts]
    assert sum(done) == Schedule(rate, 5.0).due_before(5.0 + duration)


def test_timeline_keeps_distances():
    """Recorded datagrams are as far apart as they were, from the start on."""
    timeline = Timeline(100.0)
    assert [timeline.due(recorded) for recorded in (5.0, 5.5, 7.0)] == [100.0, 100.5, 102.0]


@pytest.mark.parametrize(("speed", "due"), [(2.0, [10.0, 10.5, 11.0]), (0.5, [10.0, 12.0, 14.0])])
def test_timeline_speed(speed, due):
    """Twice the speed halves the distances."""
    timeline = Timeline(10.0, speed=speed)
    assert [timeline.due(recorded) for recorded in (1.0, 2.0, 3.0)] == due


def test_timeline_of_a_clock_that_was_set_back():
    """A datagram that was recorded before the one before it is due with that one; no time is lost."""
    timeline = Timeline(0.0)
    assert [timeline.due(recorded) for recorded in (1.0, 3.0, 2.0, 4.0, 0.0)] == [0.0, 2.0, 2.0, 3.0, 3.0]


def test_timeline_without_a_time():
    """A datagram without a time is due with the one before it."""
    timeline = Timeline(7.0)
    assert [timeline.due(recorded) for recorded in (None, 1.0, None, 1.5)] == [7.0, 7.0, 7.0, 7.5]


def test_timeline_rounds():
    """A round begins when the last datagram of the one before it was due."""
    timeline = Timeline(0.0)
    due = []
    for _ in range(3):
        timeline.rewind()
        due += [timeline.due(recorded) for recorded in (1.0, 2.0, 4.0)]
    assert due == [0.0, 1.0, 3.0, 3.0, 4.0, 6.0, 6.0, 7.0, 9.0]


@given(
    st.lists(st.none() | st.floats(0, 2e9), max_size=30),
    st.floats(0.01, 100),
)
def test_timeline_never_goes_back(recorded, speed):
    """Whatever was recorded, no datagram is due before the start or before the one before it."""
    timeline = Timeline(50.0, speed=speed)
    due = [timeline.due(time) for time in recorded]
    assert due == sorted(due)
    assert all(moment >= 50.0 for moment in due)


@pytest.mark.parametrize("speed", [0, -1, math.inf, math.nan])
def test_timeline_needs_a_speed(speed):
    """A speed is above 0, and finite."""
    with pytest.raises(ConfigurationError, match="the speed is"):
        Timeline(0.0, speed=speed)


def test_beat():
    """At a rate, datagram n is due at n / rate, whatever was recorded, over all rounds; without one, at the start."""
    beat, at_once = Beat(10.0, 4), Beat(10.0, None)
    assert [beat.due(recorded) for recorded in (99.0, None, 3.0)] == [10.0, 10.25, 10.5]
    beat.rewind()
    assert beat.due(99.0) == 10.75
    assert [at_once.due(recorded) for recorded in (99.0, 100.0)] == [10.0, 10.0]
