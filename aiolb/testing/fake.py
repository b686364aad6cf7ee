"""One member without a socket: its collector, server, protocol and lanes are real, and the kernel is two lists."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, cast

from aiolb.config import ServeConfig
from aiolb.errors import AiolbError
from aiolb.receive.contract import Datagram, TimedDatagram
from aiolb.server import Server
from aiolb.stats import CollectorStatistics
from aiolb.testing.fake_listener import BIND, MAX_DATAGRAM, FakeListener
from aiolb.testing.life import Life
from aiolb.testing.outcomes import DEADLINE, Outcome, Outcomes
from aiolb.testing.watched import C, Watched, made

if TYPE_CHECKING:
    from aiolb.listener import Listener

SOURCE = ("192.0.2.1", 40000)
"""Where datagrams come from unless told otherwise: an address that is nobody's (RFC 5737)."""


class FakeMember(Generic[C]):
    """A started collector that gets its datagrams from a test; see :func:`collector`."""

    def __init__(self, app: Watched[C], server: Server, outcomes: Outcomes) -> None:
        self.collector: C = app.collector
        """The collector."""
        self.errors = outcomes.errors
        """What handlers and ``shutdown()`` raised so far."""
        self._outcomes = outcomes
        self._app = app
        self._life = Life(server)
        self._listener: FakeListener | None = None

    @property
    def replies(self) -> list[Datagram]:
        """What the collector sent so far, each with the address that it went to; may be cleared."""
        return self._opened.transport.sent

    @property
    def stopping(self) -> bool:
        """Whether the collector asked to stop, or was stopped; it goes on until :meth:`stop`."""
        return self._life.server.stopping

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
        outcome = self._outcomes.expect(datagram, addr)
        item: Datagram = (bytes(datagram), addr)
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

    async def start(self) -> None:
        """Run the collector's ``startup()``. Raises what :meth:`aiolb.Server.start` raises."""
        await self._life.start(lambda _: cast("Listener", self._listen()))

    async def stop(self) -> None:
        """Stop as a server does: handle what is queued, then ``shutdown()``. Idempotent."""
        await self._life.stop()
        self._outcomes.give_up_all()

    def _listen(self) -> FakeListener:
        self._listener = FakeListener(self._app, self._life.server.config)
        return self._listener

    @property
    def _opened(self) -> FakeListener:
        if self._listener is None:
            raise AiolbError(f"{type(self.collector).__name__} has not been started")
        return self._listener


@asynccontextmanager
async def collector(
    app: C | Callable[[], C], *, raise_errors: bool = True, deadline: float | None = DEADLINE, **settings: Any
) -> AsyncIterator[FakeMember[C]]:
    """Run a collector without a socket: its ``startup()`` at the begin of the block, ``shutdown()`` at the end.

    ``app`` is a collector, its class, or a function that makes one. Everything but the kernel is real: lanes and
    their order, ``concurrency`` and backpressure, batches, errors, the graceful stop. ``settings`` are fields of
    :class:`aiolb.ServeConfig`, such as ``index``, ``count``, ``concurrency``, ``graceful_timeout``.

    What handlers and ``shutdown()`` raise is raised to the test, by ``feed`` or ``drained``, or else by the end of the
    block, several errors as an exception group; with ``raise_errors=False`` it is in ``errors`` only. ``deadline`` is
    how long ``feed`` and ``drained`` wait, in seconds; None for ever.

    Raises ConfigurationError for a class or settings that cannot work, ApplicationError, with its cause, for what
    ``startup()`` raises.
    """
    outcomes = Outcomes(raising=raise_errors, deadline=deadline)
    config = ServeConfig(bind=(BIND,), **{"count": settings.get("index", 0) + 1, **settings})
    watched = Watched(made(app), outcomes)
    member = FakeMember(watched, Server(watched, config), outcomes)
    await member.start()
    try:
        yield member
    finally:
        await member.stop()
    outcomes.check()
