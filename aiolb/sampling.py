"""Which of many alike events to log."""

from __future__ import annotations

import math

LOG_INTERVAL = 1.0
"""Seconds between two log lines about alike events."""


class Sampling:
    """The first event is logged, then at most one a second."""

    def __init__(self) -> None:
        self._next = -math.inf
        self._suppressed = 0

    def admit(self, now: float) -> int | None:
        """The number suppressed since the last one that was logged; None to suppress this one."""
        if now < self._next:
            self._suppressed += 1
            return None
        suppressed, self._suppressed, self._next = self._suppressed, 0, now + LOG_INTERVAL
        return suppressed
