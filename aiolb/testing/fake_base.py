"""What members without a socket have in common: begin, end, errors, statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, cast

from aiolb.server import Server
from aiolb.testing.life import Life
from aiolb.testing.outcomes import Outcomes
from aiolb.testing.watched import B, WatchedBase

if TYPE_CHECKING:
    from aiolb.listener import Listener

SOURCE = ("192.0.2.1", 40000)
"""Where datagrams and connections come from unless told otherwise: an address that is nobody's (RFC 5737)."""


class FakeBase(ABC, Generic[B]):
    """A collector that is started and stopped by its real server; see :func:`aiolb.testing.collector`."""

    def __init__(self, app: WatchedBase[B], server: Server, outcomes: Outcomes) -> None:
        self.collector: B = app.collector
        """The collector."""
        self.errors = outcomes.errors
        """What handlers and ``shutdown()`` raised so far."""
        self._outcomes = outcomes
        self._life = Life(server)

    @property
    def stopping(self) -> bool:
        """Whether the collector asked to stop, or was stopped; it goes on until :meth:`stop`."""
        return self._life.server.stopping

    async def start(self) -> None:
        """Run the collector's ``startup()``. Raises what :meth:`aiolb.Server.start` raises."""
        await self._life.start(lambda _: cast("Listener", self._listen()))

    async def stop(self) -> None:
        """Stop as a server does: handle what is queued, then ``shutdown()``. Idempotent."""
        await self._life.stop()
        self._outcomes.give_up_all()

    @abstractmethod
    def _listen(self) -> object:
        """What the server sees of the kernel."""

    def hang_up(self) -> None:
        """Let the other ends go, before the stop at the end of a test."""
