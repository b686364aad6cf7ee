"""The compiled inner loop of a lane: a handler that returns at once costs one call and one send."""

from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, ClassVar

from aiolb.receive._fast_pending import FastPending
from aiolb.receive.contract import Datagram
from aiolb.receive.step import Handler

class FastStepper:
    """A :class:`~aiolb.receive.step.Stepper` in C, the twin of PlainStepper."""

    queue: ClassVar[type[FastPending]]
    item: Datagram | None

    def __init__(
        self, pending: FastPending, holders: dict[Any, Any], put_aside: Callable[[Datagram], object], /
    ) -> None: ...
    def step(self, handle: Handler, limit: int) -> Awaitable[None] | None: ...
    def run(self, handle: Handler, limit: int, seconds: float) -> Awaitable[None] | None: ...
    def run_in(self, context: Context, handle: Handler, limit: int, seconds: float) -> Awaitable[None] | None: ...
