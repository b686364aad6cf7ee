"""Lanes: the tasks that run handlers, each source in order, and what is held for them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from aiolb.lane import CURRENT_LANE, Lane
from aiolb.receive import door
from aiolb.receive.step import PlainStepper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from contextvars import Context

    from aiolb.receive.contract import Datagram
    from aiolb.receive.step import StepperFactory

# Seconds for which a lane handles datagrams before it lets timers and other tasks run, and how many it handles
# between two looks at the clock.
_TURN = 0.001
_STEP = 64


class Handlers(door.Handlers, Protocol):
    """What the lanes run: datagrams one by one, or batches."""

    async def handle_batch(self, batch: list[Datagram]) -> None:
        """Handle all datagrams that are pending; called one at a time."""
        ...


class Surroundings(Protocol):
    """What the lanes ask of the protocol around them."""

    def pause(self) -> None:
        """Stop reading: too much is held."""
        ...

    def make_room(self) -> None:
        """Read again if what is held allows it; called whenever it got less."""
        ...

    def report(self, error: BaseException, in_hand: tuple[Datagram, ...]) -> None:
        """Tell of what a handler raised."""
        ...


class Lanes:
    """Runs handlers, and loses no datagram until ``stop``.

    One lane at a time is the runner: it takes pending datagrams one after the other and awaits the handler
    of each. A handler that never blocks costs that one await. When a handler is suspended, the runner
    becomes the holder of that datagram's source and another lane becomes the runner, up to
    ``concurrency`` lanes. The runner moves datagrams of a held source behind its holder, who
    handles them in order before it lets the source go.

    With ``batches`` there is one lane, which hands all that is pending to ``handle_batch``. ``stepper`` makes
    the inner loop of each lane. ``backlog`` datagrams that are held pause reading.
    """

    def __init__(
        self,
        handlers: Handlers,
        surroundings: Surroundings,
        *,
        concurrency: int,
        backlog: int,
        batches: bool,
        stepper: StepperFactory = PlainStepper,
        context: Context,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._handlers = handlers
        self._surroundings = surroundings
        self._concurrency = 1 if batches else concurrency
        self._backlog = backlog
        self._batches = batches
        self._stepper_factory = stepper
        self._context = context
        self._loop = loop
        self.pending = stepper.queue()
        self.door = stepper.door(self, handlers, self.pending, loop, at_once=not batches, limit=_STEP, seconds=_TURN)
        self.waiting = 0
        self.errors = self.abandoned = 0
        self.all: set[Lane] = set()
        self._holders: dict[Any, Lane] = {}
        self._made = 0
        self._quiet = asyncio.Event()
        self._stopped = False

    @property
    def in_flight(self) -> int:
        """Datagrams whose handler has begun and not ended."""
        return sum(len(lane.in_hand()) for lane in self.all)

    @property
    def held(self) -> int:
        """Datagrams that were taken and are not handled yet."""
        return 0 if self.is_drained() else len(self.pending) + self.waiting + self.in_flight

    async def drained(self) -> None:
        """Return when no datagram is pending, waiting or in flight."""
        while not self.is_drained():
            self._quiet.clear()
            await self._quiet.wait()

    def is_drained(self) -> bool:
        """Whether no datagram is pending, waiting or in flight."""
        return not self.pending and not self._holders and self.door.runner is None

    def stop(self) -> int:
        """Cancel all handlers and give up what is held; the number of datagrams given up by this call."""
        if self._stopped:
            return 0
        self._stopped = True
        abandoned = self.held
        self.abandoned += abandoned
        self.pending.clear()
        self.waiting = 0
        self._holders.clear()
        self.door.parked.clear()
        self.door.runner = None
        for lane in self.all:
            self._dismiss(lane)
        self._quiet.set()
        return abandoned

    async def ended(self) -> None:
        """Return when every task has ended, but for the one that waits for it."""
        tasks = {lane.task for lane in self.all if lane.task is not None} - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks)

    # Each method runs without interruption between two awaits. Invariants there:
    # a datagram is in exactly one of pending, one lane's backlog, and one lane's hand;
    # only the runner takes from pending; only the holder of a source handles that source;
    # runner is None with datagrams pending only while every lane holds a source.

    # What the door calls

    def take_later(self, batch: Sequence[Datagram]) -> None:
        """Take a batch; its handlers start with a later turn of the loop."""
        if self._stopped:
            self.abandoned += len(batch)
            return
        self.pending.extend(batch)
        if self.door.runner is None and self.pending:
            self._appoint()
        self._check_backlog()

    def recover(self, lane: Lane, error: BaseException) -> Awaitable[None] | None:
        """See to what a handler raised that was started at once, and run the next ones."""
        try:
            if self._failed(lane, error):
                return _raising(error)
            return self._take_steps(lane)
        except BaseException as fatal:  # noqa: BLE001 - it is raised where it belongs, in the task
            return _raising(fatal)

    def go_on(self, lane: Lane, rest: Awaitable[None] | None) -> None:
        """Let a lane that was started at once go on with a turn of its own."""
        # Gone from there, and about to end, if the handler stopped the lanes.
        if lane in self.door.parked:
            self.door.parked.remove(lane)
        lane.rest = rest
        if rest is not None:
            self._hand_over(lane)
        lane.wake()
        self._check_backlog()

    def _check_backlog(self) -> None:
        if len(self.pending) + self.waiting >= self._backlog:
            self._surroundings.pause()

    # The life of a lane

    def _appoint(self) -> None:
        """Make a free lane the runner, or pause reading when none is free."""
        while self.door.parked:
            lane = self.door.parked.pop()
            # A parked lane that was cancelled from outside is about to end.
            if lane.wakeup is not None and not lane.wakeup.done():
                self.door.runner = lane
                lane.wake()
                return
        if len(self.all) < self._concurrency:
            self.door.runner = lane = self._make_lane()
            self._open(lane)
        else:
            self._surroundings.pause()

    def _make_lane(self) -> Lane:
        # A context of its own: a lane made after another's step must not inherit what handlers set there.
        stepper = self._stepper_factory(self.pending, self._holders, self._put_behind)
        lane = Lane(stepper, self._context.copy())
        lane.context.run(CURRENT_LANE.set, lane)
        return lane

    def _open(self, lane: Lane) -> None:
        self.all.add(lane)
        self._made += 1
        lane.task = self._loop.create_task(self._live(lane), name=f"aiolb-lane-{self._made}", context=lane.context)
        lane.task.add_done_callback(lambda task: self._ended(lane, task), context=self._context)

    async def _live(self, lane: Lane) -> None:
        while True:
            if lane.rest is not None:
                await self._finish(lane)
            elif self._stopped or lane.is_cancelled():
                return
            elif lane.source is not None:
                await self._finish_source(lane)
            elif self.door.runner is lane:
                await (self._run_batch(lane) if self._batches else self._run(lane))
            elif self.door.runner is None and self.pending:
                self.door.runner = lane
            else:
                await self._park(lane)

    async def _park(self, lane: Lane) -> None:
        lane.wakeup = self._loop.create_future()
        self.door.parked.append(lane)
        self._check_drained()
        try:
            await lane.wakeup
        except asyncio.CancelledError as error:
            if lane.rest is None or lane.task is None:
                raise
            # It is meant for the handler that was started meanwhile: let it come again where that one waits.
            lane.task.uncancel()
            lane.task.cancel(*error.args)

    async def _run(self, lane: Lane) -> None:
        """Be the runner for one turn."""
        if self.door.cork is not None:
            self.door.cork()
        try:
            lane.rest = self._take_steps(lane)
        finally:
            if self.door.uncork is not None:
                self.door.uncork()
        if lane.rest is not None:
            self._hand_over(lane)
            await self._finish(lane)
        elif self.door.runner is not lane:
            return
        elif self.pending:
            await asyncio.sleep(0)
        else:
            self.door.runner = None
            self._surroundings.make_room()

    def _take_steps(self, lane: Lane) -> Awaitable[None] | None:
        """Run handlers until one is suspended (what is left of it is returned), none is pending, or time is over."""
        end = time.monotonic() + _TURN
        while True:
            try:
                return lane.stepper.run(self._handlers.handle, _STEP, end - time.monotonic())
            except BaseException as error:
                if self._failed(lane, error):
                    raise
            if not self.pending or time.monotonic() >= end:
                return None

    async def _finish(self, lane: Lane) -> None:
        """Await what is left of a handler that was suspended."""
        rest, lane.rest = lane.rest, None
        try:
            if rest is not None:
                await rest
        except BaseException as error:
            if self._failed(lane, error):
                raise
        lane.item = None

    def _hand_over(self, lane: Lane) -> None:
        """The runner's handler is suspended: it holds its source from now on, and somebody else goes on."""
        if self.door.runner is lane and lane.item is not None:
            lane.source = lane.item[1][0]
            self._holders[lane.source] = lane
            self.door.runner = None
            if self.pending:
                self._appoint()
            else:
                self._surroundings.make_room()

    def _put_behind(self, item: Datagram) -> None:
        """Put a datagram of a held source behind what its holder works on."""
        self._holders[item[1][0]].backlog.append(item)
        self.waiting += 1
        if self.waiting >= self._backlog:
            self._surroundings.pause()

    async def _finish_source(self, lane: Lane) -> None:
        """Handle for one turn what waits behind this lane, and let its source go when nothing does."""
        backlog, handle, end = lane.backlog, self._handlers.handle, time.monotonic() + _TURN
        while True:
            if self._stopped or lane.is_cancelled():
                lane.item = None
                return
            if not backlog:
                del self._holders[lane.source]
                lane.item = lane.source = None
                return
            lane.item = backlog.popleft()
            self.waiting -= 1
            self._surroundings.make_room()
            try:
                await handle(*lane.item)
            except BaseException as error:
                if self._failed(lane, error):
                    raise
            if time.monotonic() >= end:
                break
        lane.item = None
        await asyncio.sleep(0)

    async def _run_batch(self, lane: Lane) -> None:
        """Be the runner for one batch."""
        if not self.pending:
            self.door.runner = None
            return
        lane.batch = tuple(self.pending)
        self.pending.clear()
        self._surroundings.make_room()
        try:
            await self._handlers.handle_batch(list(lane.batch))
        except BaseException as error:
            if self._failed(lane, error):
                raise
        lane.batch = ()

    def _ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        """Pass on what a lane held that ended before its time; only ``stop`` gives datagrams up."""
        self.all.discard(lane)
        if lane in self.door.parked:
            self.door.parked.remove(lane)
        self._tell_loop(task)
        if self._stopped:
            return
        if self.door.runner is lane:
            self.door.runner = None
        if lane.source is not None:
            self._succeed(lane)
        if self.door.runner is None and self.pending:
            self._appoint()
        self._surroundings.make_room()
        self._check_drained()

    def _succeed(self, lane: Lane) -> None:
        del self._holders[lane.source]
        if lane.backlog:
            successor = self._make_lane()
            successor.source, successor.backlog = lane.source, lane.backlog
            self._holders[successor.source] = successor
            self._open(successor)

    def _dismiss(self, lane: Lane) -> None:
        lane.item = lane.source = None
        lane.batch = ()
        lane.backlog.clear()
        if lane.task is not None:
            lane.task.cancel()

    def _check_drained(self) -> None:
        if self.is_drained():
            self._quiet.set()

    def _failed(self, lane: Lane, error: BaseException) -> bool:
        """Count and report what a handler raised; true when it must end the lane.

        A cancellation that nobody asked the lane for comes from within the handler and is an error like
        any other.
        """
        cancelled = isinstance(error, asyncio.CancelledError)
        fatal = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        in_hand, lane.item, lane.batch = lane.in_hand(), None, ()
        self.errors += len(in_hand)
        if not fatal and not (cancelled and self._stopped):
            self._surroundings.report(error, in_hand)
        return fatal or (cancelled and (self._stopped or lane.is_cancelled()))

    def _tell_loop(self, task: asyncio.Task[None]) -> None:
        """A lane catches what handlers raise, so its own failure is a defect here and must be seen."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            self._loop.call_exception_handler({"message": "a lane failed", "exception": error, "task": task})


async def _raising(error: BaseException) -> None:
    raise error
