"""The asyncio protocol of a collector: lanes that keep each source in order, and backpressure."""

from __future__ import annotations

import asyncio
import math
import time
from asyncio.tasks import _enter_task, _leave_task
from collections import deque
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog

from aiolb.errors import ConfigurationError
from aiolb.receive.step import PlainStepper
from aiolb.stats import ProtocolStatistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextvars import Context

    from aiolb.receive.contract import Datagram
    from aiolb.receive.step import Stepper, StepperFactory

CURRENT_TRANSPORT: ContextVar[asyncio.DatagramTransport] = ContextVar("aiolb_transport")
"""Inside a handler: the transport that its datagram came in on."""

CONCURRENCY = 128
"""Handlers in flight at most, unless told otherwise."""
BACKLOG = 4096
"""Datagrams that may be held before reading is paused, unless told otherwise."""

# Seconds for which a lane handles datagrams before it lets timers and other tasks run, and how many it handles
# between two looks at the clock.
_TURN = 0.001
_STEP = 64
_LOG_INTERVAL = 1.0

_log = structlog.get_logger(__name__)


class Application(Protocol):
    """What the protocol and the server ask of a collector."""

    @property
    def takes_batches(self) -> bool:
        """Whether ``handle_batch`` is to be called instead of ``handle``."""
        ...

    def attach(self, server: Any) -> None:
        """Called once before ``startup`` with the server that will run the collector."""
        ...

    async def startup(self) -> None:
        """Called once before the first datagram."""
        ...

    async def shutdown(self) -> None:
        """Called once after the last handler ended."""
        ...

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Handle one datagram; those of one source come in order and one at a time."""
        ...

    async def handle_batch(self, batch: list[Datagram]) -> None:
        """Handle all datagrams that are pending; called one at a time."""
        ...

    def on_error(self, exc: BaseException, datagram: bytes, addr: Any) -> None:
        """Told of each datagram whose handler raised."""
        ...

    def report(self) -> Mapping[str, Any]:
        """What the collector wants to show of itself, by name."""
        ...


class _Lane:
    """One task that runs handlers, one at a time.

    ``item`` (or ``batch``) is what its handler works on. ``source`` is set while the lane holds a source:
    from the moment its handler is found suspended until everything in ``backlog`` is handled too. ``rest``
    is what is left of a handler that was started in the name of the parked task.
    """

    __slots__ = ("backlog", "batch", "context", "rest", "source", "stepper", "task", "wakeup")

    def __init__(self, stepper: Stepper, context: Context) -> None:
        self.stepper = stepper
        self.context = context
        self.rest: Awaitable[None] | None = None
        self.batch: tuple[Datagram, ...] = ()
        self.source: Any = None
        self.backlog: deque[Datagram] = deque()
        self.task: asyncio.Task[None] | None = None
        self.wakeup: asyncio.Future[None] | None = None

    @property
    def item(self) -> Datagram | None:
        return self.stepper.item

    @item.setter
    def item(self, item: Datagram | None) -> None:
        self.stepper.item = item

    def in_hand(self) -> tuple[Datagram, ...]:
        return (self.item,) if self.item is not None else self.batch

    def is_cancelled(self) -> bool:
        """Whether somebody asked the task to end, and no handler took that for itself."""
        return self.task is not None and self.task.cancelling() > 0

    def wake(self) -> None:
        """Let a parked task go on; one that was cancelled does anyway."""
        if self.wakeup is not None and not self.wakeup.done():
            self.wakeup.set_result(None)


class _Sampling:
    """Which of many alike events to log: the first, then at most one a second."""

    def __init__(self) -> None:
        self._next = -math.inf
        self._suppressed = 0

    def admit(self, now: float) -> int | None:
        """The number suppressed since the last one that was logged; None to suppress this one."""
        if now < self._next:
            self._suppressed += 1
            return None
        suppressed, self._suppressed, self._next = self._suppressed, 0, now + _LOG_INTERVAL
        return suppressed


class CollectorProtocol(asyncio.DatagramProtocol):
    """Runs the handlers of an application over one transport, and loses no datagram until ``stop``.

    One lane at a time is the runner: it takes pending datagrams one after the other and awaits the handler
    of each. A handler that never blocks costs that one await. When a handler is suspended, the runner
    becomes the holder of that datagram's source and another lane becomes the runner, up to
    ``concurrency`` lanes. The runner moves datagrams of a held source behind its holder, who
    handles them in order before it lets the source go.

    Reading is paused when every lane is suspended with datagrams pending, when ``backlog`` datagrams are
    pending or waiting, and while the transport's write buffer is over its limit. It resumes when nothing
    is pending and half of the backlog is gone.

    With ``batches`` there is one lane, which hands all that is pending to ``handle_batch``. ``stepper`` makes
    the inner loop of each lane.

    Raises ConfigurationError when concurrency or backlog is not positive.
    """

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
        self._concurrency = 1 if batches else concurrency
        self._backlog = backlog
        self._batches = batches
        self._stepper_factory = stepper
        self._loop = loop
        self._transport: asyncio.DatagramTransport | None = None
        self._context = copy_context()
        self._cork: Callable[[], None] = _nothing
        self._uncork: Callable[[], None] = _nothing

        self._pending = stepper.queue()
        self._runner: _Lane | None = None
        self._holders: dict[Any, _Lane] = {}
        self._waiting = 0
        self._lanes: set[_Lane] = set()
        self._idle: list[_Lane] = []
        self._lanes_made = 0

        self._room = asyncio.Event()
        self._room.set()
        self._quiet = asyncio.Event()
        self._closed = asyncio.Event()
        self._writing_paused = False
        self._reading_over = False
        self._stopped = False

        self._received = self._errors = self._abandoned = self._socket_errors = 0
        self._handler_sampling = _Sampling()
        self._socket_sampling = _Sampling()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport; handlers find it in ``CURRENT_TRANSPORT``."""
        self._transport = cast("asyncio.DatagramTransport", transport)
        self._cork = getattr(transport, "cork", _nothing)
        self._uncork = getattr(transport, "uncork", _nothing)
        self._context.run(CURRENT_TRANSPORT.set, self._transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Take one datagram; its handler may start at once, or with the next turn of the loop."""
        self.datagrams_received([(data, addr)])

    def datagrams_received(self, batch: Sequence[Datagram]) -> None:
        """Take a batch in one call; handlers may start at once, or with the next turn of the loop."""
        self._received += len(batch)
        if self._stopped:
            self._abandoned += len(batch)
            return
        self._pending.extend(batch)
        if self._runner is None and self._pending:
            if self._idle and not self._batches and asyncio.current_task(self._loop) is None:
                self._run_at_once()
            else:
                self._appoint()
        if len(self._pending) + self._waiting >= self._backlog:
            self._pause()

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
        self._pause()

    def resume_writing(self) -> None:
        """Read again, unless the backlog still forbids it."""
        self._writing_paused = False
        self._make_room()

    # What the server calls

    async def drained(self) -> None:
        """Return when no datagram is pending, waiting or in flight."""
        while not self._is_drained():
            self._quiet.clear()
            await self._quiet.wait()

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
        in_flight = sum(len(lane.in_hand()) for lane in self._lanes)
        abandoned = len(self._pending) + self._waiting + in_flight
        self._abandoned += abandoned
        self._pending.clear()
        self._waiting = 0
        self._holders.clear()
        self._idle.clear()
        self._runner = None
        for lane in self._lanes:
            self._dismiss(lane)
        self._room.set()
        self._quiet.set()
        return abandoned

    async def aclose(self) -> None:
        """Stop, and wait until every cancelled handler has ended."""
        self.stop()
        tasks = {lane.task for lane in self._lanes if lane.task is not None} - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks)

    async def closed(self) -> None:
        """Return when the transport has called ``connection_lost`` and, if it is ours, closed its socket."""
        await self._closed.wait()

    def statistics(self) -> ProtocolStatistics:
        """What became of every datagram so far."""
        pending, waiting = len(self._pending), self._waiting
        in_flight = sum(len(lane.in_hand()) for lane in self._lanes)
        unhandled = self._errors + pending + waiting + in_flight + self._abandoned
        return ProtocolStatistics(
            received=self._received,
            handled=self._received - unhandled,
            errors=self._errors,
            pending=pending,
            waiting=waiting,
            in_flight=in_flight,
            abandoned=self._abandoned,
            lanes=len(self._lanes),
            socket_errors=self._socket_errors,
        )

    # Lanes: each method runs without interruption between two awaits. Invariants there:
    # a datagram is in exactly one of _pending, one lane's backlog, and one lane's hand;
    # only the runner takes from _pending; only the holder of a source handles that source;
    # _runner is None with datagrams pending only while every lane holds a source.

    def _appoint(self) -> None:
        """Make a free lane the runner, or pause reading when none is free."""
        while self._idle:
            lane = self._idle.pop()
            # A parked lane that was cancelled from outside is about to end.
            if lane.wakeup is not None and not lane.wakeup.done():
                self._runner = lane
                lane.wake()
                return
        if len(self._lanes) < self._concurrency:
            self._runner = lane = self._make_lane()
            self._open(lane)
        else:
            self._pause()

    def _make_lane(self) -> _Lane:
        # A context of its own: a lane made after another's step must not inherit what handlers set there.
        stepper = self._stepper_factory(self._pending, self._holders, self._put_behind)
        return _Lane(stepper, self._context.copy())

    def _open(self, lane: _Lane) -> None:
        self._lanes.add(lane)
        self._lanes_made += 1
        lane.task = self._loop.create_task(
            self._live(lane), name=f"aiolb-lane-{self._lanes_made}", context=lane.context
        )
        lane.task.add_done_callback(lambda task: self._ended(lane, task), context=self._context)

    async def _live(self, lane: _Lane) -> None:
        while True:
            if lane.rest is not None:
                await self._finish(lane)
            elif self._stopped or lane.is_cancelled():
                return
            elif lane.source is not None:
                await self._finish_source(lane)
            elif self._runner is lane:
                await (self._run_batch(lane) if self._batches else self._run(lane))
            elif self._runner is None and self._pending:
                self._runner = lane
            else:
                await self._park(lane)

    async def _park(self, lane: _Lane) -> None:
        lane.wakeup = self._loop.create_future()
        self._idle.append(lane)
        self._check_drained()
        try:
            await lane.wakeup
        except asyncio.CancelledError as error:
            if lane.rest is None or lane.task is None:
                raise
            # It is meant for the handler that was started meanwhile: let it come again where that one waits.
            lane.task.uncancel()
            lane.task.cancel(*error.args)

    def _run_at_once(self) -> None:
        """Run handlers in the name of a parked lane's task, which costs no turn of the loop.

        While they run, theirs are the context of the task and ``asyncio.current_task()``. A handler that is
        suspended goes on in the task itself. Source: "Extending" in the asyncio documentation.
        """
        lane = self._idle.pop()
        if lane.task is None or lane.wakeup is None or lane.wakeup.done():
            self._appoint()
            return
        self._runner = lane
        _enter_task(self._loop, lane.task)
        try:
            lane.rest = lane.context.run(self._take_steps, lane)
        except BaseException as error:  # noqa: BLE001 - it is raised where it belongs, in the task
            lane.rest = _raising(error)
        finally:
            _leave_task(self._loop, lane.task)
        if lane.rest is not None:
            self._hand_over(lane)
            lane.wake()
        elif self._runner is lane and self._pending:
            lane.wake()
        elif not lane.wakeup.done():
            # All is as it was before: who waits for room, or for nothing to be pending, need not be told.
            self._runner = None
            self._idle.append(lane)

    async def _run(self, lane: _Lane) -> None:
        """Be the runner for one turn."""
        lane.rest = self._take_steps(lane)
        if lane.rest is not None:
            self._hand_over(lane)
            await self._finish(lane)
        elif self._runner is not lane:
            return
        elif self._pending:
            await asyncio.sleep(0)
        else:
            self._runner = None
            self._make_room()

    def _take_steps(self, lane: _Lane) -> Awaitable[None] | None:
        """Run handlers until one is suspended (what is left of it is returned), none is pending, or time is over.

        What they send leaves together.
        """
        step, handle, end = lane.stepper.step, self._application.handle, time.monotonic() + _TURN
        self._cork()
        try:
            while self._pending and self._runner is lane:
                try:
                    rest = step(handle, _STEP)
                except BaseException as error:
                    if self._failed(lane, error):
                        raise
                else:
                    if rest is not None:
                        return rest
                if self._pending and time.monotonic() >= end:
                    break
        finally:
            self._uncork()
        lane.item = None
        return None

    async def _finish(self, lane: _Lane) -> None:
        """Await what is left of a handler that was suspended."""
        rest, lane.rest = lane.rest, None
        try:
            if rest is not None:
                await rest
        except BaseException as error:
            if self._failed(lane, error):
                raise
        lane.item = None

    def _hand_over(self, lane: _Lane) -> None:
        """The runner's handler is suspended: it holds its source from now on, and somebody else goes on."""
        if self._runner is lane and lane.item is not None:
            lane.source = lane.item[1][0]
            self._holders[lane.source] = lane
            self._runner = None
            if self._pending:
                self._appoint()
            else:
                self._make_room()

    def _put_behind(self, item: Datagram) -> None:
        """Put a datagram of a held source behind what its holder works on."""
        self._holders[item[1][0]].backlog.append(item)
        self._waiting += 1
        if self._waiting >= self._backlog:
            self._pause()

    async def _finish_source(self, lane: _Lane) -> None:
        """Handle for one turn what waits behind this lane, and let its source go when nothing does."""
        backlog, handle, end = lane.backlog, self._application.handle, time.monotonic() + _TURN
        while True:
            if self._stopped or lane.is_cancelled():
                lane.item = None
                return
            if not backlog:
                del self._holders[lane.source]
                lane.item = lane.source = None
                return
            lane.item = backlog.popleft()
            self._waiting -= 1
            self._make_room()
            try:
                await handle(*lane.item)
            except BaseException as error:
                if self._failed(lane, error):
                    raise
            if time.monotonic() >= end:
                break
        lane.item = None
        await asyncio.sleep(0)

    async def _run_batch(self, lane: _Lane) -> None:
        """Be the runner for one batch."""
        if not self._pending:
            self._runner = None
            return
        lane.batch = tuple(self._pending)
        self._pending.clear()
        self._make_room()
        try:
            await self._application.handle_batch(list(lane.batch))
        except BaseException as error:
            if self._failed(lane, error):
                raise
        lane.batch = ()

    def _ended(self, lane: _Lane, task: asyncio.Task[None]) -> None:
        """Pass on what a lane held that ended before its time; only ``stop`` gives datagrams up."""
        self._lanes.discard(lane)
        if lane in self._idle:
            self._idle.remove(lane)
        self._tell_loop(task)
        if self._stopped:
            return
        if self._runner is lane:
            self._runner = None
        if lane.source is not None:
            self._succeed(lane)
        if self._runner is None and self._pending:
            self._appoint()
        self._make_room()
        self._check_drained()

    def _succeed(self, lane: _Lane) -> None:
        del self._holders[lane.source]
        if lane.backlog:
            successor = self._make_lane()
            successor.source, successor.backlog = lane.source, lane.backlog
            self._holders[successor.source] = successor
            self._open(successor)

    def _dismiss(self, lane: _Lane) -> None:
        lane.item = lane.source = None
        lane.batch = ()
        lane.backlog.clear()
        if lane.task is not None:
            lane.task.cancel()

    def _is_drained(self) -> bool:
        return not self._pending and not self._holders and self._runner is None

    def _check_drained(self) -> None:
        if self._is_drained():
            self._quiet.set()

    # Backpressure

    def _pause(self) -> None:
        if self._room.is_set() and not self._stopped:
            self._room.clear()
            self._call_transport("pause_reading")

    def _make_room(self) -> None:
        if self._room.is_set() or self._writing_paused:
            return
        if not self._pending and self._waiting <= self._backlog // 2:
            self._room.set()
            if not self._reading_over:
                self._call_transport("resume_reading")

    def _call_transport(self, name: str) -> None:
        # uvloop's and asyncio's own datagram transports cannot pause: then there is no backpressure.
        method = getattr(self._transport, name, None)
        if method is not None:
            method()

    # Errors

    def _failed(self, lane: _Lane, error: BaseException) -> bool:
        """Count and report what a handler raised; true when it must end the lane.

        A cancellation that nobody asked the lane for comes from within the handler and is an error like
        any other.
        """
        cancelled = isinstance(error, asyncio.CancelledError)
        fatal = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        in_hand, lane.item, lane.batch = lane.in_hand(), None, ()
        self._errors += len(in_hand)
        if not fatal and not (cancelled and self._stopped):
            self._report(error, in_hand)
        return fatal or (cancelled and (self._stopped or lane.is_cancelled()))

    def _report(self, error: BaseException, in_hand: tuple[Datagram, ...]) -> None:
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

    def _tell_loop(self, task: asyncio.Task[None]) -> None:
        """A lane catches what handlers raise, so its own failure is a defect here and must be seen."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            self._loop.call_exception_handler({"message": "a lane failed", "exception": error, "task": task})


def _nothing() -> None:
    pass


async def _raising(error: BaseException) -> None:
    raise error
