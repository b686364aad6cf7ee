"""A worker as its supervisor sees it: started, ordered about, listened to, outlived."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from aiolb import signals
from aiolb.channel import Channel
from aiolb.errors import StartError
from aiolb.tally import Tally
from aiolb.waiting import happens, run_until

if TYPE_CHECKING:
    from aiolb.assignment import Assignment
    from aiolb.recycling import RecycleLimit

MILESTONES = ("prepared", "receiving", "released", "ended")
"""What a worker tells once each, in this order."""
LAST_WORDS = 1.0
"""Seconds to wait for the last messages of a worker that has died: its children may hold the channel open."""


class WorkerProcess:
    """One worker, from ``start`` to ``over``; whoever starts it waits for ``over``."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel, tally: Tally) -> None:
        self.held = 0
        """Datagrams that it had taken and not handled, at most; known when it has ended."""
        self._process = process
        self._channel = channel
        self._tally = tally
        self._milestones = {name: asyncio.Event() for name in MILESTONES}
        self._over = asyncio.Event()
        self._listening = asyncio.create_task(self._listen())
        self._waiting = asyncio.create_task(self._wait())
        self.started = self.last_sign = time.monotonic()
        self.counters: Mapping[str, int] = {}
        """Those of its last sign of life: what a member's statistics call ``told``."""
        self.asks_to_end = False
        """Whether somebody told the worker itself to end."""
        self.limit: RecycleLimit | None = None
        """When it is to be replaced; its supervisor's to set."""
        self.report: Mapping[str, Any] | None = None
        """Its final report; None until it has ended, and for one that was killed."""

    @classmethod
    async def start(cls, command: Sequence[str], assignment: Assignment) -> Self:
        """Run ``command`` with the number of its channel and the assignment, plus a tally, as further arguments.

        Raises StartError.
        """
        with ExitStack() as on_error, ExitStack() as theirs_too:
            try:
                ours, theirs = socket.socketpair()
                on_error.enter_context(ours)
                theirs_too.enter_context(theirs)
                tally = Tally.create(len(assignment.sockets))
                on_error.callback(tally.close)
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    replace(assignment, tally=tally.descriptor).to_text(),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), tally.descriptor, *assignment.descriptors],
                    # A session of its own: Ctrl-C is for the supervisor, which then stops its workers.
                    start_new_session=True,
                )
            except OSError as error:
                raise StartError(f"a worker cannot be started with {command[0]}: {error.strerror}") from error
            on_error.pop_all()
        ours.setblocking(False)
        return cls(process, await Channel.over(ours), tally)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def taken(self) -> int:
        """Datagrams, or connections, that it had received at its last sign of life."""
        return self.counters.get("received", self.counters.get("accepted", 0))

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self._over.is_set()

    @property
    def status(self) -> int | None:
        """Its exit status, minus the signal's number for one that was killed; None while it lives."""
        return self._process.returncode if self._over.is_set() else None

    def has(self, milestone: str) -> bool:
        """Whether it told that milestone."""
        return self._milestones[milestone].is_set()

    async def reaches(self, milestone: str, *, seconds: float | None = None) -> bool:
        """Wait until it tells the milestone; false when it ends without, or the seconds are over."""
        await run_until(self._over, self._milestones[milestone].wait(), seconds=seconds)
        return self.has(milestone)

    async def over(self, *, seconds: float | None = None) -> bool:
        """Wait until it has ended and all it said is read; false when the seconds are over before."""
        return await happens(self._over, seconds=seconds)

    def order(self, name: str, **content: Any) -> None:
        """Send it an order; see :class:`aiolb.worker.Worker`."""
        self._channel.send(name, **content)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        signals.send(self._process, number)

    async def end(self, *, within: float) -> None:
        """Kill it unless it ends by itself within that many seconds."""
        if not await self.over(seconds=within):
            self.signal(signal.SIGKILL)
            await self.over()

    async def _listen(self) -> None:
        async for message in self._channel.messages():
            self.last_sign = time.monotonic()
            content = dict(message)
            name = content.pop("name")
            if name == "beat":
                self.counters = content
            elif name == "asks_to_end":
                self.asks_to_end = True
            elif name == "ended":
                self.report = content["report"]
            if name in self._milestones:
                self._milestones[name].set()

    async def _wait(self) -> None:
        await self._process.wait()
        await asyncio.wait([self._listening], timeout=LAST_WORDS)
        self._listening.cancel()
        await self._channel.close()
        self.held = self._tally.total
        self._tally.close()
        self._over.set()
