"""Which of many alike events are logged."""

from __future__ import annotations

from aiolb.sampling import Sampling


def test_like_events_are_logged_once_a_second():
    """The first is logged, then one a second with the number that was left out."""
    sampling = Sampling()
    times = [0.0, 0.1, 0.9, 1.0, 1.5, 5.0, 5.5, 6.0]
    assert [sampling.admit(now) for now in times] == [0, None, None, 2, None, 1, None, 1]
