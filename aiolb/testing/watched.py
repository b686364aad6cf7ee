"""A collector that is watched: to its server it is the collector itself, and what becomes of datagrams is noted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

from aiolb.base_collector import check_class, make
from aiolb.collector import Collector
from aiolb.receive.contract import Datagram
from aiolb.testing.outcomes import Outcomes

C = TypeVar("C", bound=Collector)


class Watched(Generic[C]):
    """An application (:class:`aiolb.protocol.Application`) that hands everything on to a collector."""

    def __init__(self, collector: C, outcomes: Outcomes) -> None:
        self.collector = collector
        self.sources: set[str] = set()
        """The host of each address that something came from."""
        self._outcomes = outcomes
        self.attach = collector.attach
        self.startup = collector.startup
        self.on_error = collector.on_error
        self.on_slots_changed = collector.on_slots_changed
        self.report: Callable[[], Mapping[str, Any]] = collector.report

    @property
    def timestamps(self) -> bool:
        """Whether datagrams are to know when they arrived."""
        return self.collector.timestamps

    @property
    def takes_batches(self) -> bool:
        """Whether ``handle_batch`` was overridden."""
        return self.collector.takes_batches

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Handle it, and note how that ended."""
        __tracebackhide__ = True
        with self._noted([(datagram, addr)]):
            await self.collector.handle(datagram, addr)

    async def handle_batch(self, batch: list[Datagram]) -> None:
        """Handle them, and note how that ended."""
        __tracebackhide__ = True
        with self._noted(tuple(batch)):
            await self.collector.handle_batch(batch)

    async def shutdown(self) -> None:
        """Shut down, and note what that raised: a server only logs it."""
        try:
            await self.collector.shutdown()
        except Exception as error:
            self._outcomes.failed(error)
            raise

    @contextmanager
    def _noted(self, batch: Iterable[Datagram]) -> Iterator[None]:
        self.sources.update(addr[0] for _, addr in batch)
        try:
            yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the server stops
                self._outcomes.given_up(batch)
            else:
                self._outcomes.failed(error, batch)
            raise
        except Exception as error:
            self._outcomes.failed(error, batch)
            raise
        self._outcomes.handled(batch)


def made(app: C | Callable[[], C]) -> C:
    """The collector, or a new one of its class or from the function that makes one.

    Raises ConfigurationError for a class that cannot work, ApplicationError for what its constructor raises.
    """
    if isinstance(app, type):
        check_class(app)
        return cast("C", make(app))
    collector = app if isinstance(app, Collector) else app()
    check_class(type(collector))
    return collector
