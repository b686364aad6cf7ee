"""What members without a socket have in common: begin, end, errors, statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from aiolb.errors import AiolbError
from aiolb.server import Server
from aiolb.testing.fake_listener import FakeListenerBase
from aiolb.testing.life import Life
from aiolb.testing.outcomes import Outcomes
from aiolb.testing.watched import B, WatchedBase

if TYPE_CHECKING:
    from aiolb.address import Address
    from aiolb.listener import Listener

L = TypeVar("L", bound=FakeListenerBase)

SOURCE = ("192.0.2.1", 40000)
"""Where datagrams and connections come from unless told otherwise: an address that is nobody's (RFC 5737)."""


class FakeBase(ABC, Generic[B, L]):
    """A collector that is started and stopped by its real server; see :func:`aiolb.testing.collector`."""

    def __init__(self, app: WatchedBase[B], server: Server, outcomes: Outcomes) -> None:
        self.collector: B = app.collector
        """The collector."""
        self.errors = outcomes.errors
        """What handlers and ``shutdown()`` raised so far."""
        self._app = app
        self._outcomes = outcomes
        self._life = Life(server)
        self._listener: L | None = None

    @property
    def stopping(self) -> bool:
        """Whether the collector asked to stop, or was stopped; it goes on until :meth:`stop`."""
        return self._life.server.stopping

    async def start(self) -> None:
        """Run the collector's ``startup()``. Raises what :meth:`aiolb.Server.start` raises."""
        await self._life.start(self._listen)

    async def stop(self) -> None:
        """Stop as a server does: handle what is queued, then ``shutdown()``. Idempotent."""
        await self._life.stop()
        self._outcomes.give_up_all()

    def _listen(self, _address: Address) -> Listener:
        self._listener = self._make_listener()
        return cast("Listener", self._listener)

    @abstractmethod
    def _make_listener(self) -> L:
        """What the server sees of the kernel."""

    @property
    def _opened(self) -> L:
        if self._listener is None:
            raise AiolbError(f"{type(self.collector).__name__} has not been started")
        return self._listener

    def hang_up(self) -> None:
        """Let the other ends go, before the stop at the end of a test."""
