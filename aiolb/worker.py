"""A worker: one member's handlers in a process of their own, on sockets that a supervisor owns."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import structlog

from aiolb import logs, signals
from aiolb.bpf.changes import SlotsChange
from aiolb.bpf.shared_reports import SharedReports
from aiolb.bpf.steering import Joined, UnmanagedPlace
from aiolb.listeners import LISTENERS
from aiolb.server import Server, reopening_log
from aiolb.tally import Tally
from aiolb.waiting import run_until

if TYPE_CHECKING:
    from aiolb.address import Address
    from aiolb.assignment import Assignment
    from aiolb.channel import Channel
    from aiolb.lifecycle import Lifecycle
    from aiolb.listener import Listener

_log = structlog.get_logger(__name__)


class Worker:
    """Runs one application as its supervisor orders; used once.

    It tells ``prepared`` when ``startup()`` has run, ``receiving``, ``beat`` from time to time, ``released`` when
    another worker may read its sockets, and ``ended`` with its report; ``asks_to_end`` when it got SIGTERM or SIGINT
    itself: the supervisor, which may have got it too, knows whether another worker goes on.

    It obeys ``receive``; ``hand_over`` (read no more: the queue is for the next worker); ``drain`` (no more comes: read
    what is queued); ``give_up`` (wait for no handler); ``count``; ``slots`` (some have left or come); ``reopen_log``.
    When the supervisor has died it stops as well.

    Handed over, it has ``released`` datagrams when its last handler has ended, for those of one source are handled in
    order; connections at once, while those that are open end here.
    """

    def __init__(self, application: Lifecycle, assignment: Assignment, channel: Channel) -> None:
        self._application = application
        self._assignment = assignment
        self._channel = channel
        self._receive = asyncio.Event()
        self._ending = asyncio.Event()
        self._hand_over = True
        config = assignment.config()
        descriptors = dict(zip(config.bind, (descriptor for _, descriptor in assignment.sockets), strict=True))
        self._sockets = {address: socket.socket(fileno=number) for address, number in descriptors.items()}
        for sock in self._sockets.values():
            sock.setblocking(False)
        # Not for what handlers start.
        for number in (assignment.tally, *assignment.descriptors):
            os.set_inheritable(number, False)
        self._reports = [_mapped(number) for number in assignment.reports]
        self._tally = Tally(assignment.tally, len(self._sockets))
        self._server = Server(application, config)
        # The supervisor takes care of the places; what a worker knows of them is the count that it is told.
        self._place = UnmanagedPlace(config.count or 1)

    async def serve(self) -> None:
        """Serve until ordered to end, or the supervisor's death. Raises what the start raises."""
        logs.MEMBER.set(self._server.member)
        # SIGUSR1 too: a service manager sends it to every process of the service, and its default is death.
        with signals.captured(self._signalled), reopening_log():
            tasks = [asyncio.create_task(self._obey()), asyncio.create_task(self._beat())]
            try:
                await run_until(self._ending, self._live())
                await self._end()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for sock in self._sockets.values():
                    sock.close()
                self._tally.close()
                for reports in self._reports:
                    reports.close()
                await self._channel.close()

    async def _live(self) -> None:
        await self._server.prepare()
        self._channel.send("prepared")
        await self._receive.wait()
        await self._server.receive(self._listen)
        self._channel.send("receiving")
        asking = asyncio.create_task(self._ask_to_end())
        try:
            await self._server.watch()
        finally:
            asking.cancel()

    async def _ask_to_end(self) -> None:
        """A collector that stops itself is replaced, as one that got SIGTERM."""
        await self._server.stop_requested()
        self._channel.send("asks_to_end")

    def _listen(self, address: Address) -> Listener:
        reports = dict(zip(self._sockets, self._reports, strict=False)).get(address)
        joined = Joined(self._sockets[address], self._place, self._assignment.balancer, reports=reports)
        kind = LISTENERS[self._server.config.protocol]
        listener = kind.inherited(address, joined, self._application, self._server.config)
        listener.tell(self._tally, len(self._server.listeners))
        return listener

    async def _end(self) -> None:
        if not self._server.prepared:
            return
        try:
            released = self._hand_over and self._server.release()
            if released:
                self._channel.send("released")
            await self._server.finish(hand_over=self._hand_over)
            if not released:
                self._channel.send("released")
        finally:
            await self._server.end()
            self._channel.send("ended", report=self._server.report())

    def _signalled(self, number: signal.Signals) -> None:
        _log.info("signal", name=number.name)
        self._channel.send("asks_to_end")

    async def _obey(self) -> None:
        async for message in self._channel.messages():
            self._do(**message)
        if not self._ending.is_set():
            self._hand_over = self._assignment.kept
            _log.warning("supervisor_gone", hint="the worker stops; start the supervisor again")
            self._ending.set()

    def _do(self, name: str, **content: Any) -> None:
        if name == "receive":
            self._receive.set()
        elif name in ("hand_over", "drain"):
            self._hand_over = name == "hand_over"
            self._ending.set()
        elif name == "give_up":
            self._server.give_up()
            self._ending.set()
        elif name == "count":
            self._place.count = content["count"]
        elif name == "slots":
            self._slots_changed(SlotsChange.from_message(content))
        elif name == "reopen_log":
            logs.reopen()

    def _slots_changed(self, change: SlotsChange) -> None:
        """Told before it receives, a worker has nothing of any source yet."""
        for listener in self._server.listeners:
            if listener.address == change.address:
                listener.slots_changed(change)

    async def _beat(self) -> None:
        while True:
            for cell, listener in enumerate(self._server.listeners):
                self._tally.update(cell, listener.held())
            statistics = self._server.statistics()
            self._channel.send("beat", **{name: getattr(statistics, name) for name in statistics.told})
            await asyncio.sleep(self._assignment.beat)


def _mapped(descriptor: int) -> SharedReports:
    reports = SharedReports.inherited(descriptor)
    os.close(descriptor)
    return reports
