"""One member, on one address or several: start, serve until told to stop, drain, report."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from aiolb import logs, privileges, remarks, signals
from aiolb.address import as_text
from aiolb.config import UNITS, ServeConfig
from aiolb.errors import AiolbError, CompileStoppedError, StartError
from aiolb.listener import Listener
from aiolb.listeners import LISTENERS
from aiolb.metrics_server import MetricsServer
from aiolb.reports import check_writable, write_report
from aiolb.stats import STATISTICS, CollectorStatistics
from aiolb.systemd import ServiceManager
from aiolb.waiting import run_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiolb.address import Address
    from aiolb.lifecycle import Lifecycle
    from aiolb.observed import Observed

WATCH_INTERVAL = 0.25
"""Seconds between two looks at the group (displaced? another count?) and at the kernel's drops."""

_log = structlog.get_logger(__name__)


class ApplicationError(StartError):
    """The user's own code raised during the start; the cause is what it raised."""


class Server:
    """Runs one collector on the sockets of one member; used once.

    What it handles is ``config.protocol``'s: :class:`aiolb.protocol.Application` says what is asked of a collector of
    datagrams, :class:`aiolb.connections.StreamHandlers` of connections.

    ``await serve()`` does everything; ``start()`` and ``stop()`` are for those who decide themselves when to stop.
    """

    def __init__(self, application: Lifecycle, config: ServeConfig) -> None:
        self.config = config
        self.listeners: list[Listener] = []
        self._application = application
        self._identity: privileges.Identity | None = None
        self.prepared = False
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._stopped = False
        # What its log lines say of it.
        self.member = {"index": config.index, "count": config.count, "bind": as_text(config.bind)}
        if config.protocol != "udp":
            self.member["protocol"] = config.protocol

    async def serve(self) -> None:
        """Start, serve until ``request_stop()``, SIGTERM, SIGINT or a takeover, then stop gracefully.

        Raises what ``start()`` raises. A second SIGINT gives up what is still being handled. SIGUSR1 reopens the log
        file, unless the user's own code handles it. The service manager is told of the states (sd_notify(3)). Metrics
        are served until it begins to stop.
        """
        logs.MEMBER.set(self.member)
        manager = ServiceManager.from_environment()
        with signals.captured(self._signalled), reopening_log():
            try:
                async with MetricsServer(self.config.metrics, self._observe, wait=self.config.takeover):
                    await run_until(self._stopping, self.start())
                    manager.ready()
                    await run_until(self._stopping, self.watch(manager))
            except CompileStoppedError as error:
                _log.info("start_given_up", reason=str(error))
            finally:
                manager.stopping()
                await self.stop()

    def _signalled(self, number: signal.Signals) -> None:
        if self._stopping.is_set() and number == signal.SIGINT:
            self.give_up()
        self._stopping.set()
        _log.info("signal", name=number.name)

    async def start(self) -> None:
        """Run the collector's ``startup()``, join every group, begin to receive.

        Raises StartError (for what ``startup()`` raises, ApplicationError with that as its cause) and
        ConfigurationError. A server that did not start holds no socket and no place.
        """
        await self.prepare()
        kind = LISTENERS[self.config.protocol]
        await self.receive(lambda address: kind.open(address, self._application, self.config))

    async def prepare(self) -> None:
        """Do what comes before the first datagram: the first half of ``start()``, with its errors."""
        check_writable(self.config.report)
        if self.config.user is not None:
            self._identity = privileges.parse(self.config.user)
        logs.MEMBER.set(self.member)
        self._application.attach(self)
        try:
            await self._application.startup()
        except AiolbError:
            raise
        except Exception as error:
            raise ApplicationError(f"startup() failed: {type(error).__name__}: {error}") from error
        self.prepared = True

    async def receive(self, listen: Callable[[Address], Listener]) -> None:
        """Listen on every address: the second half of ``start()``. What ``listen`` raises is passed on."""
        try:
            for address in self.config.bind:
                self.listeners.append(listen(address))
            if self._identity is not None:
                privileges.drop(self._identity)
        except BaseException:
            self._stopped = True
            for listener in self.listeners:
                listener.undo()
            try:
                await self._leave()
            finally:
                await self.end()
            raise
        first = self.listeners[0]
        self.member.update(count=first.count, bind=as_text(listener.address for listener in self.listeners))
        _log.info("ready", balancer=first.balancer, **remarks.on_key(first.key), pid=os.getpid())

    async def watch(self, manager: ServiceManager | None = None) -> None:
        """Look after the listeners, and tell the service manager so; returns when a place was taken over."""
        clock = asyncio.get_running_loop().time
        # Maps tell nobody when they change, so there is no event to wait for.
        while not [listener for listener in self.listeners if listener.watch(clock())]:
            if manager is not None:
                manager.keep_alive(clock(), every=WATCH_INTERVAL)
            await asyncio.sleep(WATCH_INTERVAL)
        _log.info("displaced")

    def request_stop(self) -> None:
        """Let ``serve()`` stop gracefully. Idempotent; call it in the loop's thread."""
        self._stopping.set()

    async def stop_requested(self) -> None:
        """Return when ``request_stop()`` was called."""
        await self._stopping.wait()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop, or stops, or has stopped."""
        return self._stopping.is_set()

    def give_up(self) -> None:
        """Let a stop, now or later, wait no longer for handlers. Idempotent; call it in the loop's thread."""
        self._forced.set()

    async def stop(self) -> None:
        """Leave the groups, drain, let handlers finish for ``graceful_timeout`` seconds, close, report. Idempotent.

        When it returns every address can be bound again.
        """
        if self._stopped or not self.prepared:
            return
        try:
            await self.finish()
        finally:
            await self.end()
            self._tell()

    def release(self) -> bool:
        """Take no more on any socket, before ``finish(hand_over=True)``; whether another process may begin at once."""
        released = [listener.release() for listener in self.listeners]
        return all(released)

    async def finish(self, *, hand_over: bool = False) -> None:
        """The first half of ``stop()``: leave, drain, let handlers finish, close.

        With ``hand_over`` it reads no more instead of draining: the sockets' queues are for another process.
        """
        self._stopped = True
        self._stopping.set()
        _log.info("stopping", graceful_timeout=self.config.graceful_timeout)
        await self._leave(hand_over=hand_over)

    async def _leave(self, *, hand_over: bool = False) -> None:
        try:
            for listener in self.listeners:
                listener.leave()
            ends = [listener.hand_over() if hand_over else listener.drain() for listener in self.listeners]
            await run_until(self._forced, asyncio.gather(*ends), seconds=self.config.graceful_timeout)
        finally:
            await self._close()

    async def _close(self) -> None:
        closed = await asyncio.gather(*(listener.close() for listener in self.listeners), return_exceptions=True)
        if abandoned := sum(result for result in closed if isinstance(result, int)):
            _log.warning("abandoned", **{UNITS[self.config.protocol]: abandoned})
        for error in closed:
            if isinstance(error, Exception):  # the others are closed all the same
                _log.error("close_failed", exc_info=error)

    async def end(self) -> None:
        """The second half of ``stop()``: run the collector's ``shutdown()``, whatever it raises."""
        try:
            await self._application.shutdown()
        except Exception:  # noqa: BLE001 - the stop goes on whatever the user's code raises
            _log.exception("shutdown_failed")

    def statistics(self) -> CollectorStatistics:
        """What this member received, handled and sent so far; exact once it has stopped."""
        return STATISTICS[self.config.protocol](
            index=self.config.index,
            count=self.listeners[0].count if self.listeners else self.config.count,
            pid=os.getpid(),
            sockets=tuple(listener.statistics() for listener in self.listeners),  # type: ignore[arg-type] # one kind
        )

    def _observe(self) -> list[Observed]:
        """For metrics: each group, and of its members this one alone, for the others tell of themselves."""
        return [] if self._stopped else [listener.observe() for listener in list(self.listeners)]

    def report(self) -> dict[str, Any]:
        """The final statistics, and what the collector says of itself: None where that failed, which is logged."""
        try:
            collector = json.loads(json.dumps(dict(self._application.report())))
        except Exception:  # noqa: BLE001 - what the user's code raised, or JSON cannot say, costs its part only
            _log.exception("report_failed")
            collector = None
        return {**self.statistics().as_dict(), "collector": collector}

    def _tell(self) -> None:
        statistics = self.statistics()
        _log.info("stopped", **{name: getattr(statistics, name) for name in (*statistics.told, "kernel_drops")})
        if self.config.report is not None:
            write_report(self.config.report, self.report())


@contextmanager
def reopening_log() -> Iterator[None]:
    """Reopen the log file for each SIGUSR1 inside the block, unless the user's own code handles that signal."""

    def reopen(number: signal.Signals) -> None:
        _log.info("signal", name=number.name)
        logs.reopen()

    numbers = () if signals.is_users(signal.SIGUSR1) else (signal.SIGUSR1,)
    with signals.captured(reopen, numbers):
        yield
