"""A StatsD server: counters, gauges and timers, printed every ten seconds, and in the report.

Metrics are lines `name:value|type`: https://github.com/statsd/statsd/blob/master/docs/metric_types.md
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from aiolb import Collector

Values = defaultdict[str, float]
PRINT_EVERY = 10.0  # seconds
NUMBER = r"\d{1,15}(?:\.\d{1,15})?"
METRIC = re.compile(rf"([^:|@]+):([+-]?)({NUMBER})\|(c|g|ms|h)(?:\|@({NUMBER}))?(?:\|#.*)?")


class StatsD(Collector):
    """Takes all that is there at once, which is quicker than a call for each datagram."""

    def __init__(self) -> None:
        self._counters: Values = defaultdict(float)
        self._gauges: defaultdict[str, Values] = defaultdict(lambda: defaultdict(float))
        self._timers: defaultdict[str, Values] = defaultdict(lambda: defaultdict(float))
        self._malformed = 0
        self._printer: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Print now and then."""
        self._printer = asyncio.create_task(self._print())

    async def shutdown(self) -> None:
        """Stop that."""
        if self._printer is not None:
            self._printer.cancel()

    async def _print(self) -> None:
        while True:
            await asyncio.sleep(PRINT_EVERY)
            print(json.dumps(self.report()), flush=True)

    async def handle_batch(self, batch: list[tuple[bytes, Any]]) -> None:
        """A datagram holds one metric, or several lines of them."""
        for datagram, addr in batch:
            for line in datagram.decode(errors="replace").splitlines():
                self._add(line, addr[0])

    def _add(self, line: str, source: str) -> None:
        found = METRIC.fullmatch(line)
        if found is None or not (rate := float(found[5] or 1)):
            self._malformed += 1
            return
        name, sign, value, kind = found[1], found[2], float(found[2] + found[3]), found[4]
        if kind == "c":
            self._counters[name] += value / rate
        elif kind == "g":  # with a sign it is a step: right only when a member sees all of a source, and in order
            self._gauges[source][name] = self._gauges[source][name] + value if sign else value
        else:
            timer = self._timers[name]
            timer["count"] += 1 / rate
            timer["sum"] += value / rate
            timer["max"] = max(timer["max"], value)

    def report(self) -> Mapping[str, Any]:
        """Counters and timers of all sources, and the gauges of each."""
        values = {"counters": self._counters, "gauges": self._gauges, "timers": self._timers}
        return {**values, "malformed": self._malformed}


if __name__ == "__main__":
    StatsD.run(bind="127.0.0.1:8125", index=0, count=1)
