"""Waiting for an event: beside work that ends first or is cancelled, or for some seconds at most."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable


async def run_until(event: asyncio.Event, work: Awaitable[Any], *, seconds: float | None = None) -> None:
    """Run ``work`` to its end and raise what it raises; cancel it when ``event`` is set or the seconds are over."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        working.cancel()
        # Also when we were cancelled ourselves: the work has ended when this returns.
        await asyncio.wait({working})
    with suppress(asyncio.CancelledError):
        working.result()


async def happens(event: asyncio.Event, *, seconds: float | None = None) -> bool:
    """Wait until ``event`` is set; false when the seconds are over before."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
