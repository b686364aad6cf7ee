"""How long handlers take: a few are timed, the others are called as if nobody did."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

from aiolb.receive import door

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiolb.receive.contract import Datagram

BUCKETS = 40
"""The last one begins at 2^38 ns, 4.6 minutes."""


class Handlers(door.Handlers, Protocol):
    """What is timed."""

    async def handle_batch(self, batch: list[Datagram]) -> None:
        """Handle all datagrams that are pending."""
        ...


class Times:
    """How long handlers took that somebody has timed."""

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        """The i-th counts times below 2^i nanoseconds, the last one all others too."""
        self.total_ns = 0

    def sample(self) -> None:
        """All of them are timed."""

    def record(self, elapsed: int) -> None:
        """Count a handler that took so many nanoseconds."""
        self.buckets[min(elapsed.bit_length(), BUCKETS - 1)] += 1
        self.total_ns += elapsed


class HandlerTimes(Times):
    """The handlers of an application, one by one or in ``batches``.

    After ``sample()`` those of the next turn are timed, until they return.

    A turn is what the event loop gives a lane at once: one datagram, or what came together, for a millisecond at most.
    So what is not timed costs nothing, and a quiet collector is timed as well as one under a flood.
    """

    handle: Callable[[bytes, Any], Coroutine[Any, Any, None]]
    handle_batch: Callable[[list[Datagram]], Coroutine[Any, Any, None]]

    def __init__(self, handlers: Handlers, *, batches: bool) -> None:
        super().__init__()
        self._handlers = handlers
        self._batches = batches
        if batches:
            self.handle_batch = handlers.handle_batch
        else:
            self.handle = handlers.handle

    def sample(self) -> None:
        """Time the next turn."""
        if self._batches:
            self.handle_batch = self._timed_batch
        else:
            self.handle = self._timed

    async def _timed(self, datagram: bytes, addr: Any) -> None:
        self.handle = self._handlers.handle
        began = perf_counter_ns()
        try:
            await self._handlers.handle(datagram, addr)
        finally:
            self.record(perf_counter_ns() - began)

    async def _timed_batch(self, batch: list[Datagram]) -> None:
        self.handle_batch = self._handlers.handle_batch
        began = perf_counter_ns()
        try:
            await self._handlers.handle_batch(batch)
        finally:
            self.record(perf_counter_ns() - began)
