"""What collectors of datagrams and of connections have in common: begin, end, report, and how they are served."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from aiolb import logs, loops, privileges, sockets
from aiolb.bpf.changes import SlotsChange
from aiolb.config import ServeConfig
from aiolb.errors import AiolbError, ConfigurationError
from aiolb.server import ApplicationError, Server
from aiolb.stats import CollectorStatistics


class BaseCollector:
    """Begin, end and report of a collector; what it handles is its subclasses'."""

    protocol: ClassVar[str]
    """``udp`` or ``tcp``."""
    handlers: ClassVar[Mapping[str, str]]
    """The coroutines of which one must be overridden, each with how its arguments are written."""

    _server: Any = None

    async def startup(self) -> None:
        """Called once before anything is received. What it raises stops the start."""

    async def shutdown(self) -> None:
        """Called once after the last handler ended, and after a start that failed behind ``startup()``."""

    def on_slots_changed(self, change: SlotsChange) -> None:
        """Called when slots, and the sources in them, have left this member or come to it; see :class:`SlotsChange`.

        After a rebalancing, ``aiolb move``, ``drain`` and the like, and another number or weight of members; not when
        another member has died and its sources come here for as long. Within a quarter of a second, for each address
        apart; what is in the queue by then still comes, and connections that are open stay. When
        ``change.concerns(addr)`` says ``"left"`` of a source, its state can be written out or forgotten; after
        ``"came"`` another member had it before. What this raises is logged.
        """

    def report(self) -> Mapping[str, Any]:
        """What ``--report`` adds under the name ``collector``; must be JSON-able."""
        return {}

    def statistics(self) -> CollectorStatistics:
        """What this collector received and handled so far. Raises AiolbError before the start."""
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
        """Called by the server before ``startup()``. Raises ConfigurationError for one of another protocol."""
        check_protocol(type(self), server.config.protocol)
        self._server = server

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

        ``settings`` are the fields of :class:`aiolb.ServeConfig`; ``bind`` may be text, ``HOST:PORT``, or
        several of them, and ``metrics`` too. Log events go to standard error, or are appended to ``log_file``, which
        SIGUSR1 reopens. Raises ConfigurationError for settings or a class that cannot work, StartError when the start
        failed.
        """
        logs.configure(log_format, log_level, file=log_file, owner=privileges.owner(settings.get("user")))
        config = _configure(cls, settings)
        with loops.runner(config.loop) as runner:
            runner.run(Server(make(cls), config).serve())


def _configure(cls: type[BaseCollector], settings: dict[str, Any]) -> ServeConfig:
    check_class(cls)
    settings = {"protocol": kind_of(cls).protocol, **settings}
    if "bind" in settings:
        settings["bind"] = sockets.resolve_all(settings["bind"])
    if isinstance(metrics := settings.get("metrics"), str):
        settings["metrics"] = sockets.resolve(metrics, default_port=None)
    unknown = settings.keys() - {field.name for field in fields(ServeConfig)}
    if unknown:
        raise ConfigurationError(f"unknown settings: {', '.join(sorted(unknown))}")
    check_protocol(cls, settings["protocol"])
    return ServeConfig(**settings)


def make(cls: type[BaseCollector]) -> BaseCollector:
    """An instance. Raises ApplicationError for what its constructor raises."""
    try:
        return cls()
    except AiolbError:
        raise
    except Exception as error:
        raise ApplicationError(f"{cls.__name__}() failed: {type(error).__name__}: {error}") from error


def check_class(cls: object) -> None:
    """Raise ConfigurationError for what is no usable subclass of a collector."""
    if not (isinstance(cls, type) and issubclass(cls, BaseCollector)) or cls is BaseCollector:
        raise ConfigurationError(
            f"{cls!r} is no subclass of aiolb.Collector or aiolb.StreamCollector",
            hint="class MyCollector(Collector): …",
        )
    kind = kind_of(cls)
    if all(getattr(cls, name) is getattr(kind, name) for name in kind.handlers):
        name, arguments = next(iter(kind.handlers.items()))
        one_of = "overrides neither " + " nor ".join(kind.handlers)
        missing = one_of if len(kind.handlers) > 1 else f"does not override {name}"
        raise ConfigurationError(f"{cls.__name__} {missing}", hint=f"add: async def {name}(self, {arguments})")
    for name in (*kind.handlers, "startup", "shutdown"):
        if not inspect.iscoroutinefunction(getattr(cls, name)):
            raise ConfigurationError(
                f"{cls.__name__}.{name} is not a coroutine function", hint=f"write it as: async def {name}"
            )


def kind_of(cls: type[BaseCollector]) -> type[BaseCollector]:
    """The class of ours that says what a collector handles; a user's class may have other uses for our names."""
    return next(kind for kind in cls.__mro__ if BaseCollector in kind.__bases__)


def check_protocol(cls: type[BaseCollector], protocol: str) -> None:
    """Raise ConfigurationError for a collector that does not handle what comes by that protocol."""
    handled = kind_of(cls).protocol
    if handled == protocol:
        return
    handles, other = ("datagrams", "StreamCollector") if handled == "udp" else ("connections", "Collector")
    raise ConfigurationError(
        f"{cls.__name__} handles {handles}, and the protocol is {protocol}",
        hint=f"--protocol {handled}, or make it a subclass of aiolb.{other}",
    )
