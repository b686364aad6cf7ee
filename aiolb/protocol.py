"""The asyncio protocol of a collector: what comes and goes, and backpressure."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog

from aiolb.errors import ConfigurationError
from aiolb.handler_times import HandlerTimes
from aiolb.lanes import Handlers, Lanes
from aiolb.lifecycle import Lifecycle
from aiolb.receive.step import PlainStepper
from aiolb.sampling import Sampling
from aiolb.stats import ProtocolStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiolb.receive.contract import Datagram
    from aiolb.receive.step import StepperFactory

CURRENT_TRANSPORT: ContextVar[asyncio.DatagramTransport] = ContextVar("aiolb_transport")
"""Inside a handler: the transport that its datagram came in on."""

CONCURRENCY = 128
"""Handlers in flight at most, unless told otherwise."""
BACKLOG = 4096
"""Datagrams that may be held before reading is paused, unless told otherwise."""

_log = structlog.get_logger(__name__)


class Application(Lifecycle, Handlers, Protocol):
    """What the protocol and the server ask of a collector of datagrams."""

    @property
    def timestamps(self) -> bool:
        """Whether its datagrams are to know when the kernel got them."""
        ...

    @property
    def takes_batches(self) -> bool:
        """Whether ``handle_batch`` is to be called instead of ``handle``."""
        ...

    def on_error(self, exc: BaseException, datagram: bytes, addr: Any) -> None:
        """Told of each datagram whose handler raised."""
        ...


class CollectorProtocol(asyncio.DatagramProtocol):
    """Runs the handlers of an application over one transport, in :class:`~aiolb.lanes.Lanes`, until ``stop``.

    Reading is paused when every lane is suspended with datagrams pending, when ``backlog`` datagrams are
    pending or waiting, and while the transport's write buffer is over its limit. It resumes when nothing
    is pending and half of the backlog is gone.

    With ``batches`` there is one lane, which hands all that is pending to ``handle_batch``. ``stepper`` makes
    the inner loop of each lane.

    Raises ConfigurationError when concurrency or backlog is not positive.
    """

    datagrams_received: Callable[[Sequence[Datagram]], None]
    """Take a batch in one call; handlers may start at once, or with the next turn of the loop."""
    handler_times: HandlerTimes
    """How long handlers take; who wants to know calls its ``sample()`` now and then."""

    def __init__(
        self,
        application: Application,
        *,
        concurrency: int = CONCURRENCY,
        backlog: int = BACKLOG,
        batches: bool = False,
        stepper: StepperFactory = PlainStepper,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        if concurrency < 1 or backlog < 1:
            raise ConfigurationError(f"concurrency {concurrency} and backlog {backlog} must be at least 1")
        self._application = application
        self._backlog = backlog
        self._loop = loop
        self._transport: asyncio.DatagramTransport | None = None
        self._context = copy_context()
        self.handler_times = HandlerTimes(application, batches=batches)
        self._lanes = Lanes(
            self.handler_times,
            self,
            concurrency=concurrency,
            backlog=backlog,
            batches=batches,
            stepper=stepper,
            context=self._context,
            loop=loop,
        )
        self.datagrams_received = self._lanes.door.take

        self._room = asyncio.Event()
        self._room.set()
        self._closed = asyncio.Event()
        self._writing_paused = False
        self._reading_over = False
        self._stopped = False

        self._socket_errors = 0
        self._handler_sampling = Sampling()
        self._socket_sampling = Sampling()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport; handlers find it in ``CURRENT_TRANSPORT``."""
        self._transport = cast("asyncio.DatagramTransport", transport)
        if hasattr(transport, "cork") and hasattr(transport, "uncork"):
            self._lanes.door.cork, self._lanes.door.uncork = transport.cork, transport.uncork
        self._context.run(CURRENT_TRANSPORT.set, self._transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Take one datagram; its handler may start at once, or with the next turn of the loop."""
        self._lanes.door.take([(data, addr)])

    def error_received(self, exc: Exception) -> None:
        """Count an error of the socket and log it, at most once a second."""
        self._socket_errors += 1
        suppressed = self._socket_sampling.admit(self._loop.time())
        if suppressed is not None:
            _log.warning("socket_error", error=repr(exc), suppressed=suppressed)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come in; what is held is still handled."""
        if exc is not None:
            _log.error("connection_lost", error=repr(exc))
        self._closed.set()

    def pause_writing(self) -> None:
        """Read no more while replies cannot leave, or they would pile up."""
        self._writing_paused = True
        self.pause()

    def resume_writing(self) -> None:
        """Read again, unless the backlog still forbids it."""
        self._writing_paused = False
        self.make_room()

    # What the server calls

    async def drained(self) -> None:
        """Return when no datagram is pending, waiting or in flight."""
        await self._lanes.drained()

    async def has_room(self) -> None:
        """Return when reading is not paused by backpressure."""
        while not self._room.is_set():
            await self._room.wait()

    def stop_reading(self) -> None:
        """Pause reading for good: the end of backpressure does not resume it. What is held is handled."""
        self._reading_over = True
        self._call_transport("pause_reading")

    def stop(self) -> int:
        """Cancel all handlers, give up what is held, and read no more.

        Returns the number of datagrams given up by this call. ``aclose`` waits for the handlers to end.
        """
        if self._stopped:
            return 0
        self._stopped = True
        self.stop_reading()
        abandoned = self._lanes.stop()
        self._room.set()
        return abandoned

    async def aclose(self) -> None:
        """Stop, and wait until every cancelled handler has ended."""
        self.stop()
        await self._lanes.ended()

    async def closed(self) -> None:
        """Return when the transport has called ``connection_lost`` and, if it is ours, closed its socket."""
        await self._closed.wait()

    def statistics(self) -> ProtocolStatistics:
        """What became of every datagram so far."""
        lanes = self._lanes
        unhandled = lanes.errors + lanes.held + lanes.abandoned
        return ProtocolStatistics(
            received=lanes.door.received,
            handled=lanes.door.received - unhandled,
            errors=lanes.errors,
            pending=len(lanes.pending),
            waiting=lanes.waiting,
            in_flight=lanes.in_flight,
            abandoned=lanes.abandoned,
            lanes=len(lanes.all),
            socket_errors=self._socket_errors,
        )

    def held(self) -> int:
        """Datagrams that were taken and are not handled yet."""
        return self._lanes.held

    # What the lanes call

    def pause(self) -> None:
        """Read no more for now."""
        if self._room.is_set() and not self._stopped:
            self._room.clear()
            self._call_transport("pause_reading")
            # What paused it may be gone when handlers that run at once are through, and nobody tells of that.
            self._loop.call_soon(self.make_room)

    def make_room(self) -> None:
        """Read again, unless something still forbids it."""
        if self._room.is_set() or self._writing_paused:
            return
        if not self._lanes.pending and self._lanes.waiting <= self._backlog // 2:
            self._room.set()
            if not self._reading_over:
                self._call_transport("resume_reading")

    def report(self, error: BaseException, in_hand: tuple[Datagram, ...]) -> None:
        """Log what a handler raised, at most once a second, and tell the application."""
        suppressed = self._handler_sampling.admit(self._loop.time())
        if suppressed is not None:
            _log.error(
                "handler_error",
                error=repr(error),
                addr=in_hand[0][1] if in_hand else None,
                datagrams=len(in_hand),
                suppressed=suppressed,
                exc_info=error,
            )
        for datagram, addr in in_hand:
            try:
                self._application.on_error(error, datagram, addr)
            except (Exception, asyncio.CancelledError) as second:  # noqa: BLE001 - users' code, logged
                _log.error("on_error_failed", error=repr(second), addr=addr, exc_info=second)

    def _call_transport(self, name: str) -> None:
        # uvloop's and asyncio's own datagram transports cannot pause: then there is no backpressure.
        method = getattr(self._transport, name, None)
        if method is not None:
            method()
