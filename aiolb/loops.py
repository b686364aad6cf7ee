"""The event loop of a run: uvloop, or asyncio's own."""

from __future__ import annotations

import asyncio


def runner(name: str) -> asyncio.Runner:
    """A runner over ``uvloop`` or ``asyncio``; use it as a context manager."""
    if name == "asyncio":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
