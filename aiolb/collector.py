"""Collector: what users subclass."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from aiolb import logs, loops, privileges, sockets
from aiolb.config import ServeConfig
from aiolb.errors import AiolbError, ConfigurationError
from aiolb.lanes import received_at
from aiolb.protocol import CURRENT_TRANSPORT
from aiolb.receive.contract import Datagram
from aiolb.server import ApplicationError, Server
from aiolb.stats import CollectorStatistics


class Collector:
    """Handles the datagrams of one member's sources.

    Override ``handle``, or ``handle_batch`` where bulk work pays, and what else is needed::

        class Echo(Collector):
            async def handle(self, datagram, addr):
                self.reply(datagram, addr)

    Datagrams of one source are handled in order and one at a time; a handler that blocks holds up only its own
    source. One collector serves all addresses that it is bound to.
    """

    timestamps = False
    """Whether the kernel is to tell when it got each datagram, which costs a little; see ``received_at``."""

    _server: Any = None

    async def startup(self) -> None:
        """Called once before anything is received. What it raises stops the start."""

    async def shutdown(self) -> None:
        """Called once after the last datagram was handled, and after a start that failed behind ``startup()``."""

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

    def report(self) -> Mapping[str, Any]:
        """What ``--report`` adds under the name ``collector``; must be JSON-able."""
        return {}

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

    def statistics(self) -> CollectorStatistics:
        """What this collector received, handled and sent so far. Raises AiolbError before the start."""
        return self._running().statistics()

    def stop(self) -> None:
        """Ask the collector to stop gracefully, as SIGTERM does. Raises AiolbError before the start."""
        self._running().request_stop()

    def _running(self) -> Server:
        if self._server is None:
            raise AiolbError(f"{type(self).__name__} has not been started")
        server: Server = self._server
        return server

    def attach(self, server: Server) -> None:
        """Called by the server before ``startup()``."""
        self._server = server

    @property
    def takes_batches(self) -> bool:
        """Whether ``handle_batch`` was overridden."""
        return type(self).handle_batch is not Collector.handle_batch

    @classmethod
    async def serve(cls, **settings: Any) -> None:
        """Serve in the running loop until stopped. Arguments and errors are those of ``run``."""
        config = _configure(cls, settings)
        await Server(make(cls), config).serve()

    @classmethod
    def run(
        cls,
        *,
        log_format: str = "console",
        log_level: str = "info",
        log_file: str | Path | None = None,
        **settings: Any,
    ) -> None:
        """Serve until SIGTERM, SIGINT, a takeover or ``stop()``; returns after a graceful stop.

        ``settings`` are the fields of :class:`aiolb.config.ServeConfig`; ``bind`` may be text, ``HOST:PORT``, or
        several of them. Log events go to standard error, or are appended to ``log_file``, which SIGUSR1 reopens.
        Raises ConfigurationError for settings or a class that cannot work, StartError when the start failed.
        """
        logs.configure(log_format, log_level, file=log_file, owner=privileges.owner(settings.get("user")))
        config = _configure(cls, settings)
        with loops.runner(config.loop) as runner:
            runner.run(Server(make(cls), config).serve())


def _configure(cls: type[Collector], settings: dict[str, Any]) -> ServeConfig:
    check_class(cls)
    if "bind" in settings:
        settings = {**settings, "bind": sockets.resolve_all(settings["bind"])}
    unknown = settings.keys() - {field.name for field in fields(ServeConfig)}
    if unknown:
        raise ConfigurationError(f"unknown settings: {', '.join(sorted(unknown))}")
    return ServeConfig(**settings)


def make(cls: type[Collector]) -> Collector:
    """An instance. Raises ApplicationError for what its constructor raises."""
    try:
        return cls()
    except AiolbError:
        raise
    except Exception as error:
        raise ApplicationError(f"{cls.__name__}() failed: {type(error).__name__}: {error}") from error


def check_class(cls: object) -> None:
    """Raise ConfigurationError for what is no usable subclass of Collector."""
    if not (isinstance(cls, type) and issubclass(cls, Collector)):
        raise ConfigurationError(f"{cls!r} is no subclass of aiolb.Collector", hint="class MyCollector(Collector): …")
    if cls.handle is Collector.handle and cls.handle_batch is Collector.handle_batch:
        raise ConfigurationError(
            f"{cls.__name__} overrides neither handle nor handle_batch",
            hint="add: async def handle(self, datagram, addr)",
        )
    for name in ("handle", "handle_batch", "startup", "shutdown"):
        if not inspect.iscoroutinefunction(getattr(cls, name)):
            raise ConfigurationError(
                f"{cls.__name__}.{name} is not a coroutine function", hint=f"write it as: async def {name}"
            )
