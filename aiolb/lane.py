"""A lane: one task that runs handlers, and what it has in hand."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextvars import Context

    from aiolb.receive.contract import Datagram
    from aiolb.receive.step import Stepper


class Lane:
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
        """The datagram in hand."""
        return self.stepper.item

    @item.setter
    def item(self, item: Datagram | None) -> None:
        self.stepper.item = item

    def in_hand(self) -> tuple[Datagram, ...]:
        """The datagrams whose handler has begun and not ended."""
        return (self.item,) if self.item is not None else self.batch

    def is_cancelled(self) -> bool:
        """Whether somebody asked the task to end, and no handler took that for itself."""
        return self.task is not None and self.task.cancelling() > 0

    def wake(self) -> None:
        """Let a parked task go on; one that was cancelled does anyway."""
        if self.wakeup is not None and not self.wakeup.done():
            self.wakeup.set_result(None)


CURRENT_LANE: ContextVar[Lane] = ContextVar("aiolb_lane")
"""Inside a handler: the lane that runs it."""


def received_at() -> int | None:
    """When the kernel got the datagram in hand, in nanoseconds since 1970.

    None outside of a handler, in a task that a handler started, and where no timestamps were asked for.
    """
    lane = CURRENT_LANE.get(None)
    if lane is None or lane.task is not asyncio.current_task():
        return None
    return getattr(lane.item, "received_at", None)
