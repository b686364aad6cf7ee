"""One member without a socket: its collector, server, protocol and lanes are real, and the kernel is two lists."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, overload

from aiolb.base_collector import kind_of
from aiolb.config import UNITS, ServeConfig
from aiolb.errors import AiolbError
from aiolb.receive.contract import Datagram, TimedDatagram
from aiolb.server import Server
from aiolb.stats import CollectorStatistics
from aiolb.testing.fake_base import SOURCE, FakeBase
from aiolb.testing.fake_listener import BIND, MAX_DATAGRAM, FakeListener
from aiolb.testing.fake_streams import FakeStreamMember
from aiolb.testing.outcomes import DEADLINE, Outcome, Outcomes
from aiolb.testing.watched import C, S, Watched, WatchedStream, made


class FakeMember(FakeBase[C, FakeListener]):
    """A started collector that gets its datagrams from a test; see :func:`collector`."""

    _app: Watched[C]

    @property
    def replies(self) -> list[Datagram]:
        """What the collector sent so far, each with the address that it went to; may be cleared."""
        return self._opened.transport.sent

    def put(self, datagram: bytes, addr: Any = SOURCE, *, received_at: int | None = None) -> None:
        """Let a datagram arrive, and do not wait.

        What is put before the loop turns arrives as one batch, as from a socket's queue. While too much is held
        (``concurrency``, ``backlog``) it stays in the queue. ``addr`` is the tuple that the socket module would give;
        ``received_at`` is what a collector with ``timestamps`` is told, in nanoseconds since 1970, by default now.

        Raises AiolbError for a datagram that UDP cannot carry, and after the stop.
        """
        self._put(datagram, addr, received_at)

    def _put(self, datagram: bytes, addr: Any, received_at: int | None) -> Outcome:
        if len(datagram) > MAX_DATAGRAM:
            raise AiolbError(f"no datagram has {len(datagram)} bytes", hint=f"{MAX_DATAGRAM} bytes are the most")
        if self._opened.transport.is_closing():
            raise AiolbError(f"{type(self.collector).__name__} has stopped, and receives nothing")
        item: Datagram = (bytes(datagram), addr)
        outcome = self._outcomes.expect(item)
        if self._app.timestamps:
            item = TimedDatagram(*item, time.time_ns() if received_at is None else received_at)
        self._opened.transport.put(item)
        return outcome

    async def feed(self, datagram: bytes, addr: Any = SOURCE, *, received_at: int | None = None) -> None:
        """``put`` a datagram and wait until it is handled.

        Raises what its handler raised; UnhandledError when the deadline is over, or the collector stopped before.
        """
        __tracebackhide__ = True
        await self._outcomes.wait([self._put(datagram, addr, received_at)])

    async def drained(self) -> None:
        """Wait until all that was put is handled. Raises what handlers raised, and UnhandledError."""
        __tracebackhide__ = True
        await self._outcomes.settled()

    def statistics(self) -> CollectorStatistics:
        """What the member received, handled and sent so far."""
        return self._life.server.statistics()

    def _make_listener(self) -> FakeListener:
        return FakeListener(self._app, self._life.server.config)


@overload
def collector(
    app: C | Callable[[], C], *, raise_errors: bool = True, deadline: float | None = DEADLINE, **settings: Any
) -> AbstractAsyncContextManager[FakeMember[C]]: ...


@overload
def collector(
    app: S | Callable[[], S], *, raise_errors: bool = True, deadline: float | None = DEADLINE, **settings: Any
) -> AbstractAsyncContextManager[FakeStreamMember[S]]: ...


def collector(
    app: Any, *, raise_errors: bool = True, deadline: float | None = DEADLINE, **settings: Any
) -> AbstractAsyncContextManager[Any]:
    """Run a collector without a socket: its ``startup()`` at the begin of the block, ``shutdown()`` at the end.

    ``app`` is a collector, its class, or a function that makes one; a collector of connections gets connections.
    Everything but the kernel is real: lanes and their order, ``concurrency`` and backpressure, batches, readers and
    writers, errors, the graceful stop. ``settings`` are fields of :class:`aiolb.ServeConfig`, such as ``index``,
    ``count``, ``concurrency``, ``graceful_timeout``.

    What handlers and ``shutdown()`` raise is raised to the test, by who waits for them, or else by the end of the
    block, several errors as an exception group; with ``raise_errors=False`` it is in ``errors`` only. ``deadline`` is
    how long a test waits for a handler, in seconds; None for ever.

    Raises ConfigurationError for a class or settings that cannot work, ApplicationError, with its cause, for what
    ``startup()`` raises.
    """
    return _running(app, raise_errors, deadline, settings)


@asynccontextmanager
async def _running(
    app: Any, raise_errors: bool, deadline: float | None, settings: dict[str, Any]
) -> AsyncIterator[FakeBase[Any, Any]]:
    collector = made(app)
    protocol = kind_of(type(collector)).protocol
    config = ServeConfig(bind=(BIND,), **{"count": settings.get("index", 0) + 1, "protocol": protocol, **settings})
    outcomes = Outcomes(raising=raise_errors, deadline=deadline, units=UNITS[protocol])
    watch, kind = (Watched, FakeMember) if protocol == "udp" else (WatchedStream, FakeStreamMember)
    watched: Any = watch(collector, outcomes)
    member: FakeBase[Any, Any] = kind(watched, Server(watched, config), outcomes)
    await member.start()
    try:
        yield member
    finally:
        member.hang_up()
        await member.stop()
    outcomes.check()
