"""The line of ``aiolb flood`` that tells how it goes, on a terminal."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiolb.cli.flood_summary import digits, errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiolb.cli.flood_summary import Sending
    from aiolb.send.statistics import PublisherStatistics

REFRESH = 0.25
"""Seconds between two progress lines."""

WINDOW = 5.0
"""Seconds over which the progress line measures the rate."""


@asynccontextmanager
async def progress(publisher: Sending) -> AsyncIterator[None]:
    """Show a line on standard error that is kept up to date and gone in the end; nothing without a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    import asyncio

    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(_refresh(publisher, live))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


async def _refresh(publisher: Sending, live: Any) -> None:
    import asyncio
    from collections import deque

    from rich.text import Text

    # A low rate takes a longer look: 10 datagrams at least.
    window = max(WINDOW, 10 / (publisher.config.rate or 10))
    samples = deque([(0.0, 0)])
    while True:
        await asyncio.sleep(REFRESH)
        statistics = publisher.statistics()
        samples.append((statistics.seconds, statistics.sent))
        while statistics.seconds - samples[1][0] > window:
            samples.popleft()
        text = line(statistics, recent_rate(*samples[0], *samples[-1]))
        live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


def recent_rate(seconds_before: float, sent_before: int, seconds: float, sent: int) -> float:
    """Datagrams per second between two looks."""
    return (sent - sent_before) / max(seconds - seconds_before, sys.float_info.epsilon)


def line(statistics: PublisherStatistics, rate: float) -> str:
    """Time, datagrams, the present rate beside the one asked for, and errors."""
    asked = "" if statistics.rate_asked is None else f" of {statistics.rate_asked:,g}/s"
    parts = [
        f"{_time(statistics.seconds)}  sent {statistics.sent:,}",
        f"now {rate:,.{digits(rate)}f}{asked or '/s'}",
        *errors(statistics),
    ]
    return "  ".join(parts)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
