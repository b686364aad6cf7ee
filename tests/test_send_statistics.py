"""Statistics of several publishers, as of one."""

from __future__ import annotations

import pytest

from aiolb.send.statistics import PublisherStatistics, merge, rate_reached


def statistics(**changed):
    """Statistics of 100 datagrams."""
    settings = {
        "sent": 100,
        "bytes": 6400,
        "seconds": 2.0,
        "rate_asked": 50.0,
        "rate_reached": 50.0,
        "sources": 1,
        "sent_per_source": {"127.0.0.2": 100},
        "failed": 1,
        "trains": 3,
        "errors": {"refused": 4},
    }
    return PublisherStatistics(**(settings | changed))


def test_sums():
    """Counts are added up, by source and by error too; the longest time is that of all."""
    merged = merge(
        [
            statistics(),
            statistics(seconds=4.0, sent_per_source={"127.0.0.2": 60, "127.0.0.3": 40}, errors={"blocked": 1}),
            statistics(errors={"refused": 2}, rate_asked=100.0),
        ]
    )
    assert merged == PublisherStatistics(
        sent=300,
        bytes=19_200,
        seconds=4.0,
        rate_asked=200.0,
        rate_reached=75.0,
        sources=2,
        sent_per_source={"127.0.0.2": 260, "127.0.0.3": 40},
        failed=3,
        trains=9,
        errors={"refused": 6, "blocked": 1},
    )


def test_without_a_rate():
    """As fast as possible stays that."""
    merged = merge([statistics(rate_asked=None), statistics(rate_asked=None)])
    assert (merged.rate_asked, merged.rate_reached) == (None, 100.0)


@pytest.mark.parametrize(
    ("sent", "seconds", "asked", "reached"),
    [(10, 0.9, 10.0, 10.0), (10, 2.0, 10.0, 5.0), (10, 0.5, None, 20.0), (0, 0.0, None, 0.0), (0, 0.0, 9.0, 0.0)],
)
def test_the_rate_reached(sent, seconds, asked, reached):
    """Each datagram stands for its interval, where a rate was asked for."""
    assert rate_reached(sent, seconds, asked) == reached
