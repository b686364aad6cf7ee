"""Collector: what users subclass to handle datagrams."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from aiolb.base_collector import BaseCollector
from aiolb.errors import AiolbError
from aiolb.lane import received_at
from aiolb.protocol import CURRENT_TRANSPORT
from aiolb.receive.contract import Datagram


class Collector(BaseCollector):
    """Handles the datagrams of one member's sources.

    Override ``handle``, or ``handle_batch`` where bulk work pays, and what else is needed::

        class Echo(Collector):
            async def handle(self, datagram, addr):
                self.reply(datagram, addr)

    Datagrams of one source are handled in order and one at a time; a handler that blocks holds up only its own
    source. One collector serves all addresses that it is bound to.
    """

    protocol: ClassVar[str] = "udp"
    handlers: ClassVar[Mapping[str, str]] = {"handle": "datagram, addr", "handle_batch": "batch"}

    timestamps = False
    """Whether the kernel is to tell when it got each datagram, which costs a little; see ``received_at``."""

    async def handle(self, datagram: bytes, addr: Any) -> None:
        """Handle one datagram; ``addr`` is the tuple that the socket module gives.

        Cancelled when it is still running at the end of the graceful timeout. What it raises is counted,
        logged and given to ``on_error``, and never stops the collector.
        """
        raise NotImplementedError

    async def handle_batch(self, batch: list[Datagram]) -> None:
        """Override this instead of ``handle`` to get all datagrams that are there in one call, one call at a time."""
        for datagram, addr in batch:
            await self.handle(datagram, addr)

    def on_error(self, error: BaseException, datagram: bytes, addr: Any) -> None:
        """Called for each datagram whose handler raised, after it was counted and logged."""

    def reply(self, data: bytes, addr: Any) -> None:
        """Send a datagram from the socket that the datagram in hand came in on.

        Never blocks: it is queued while the socket's send buffer is full. Outside of a handler, and of tasks
        that one started, it works for a collector with one address; else it raises AiolbError.
        """
        transport = CURRENT_TRANSPORT.get(None) or self._only_transport()
        transport.sendto(data, addr)

    def _only_transport(self) -> asyncio.DatagramTransport:
        listeners = self._server.listeners if self._server else []
        if len(listeners) != 1:
            raise AiolbError(
                f"reply() outside of a handler, and this collector has {len(listeners)} sockets",
                hint="call it in handle(), or in a task that handle() started",
            )
        transport: asyncio.DatagramTransport = listeners[0].transport
        return transport

    @property
    def received_at(self) -> int | None:
        """When the kernel got the datagram in hand, in nanoseconds since 1970 (SO_TIMESTAMPNS, socket(7)).

        None unless ``timestamps`` is set, and outside of ``handle``, also in tasks that it started: read it before.
        In ``handle_batch`` each datagram of the batch has an attribute of this name.
        """
        return received_at()

    @property
    def takes_batches(self) -> bool:
        """Whether ``handle_batch`` was overridden."""
        return type(self).handle_batch is not Collector.handle_batch
