"""The compiled inner loop of a lane, and the door: a handler that returns at once costs one call and one send."""

from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, ClassVar

from aiolb.receive._fast_pending import FastPending
from aiolb.receive.contract import Datagram
from aiolb.receive.door import Handlers, Keeper
from aiolb.receive.step import Handler

class FastDoor:
    """A :class:`~aiolb.receive.door.Door` in C, the twin of PlainDoor."""

    received: int
    runner: Any
    parked: list[Any]
    cork: Callable[[], object] | None
    uncork: Callable[[], object] | None

    def __init__(
        self,
        keeper: Keeper,
        handlers: Handlers,
        pending: FastPending,
        loop: AbstractEventLoop,
        *,
        at_once: bool,
        limit: int,
        seconds: float,
    ) -> None: ...
    def take(self, batch: Sequence[Datagram], /) -> None: ...

class FastStepper:
    """A :class:`~aiolb.receive.step.Stepper` in C, the twin of PlainStepper."""

    queue: ClassVar[type[FastPending]]
    door: ClassVar[type[FastDoor]]
    item: Datagram | None

    def __init__(
        self, pending: FastPending, holders: dict[Any, Any], put_aside: Callable[[Datagram], object], /
    ) -> None: ...
    def step(self, handle: Handler, limit: int) -> Awaitable[None] | None: ...
    def run(self, handle: Handler, limit: int, seconds: float) -> Awaitable[None] | None: ...
    def run_in(self, context: Context, handle: Handler, limit: int, seconds: float) -> Awaitable[None] | None: ...
