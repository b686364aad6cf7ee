"""The door of the lanes: where batches come in, and a parked lane handles them at once."""

from __future__ import annotations

from asyncio.tasks import _enter_task, _leave_task
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Awaitable, Callable, Sequence

    from aiolb.receive.contract import Datagram


class Handlers(Protocol):
    """What handles datagrams."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Handle one datagram; those of one source come in order and one at a time."""
        ...


class Keeper(Protocol):
    """The lanes behind a door: they do what cannot be done at once."""

    def take_later(self, batch: Sequence[Datagram]) -> None:
        """Take a batch that no parked lane can handle now."""
        ...

    def recover(self, lane: Any, error: BaseException) -> Awaitable[None] | None:
        """Called where a handler raised, in its task and context: run the next ones, raise nothing."""
        ...

    def go_on(self, lane: Any, rest: Awaitable[None] | None) -> None:
        """Called behind the turn of a lane that left something to do: the rest of a handler, or datagrams."""
        ...


class Door(Protocol):
    """Where batches come in. A batch that finds a lane parked and no runner is handled before ``take`` returns.

    That costs no turn of the loop. While handlers run, theirs are the context of the lane's task and
    ``asyncio.current_task()``. Source: "Extending" in the asyncio documentation.

    ``received`` counts datagrams, ``runner`` is the lane that takes from ``pending``, ``parked`` are the lanes
    that wait for work; the keeper changes these too.
    """

    received: int
    runner: Any
    parked: list[Any]
    cork: Callable[[], object] | None
    """With ``uncork``, called before and after several handlers run in one turn: what they send leaves together."""
    uncork: Callable[[], object] | None

    def take(self, batch: Sequence[Datagram], /) -> None:
        """Take a batch in one call."""
        ...


class DoorFactory(Protocol):
    """Makes a door; its class is one."""

    def __call__(
        self,
        keeper: Keeper,
        handlers: Handlers,
        pending: Any,
        loop: AbstractEventLoop,
        *,
        at_once: bool,
        limit: int,
        seconds: float,
    ) -> Door:
        """A door before ``pending`` and ``handlers``.

        ``limit`` and ``seconds`` are those of :meth:`aiolb.receive.step.Stepper.run`. Without ``at_once`` every
        batch is taken later.
        """
        ...


class PlainDoor:
    """A :class:`Door` without compiled code."""

    def __init__(
        self,
        keeper: Keeper,
        handlers: Handlers,
        pending: Any,
        loop: AbstractEventLoop,
        *,
        at_once: bool,
        limit: int,
        seconds: float,
    ) -> None:
        self.received = 0
        self.runner: Any = None
        self.parked: list[Any] = []
        self.cork: Callable[[], object] | None = None
        self.uncork: Callable[[], object] | None = None
        self._keeper = keeper
        self._handlers = handlers
        self._pending = pending
        self._loop = loop
        self._at_once = at_once
        self._limit = limit
        self._seconds = seconds

    def take(self, batch: Sequence[Datagram], /) -> None:
        """Take a batch; see :meth:`Door.take`."""
        self.received += len(batch)
        if self.runner is not None or not self.parked or not self._at_once:
            self._keeper.take_later(batch)
            return
        self._pending.extend(batch)
        lane = self.parked[-1]
        if lane.wakeup.done() or not self._enter(lane):
            self._keeper.take_later(())
            return
        self.runner = lane
        rest = self._run(lane)
        if rest is None and not self._pending:
            # All is as it was before: who waits for room, or for nothing to be pending, need not be told.
            self.runner = None
        else:
            self._keeper.go_on(lane, rest)

    def _enter(self, lane: Any) -> bool:
        try:
            _enter_task(self._loop, lane.task)
        except RuntimeError:
            # This very call comes from a task.
            return False
        return True

    def _run(self, lane: Any) -> Awaitable[None] | None:
        rest: Awaitable[None] | None
        # What answers a single datagram may leave by itself.
        corked = len(self._pending) > 1
        try:
            if corked and self.cork is not None:
                self.cork()
            rest = lane.stepper.run_in(lane.context, self._handlers.handle, self._limit, self._seconds)
        except BaseException as error:  # noqa: BLE001 - the keeper raises it where it belongs, in the task
            rest = lane.context.run(self._keeper.recover, lane, error)
        finally:
            _leave_task(self._loop, lane.task)
            if corked and self.uncork is not None:
                self.uncork()
        return rest
