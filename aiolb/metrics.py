"""The groups of a collector or a supervisor as Prometheus metrics: the samples for a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from aiolb.metrics_table import GROUPS, MEMBERS, METRICS, PROCESS, Described
from aiolb.observed import Observed

_KINDS: dict[str, Callable[..., Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "info": InfoMetricFamily,
}


class GroupMetrics(Collector):
    """The samples of all metrics, from what ``observe`` tells at that moment; any thread may ask.

    After ``close()`` there are none, and ``observe`` is not called any more.
    """

    def __init__(self, observe: Callable[[], Sequence[Observed]]) -> None:
        self._observe = observe
        self._lock = Lock()
        self._closed = False

    def close(self) -> None:
        """Wait for who is asking, then tell nothing more. Idempotent."""
        with self._lock:
            self._closed = True

    def describe(self) -> Iterable[Metric]:
        """All metrics without samples, for a scrape that names those it wants; looks at no group."""
        return [_family(one, ()) for one in METRICS]

    def collect(self) -> Iterable[Metric]:
        """All metrics, each name once."""
        with self._lock:
            if self._closed:
                return []
            observed = self._observe()
        groups = [((str(one.name),), one) for one in observed]
        members = [((*labels, str(member.index)), member) for labels, one in groups for member in one.members]
        return [
            *(_family(one, [((), None)]) for one in PROCESS),
            *(_family(one, groups) for one in GROUPS),
            *(_family(one, members) for one in MEMBERS),
        ]


def _family(described: Described, of: Iterable[tuple[tuple[str, ...], Any]]) -> Metric:
    """A metric with a sample of each of these, which come with their labels."""
    family = _KINDS[described.kind](f"aiolb_{described.name}", described.help, labels=described.labels)
    for labels, found in of:
        if (value := described.value(found)) is not None:
            family.add_metric(labels, *(value if described.kind == "histogram" else (value,)))
    metric: Metric = family
    return metric
