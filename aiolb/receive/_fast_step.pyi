"""The compiled inner loop of a lane: a handler that returns at once costs one call and one send."""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aiolb.receive.contract import Datagram
from aiolb.receive.step import Handler

class FastStepper:
    """A :class:`~aiolb.receive.step.Stepper` in C, the twin of PlainStepper; ``holders`` must be a dict."""

    item: Datagram | None

    def __init__(
        self,
        pending: deque[Datagram],
        holders: dict[Any, Any],
        put_aside: Callable[[Datagram], object],
        /,
    ) -> None: ...
    def step(self, handle: Handler, limit: int) -> Awaitable[None] | None: ...
