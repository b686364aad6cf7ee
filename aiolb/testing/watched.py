"""A collector that is watched: to its server it is the collector itself, and what becomes of datagrams is noted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

from aiolb.base_collector import BaseCollector, check_class, make
from aiolb.collector import Collector
from aiolb.receive.contract import Datagram
from aiolb.stream import StreamCollector
from aiolb.testing.outcomes import Outcomes

B = TypeVar("B", bound=BaseCollector)
C = TypeVar("C", bound=Collector)
S = TypeVar("S", bound=StreamCollector)


class WatchedBase(Generic[B]):
    """An application that hands everything on to a collector, whatever that handles."""

    def __init__(self, collector: B, outcomes: Outcomes) -> None:
        self.collector = collector
        self.sources: set[str] = set()
        """The host of each address that something came from."""
        self._outcomes = outcomes
        self.attach = collector.attach
        self.startup = collector.startup
        self.on_slots_changed = collector.on_slots_changed
        self.report: Callable[[], Mapping[str, Any]] = collector.report

    async def shutdown(self) -> None:
        """Shut down, and note what that raised: a server only logs it."""
        try:
            await self.collector.shutdown()
        except Exception as error:
            self._outcomes.failed(error)
            raise

    @contextmanager
    def _noted(self, units: Sequence[Hashable], hosts: Iterable[str]) -> Iterator[None]:
        """Note how the handler of these ends."""
        self.sources.update(hosts)
        try:
            yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the server stops
                self._outcomes.given_up(units)
            else:
                self._outcomes.failed(error, units)
            raise
        except Exception as error:
            self._outcomes.failed(error, units)
            raise
        self._outcomes.handled(units)


class Watched(WatchedBase[C]):
    """An application of datagrams (:class:`aiolb.protocol.Application`)."""

    def __init__(self, collector: C, outcomes: Outcomes) -> None:
        super().__init__(collector, outcomes)
        self.on_error = collector.on_error

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
        with self._noted([(datagram, addr)], [addr[0]]):
            await self.collector.handle(datagram, addr)

    async def handle_batch(self, batch: list[Datagram]) -> None:
        """Handle them, and note how that ended."""
        __tracebackhide__ = True
        with self._noted(tuple(batch), [addr[0] for _, addr in batch]):
            await self.collector.handle_batch(batch)


class WatchedStream(WatchedBase[S]):
    """An application of connections (:class:`aiolb.connections.StreamHandlers`)."""

    def __init__(self, collector: S, outcomes: Outcomes) -> None:
        super().__init__(collector, outcomes)
        self.on_error = collector.on_error
        self.ended = 0
        """Handlers that have ended."""

    async def handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle it, and note how that ended."""
        __tracebackhide__ = True
        try:
            with self._noted([unit_of(writer)], [writer.get_extra_info("peername")[0]]):
                await self.collector.handle_stream(reader, writer)
        finally:
            self.ended += 1


UNIT = "aiolb_unit"
"""What a transport without a socket has in addition: that which tells its connection from others."""


def unit_of(writer: asyncio.StreamWriter) -> Hashable:
    """What tells a connection from others: who connected, unless the transport knows better."""
    unit: Hashable = writer.get_extra_info(UNIT) or writer.get_extra_info("peername")
    return unit


def made(app: B | Callable[[], B]) -> B:
    """The collector, or a new one of its class or from the function that makes one.

    Raises ConfigurationError for a class that cannot work, ApplicationError for what its constructor raises.
    """
    if isinstance(app, type):
        check_class(app)
        return cast("B", make(app))
    collector = app if isinstance(app, BaseCollector) else app()
    check_class(type(collector))
    return collector
