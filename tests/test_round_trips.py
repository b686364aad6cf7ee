"""Answers are counted by number: first ones, further ones, those of others; their times come from the stamps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiolb.round_trips import RoundTrips
from aiolb.stamp import Stamp


def answer(sequence, *, run=1, source=0, due=0, size=40):
    """A datagram as it comes back."""
    return Stamp(run, source, sequence, due).to_wire(size)


def test_answers():
    """The time of an answer is from when its datagram was due."""
    trips = RoundTrips(1)
    trips.record(answer(0, due=1000), 0, 1040)
    trips.record(answer(1, due=2000), 0, 1_002_000)
    assert (trips.answered, trips.duplicated, trips.foreign) == (2, 0, 0)
    assert trips.times.percentile(50) == 40
    assert trips.microseconds() == {"p50": 0.0, "p90": 1000.0, "p99": 1000.0, "p99.9": 1000.0, "max": 1000.0}


def test_a_second_answer():
    """Only the first answer counts; its time stays."""
    trips = RoundTrips(1)
    for now in (5000, 9_000_000, 9_000_000):
        trips.record(answer(7), 0, now)
    assert (trips.answered, trips.duplicated, trips.times.max) == (1, 2, 5000)


def test_sources_have_numbers_of_their_own():
    """The same number of another source is another datagram."""
    trips = RoundTrips(1)
    for source in range(3):
        trips.record(answer(0, source=source), source, 10)
    assert (trips.answered, trips.duplicated) == (3, 0)


def test_what_is_no_answer():
    """Without a stamp, of another run, or at another source, it is no answer."""
    trips = RoundTrips(1)
    for datagram in (b"", b"hello", answer(0, run=2), answer(0, source=5)):
        trips.record(datagram, 0, 10)
    assert (trips.answered, trips.duplicated, trips.foreign, trips.times.count) == (0, 0, 4, 0)


def test_a_stall_shows():
    """A collector that stalls for a second makes all late that was due meanwhile, not one (coordinated omission)."""
    trips = RoundTrips(1)
    for n in range(1000):  # one each millisecond, all answered when the stall ends
        trips.record(answer(n, due=n * 1_000_000), 0, 1_000_000_000)
    told = trips.microseconds()
    assert 500_000 <= told["p50"] <= 520_000
    assert told["max"] == 1_000_000


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5))))
def test_every_answer_counts_once(answers):
    """Answered are the distinct ones, duplicated all others."""
    trips = RoundTrips(1)
    for source, sequence in answers:
        trips.record(answer(sequence, source=source), source, 10)
    assert trips.answered == len(set(answers))
    assert trips.duplicated == len(answers) - len(set(answers))
