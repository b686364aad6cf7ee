"""The inner loop of a lane: run handlers one after the other until one has to wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from aiolb.receive.door import DoorFactory, PlainDoor

if TYPE_CHECKING:
    from contextvars import Context

    from aiolb.receive.contract import Datagram

Handler = Callable[[bytes, Any], Awaitable[None]]


class Pending(Protocol):
    """The queue of datagrams that no lane has looked at yet."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Datagram]: ...

    def extend(self, datagrams: Sequence[Datagram], /) -> object:
        """Put a batch behind the others."""
        ...

    def popleft(self) -> Datagram:
        """Take the datagram that is first. Raises IndexError when there is none."""
        ...

    def clear(self) -> object:
        """Forget them all."""
        ...


class Stepper(Protocol):
    """Runs the handlers of one lane inside of its task.

    ``item`` is the datagram whose handler runs, is suspended, or raised; None when there is none.
    """

    item: Datagram | None

    def step(self, handle: Handler, limit: int) -> Awaitable[None] | None:
        """Take up to ``limit`` pending datagrams and run the handler of each until it returns.

        A datagram whose source is held by another lane is put aside instead. A handler that is suspended
        ends the step: what is left of it is returned, and must be awaited next, by the same task. None means
        that the limit is reached or that nothing is pending.

        Raises what a handler raised; ``item`` is its datagram then, and the others are still pending.
        """
        ...

    def run(self, handle: Handler, limit: int, seconds: float) -> Awaitable[None] | None:
        """Take such steps until a handler is suspended, nothing is pending, or ``seconds`` are over.

        The clock is looked at after each step. Raises what a handler raised.
        """
        ...

    def run_in(self, context: Context, handle: Handler, limit: int, seconds: float) -> Awaitable[None] | None:
        """``run`` in a context, which nobody may have entered."""
        ...


class StepperFactory(Protocol):
    """Makes the stepper of a lane, and the queue that the steppers of all lanes share; a stepper's class is one."""

    @property
    def queue(self) -> Callable[[], Pending]:
        """Makes the queue."""
        ...

    @property
    def door(self) -> DoorFactory:
        """Makes the door before the queue."""
        ...

    def __call__(
        self,
        pending: Any,  # what its own `queue` made
        holders: dict[Any, Any],
        put_aside: Callable[[Datagram], object],
        /,
    ) -> Stepper:
        """A stepper over ``pending``; ``put_aside`` gets what belongs to a source in ``holders``."""
        ...


class PlainStepper:
    """A :class:`Stepper` without compiled code."""

    queue: ClassVar[Callable[[], Pending]] = deque
    door: ClassVar[DoorFactory] = PlainDoor

    __slots__ = ("_holders", "_pending", "_put_aside", "item")

    def __init__(
        self,
        pending: Pending,
        holders: dict[Any, Any],
        put_aside: Callable[[Datagram], object],
        /,
    ) -> None:
        self.item: Datagram | None = None
        self._pending = pending
        self._holders = holders
        self._put_aside = put_aside

    def step(self, handle: Handler, limit: int) -> Awaitable[None] | None:
        """Run handlers; see :meth:`Stepper.step`."""
        pending, holders = self._pending, self._holders
        for _ in range(limit):
            if not pending:
                break
            item = pending.popleft()
            datagram, addr = item
            if holders and addr[0] in holders:
                self._put_aside(item)
                continue
            self.item = item
            handler = handle(datagram, addr)
            coroutine = handler if type(handler) is CoroutineType else as_coroutine(handler)
            try:
                yielded = coroutine.send(None)
            except StopIteration:
                continue
            return _Rest(coroutine, yielded)
        self.item = None
        return None

    def run(self, handle: Handler, limit: int, seconds: float) -> Awaitable[None] | None:
        """Run handlers for a turn; see :meth:`Stepper.run`."""
        end = time.monotonic() + seconds
        while True:
            rest = self.step(handle, limit)
            if rest is not None or not self._pending or time.monotonic() >= end:
                return rest

    def run_in(self, context: Context, handle: Handler, limit: int, seconds: float) -> Awaitable[None] | None:
        """Run handlers in a context; see :meth:`Stepper.run_in`."""
        return context.run(self.run, handle, limit, seconds)


class _Rest:
    """What is left of a coroutine that was started already: what it yielded first, then itself."""

    __slots__ = ("_coroutine", "_resumed", "_yielded")

    def __init__(self, coroutine: Coroutine[Any, Any, None], yielded: Any) -> None:
        self._coroutine = coroutine
        self._yielded = yielded
        self._resumed = False

    def __await__(self) -> Generator[Any, Any, None]:
        return self

    def __iter__(self) -> _Rest:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        if self._resumed:
            return self._coroutine.send(value)
        self._resumed = True
        yielded, self._yielded = self._yielded, None
        return yielded

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()


async def as_coroutine(handler: Awaitable[None]) -> None:
    """A native coroutine around any awaitable."""
    await handler
