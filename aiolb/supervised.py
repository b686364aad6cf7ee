"""One member under supervision: its worker is started, replaced, watched, and outlived when it dies."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import structlog

from aiolb.errors import ConfigurationError, StartError
from aiolb.member_report import MemberReport
from aiolb.restarts import DAY, RestartPolicy, Restarts
from aiolb.waiting import run_until

if TYPE_CHECKING:
    from aiolb.places import Places
    from aiolb.recycling import RecyclePolicy
    from aiolb.worker_process import WorkerProcess

ABORT_TIMEOUT = 5.0
"""Seconds from SIGABRT, which dumps the tracebacks of a hung worker, to SIGKILL."""
REPLACEMENT_PAUSE = 30.0
"""Seconds after a replacement that failed in which none is tried without being asked for."""
WRONG_USAGE = 2
"""Exit status of a worker that found a mistake in what it was told."""
ASKED_PAUSE = 1.0
"""Seconds for which a worker lives at least before it is replaced because it asked for it."""
MARGIN = 10.0
"""Seconds beyond the graceful timeout that a worker has to end before it is killed."""
GIVE_UP_TIMEOUT = 7.0
"""Seconds that a worker has to end when it waits for no handler: more than one that is cancelled has to clean up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPolicy:
    """How long a worker may take, in seconds, and when it is replaced.

    Timeouts are above 0, but for the graceful one, and at most a day. Raises ConfigurationError for anything else.
    """

    start_timeout: float = 60.0
    worker_timeout: float = 30.0
    graceful_timeout: float = 30.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    recycle: RecyclePolicy | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("start", self.start_timeout), ("worker", self.worker_timeout)):
            if not 0 < seconds <= DAY:
                raise ConfigurationError(f"the {name} timeout is above 0 and at most {DAY:,} seconds, not {seconds:g}")


class SupervisedMember:
    """Keeps one worker at work on the sockets of one member; ``start`` starts a process for that.

    Whoever starts or ends a worker holds the lock. ``retire`` is for good: nothing is started from then on, and who
    waits for a start waits no longer.
    """

    def __init__(
        self,
        places: Places,
        start: Callable[[], Awaitable[WorkerProcess]],
        policy: WorkerPolicy,
        stopping: asyncio.Event,
        *,
        collectors: bool = True,
    ) -> None:
        self.index = places.index
        self.places = places
        self.report = MemberReport(places.index, places.sockets.values(), collectors=collectors)
        self._start = start
        self._policy = policy
        self._random = Random()  # noqa: S311 - jitter is no secret
        self._restarts = Restarts(policy.restart, self._random)
        self._worker: WorkerProcess | None = None
        self._mourned: WorkerProcess | None = None
        self._replaceable_at = -math.inf
        self._lock = asyncio.Lock()
        self._replaced = asyncio.Event()
        self._retired = asyncio.Event()
        self._stopping = stopping
        self._steady = asyncio.Event()
        self._living: set[WorkerProcess] = set()
        self._aborts: set[asyncio.Task[None]] = set()
        self._given_up: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger().bind(index=places.index)

    @property
    def receiving(self) -> bool:
        """Whether its worker is alive and receives."""
        return self._worker is not None and self._worker.alive and self._worker.has("receiving")

    @property
    def refused(self) -> bool:
        """Whether its first worker found its application or its settings unusable."""
        return self._worker is not None and self._worker.status == WRONG_USAGE

    # Starting

    async def prepare(self) -> bool:
        """Start the first worker, as far as its ``startup()``; false when that failed."""
        async with self._lock:
            self._worker = await self._prepared(self._stopping)
            return self._worker.alive

    async def receive(self) -> bool:
        """Let the first worker receive; false when it failed."""
        async with self._lock:
            assert self._worker is not None  # noqa: S101 - prepare() came before
            return await self._let_receive(self._worker)

    async def _prepared(self, unless: asyncio.Event) -> WorkerProcess:
        """A worker whose ``startup()`` has run; an ended one if that failed, took too long, or ``unless`` is set."""
        worker = await self._start()
        if self._policy.recycle is not None:
            worker.limit = self._policy.recycle.draw(self._random)
        self.report.workers += 1
        self._living.add(worker)
        await run_until(unless, worker.reaches("prepared"), seconds=self._policy.start_timeout)
        if not worker.has("prepared"):
            if worker.alive and not unless.is_set():
                self._log.error("worker_start_timeout", pid=worker.pid, seconds=self._policy.start_timeout)
            await self._end(worker, within=0)
        return worker

    async def _let_receive(self, worker: WorkerProcess) -> bool:
        worker.order("receive")
        if await worker.reaches("receiving", seconds=self._policy.start_timeout):
            self._restarts.ready(time.monotonic())
            self._steady.set()
            return True
        await self._end(worker, within=0)
        return False

    async def steady(self, *, seconds: float) -> None:
        """Wait, for the seconds at most, until a worker receives, or the member is out of its group."""
        await run_until(self._retired, self._steady.wait(), seconds=seconds)

    # Dying

    async def keep(self) -> None:
        """Start another worker for each that dies, until the member retires."""
        while not self._retired.is_set():
            worker = self._worker
            assert worker is not None  # noqa: S101 - prepare() came before
            await run_until(self._retired, worker.over())
            async with self._lock:
                if self._worker is not worker or self._retired.is_set():
                    continue
                delay = self._mourn(worker)
            await run_until(self._retired, self._replaced.wait(), seconds=delay)
            async with self._lock:
                if self._worker is not worker or self._retired.is_set():
                    continue
                try:
                    self._worker = await self._prepared(self._retired)
                except StartError as error:
                    self._start_failed(error)
                    continue
                if self._worker.alive:
                    await self._let_receive(self._worker)

    def _mourn(self, worker: WorkerProcess) -> float:
        """Note that the worker has died, or none could be started; seconds until another one may start."""
        self._replaced.clear()
        self._steady.clear()
        restart = self._restarts.died(time.monotonic())
        if worker is not self._mourned:
            self._mourned = worker
            self._tell_of_death(worker, restart_in=round(restart.delay, 3))
        self._take_report(worker)
        if restart.out:
            self._steady.set()
        if restart.out and not self.places.out:
            elsewhere = self.places.leave()
            hint = "its sources go to other members" if elsewhere else "its sources wait in its queue"
            self._log.error("member_out", reason="its workers keep dying", hint=hint)
        elif not restart.out:
            self._put_back()
        return restart.delay

    def _tell_of_death(self, worker: WorkerProcess, **more: Any) -> None:
        self._log.error("worker_died", pid=worker.pid, reason=_reason(worker), **more, lost_at_most=worker.held)

    def _start_failed(self, error: StartError) -> None:
        self._log.error("worker_start_failed", reason=str(error), hint=error.hint)

    def _put_back(self) -> None:
        if self.places.out:
            self.places.enter()
            self._log.info("member_back")

    async def _end(self, worker: WorkerProcess, *, within: float) -> None:
        await worker.end(within=within)
        self._take_report(worker)

    def _take_report(self, worker: WorkerProcess) -> None:
        if worker in self._living:
            self._living.remove(worker)
            self.report.add(worker)

    # Replacing

    async def replace(self, reason: str) -> bool:
        """Let a new worker take the old one's place without losing a datagram; false when the new one failed.

        The old one stops reading and finishes its handlers once the new one is prepared; meanwhile the datagrams
        wait in the sockets' queues. Connections wait only until the old one accepts no more; those that are open
        end there. When the new one fails the old one goes on.
        """
        async with self._lock:
            old = self._worker
            if self._retired.is_set() or old is None:
                return False
            new = await self._replacement(old)
            if new is None:
                return False
            old.order("hand_over")
            if not await old.reaches("released", seconds=self._policy.graceful_timeout + MARGIN):
                await self._abort(old)
            self._worker = new
            self._replaced.set()
            receives = await self._let_receive(new)
        # Its shutdown() may take long, and the new worker is to be looked after meanwhile.
        await old.end(within=self._policy.graceful_timeout + MARGIN)
        if old.report is None and old in self._living:
            self._tell_of_death(old)
        self._take_report(old)
        if receives:
            self._log.info("replaced", reason=reason, old=old.pid, new=new.pid)
        return receives

    async def _replacement(self, old: WorkerProcess) -> WorkerProcess | None:
        """A prepared worker; None, and a pause before the next try, when there is none."""
        try:
            new = await self._prepared(self._stopping)
        except StartError as error:
            self._start_failed(error)
        else:
            if new.alive:
                return new
            if not self._stopping.is_set():
                hint = "the old one goes on" if old.alive else None
                self._log.error("replacement_failed", pid=new.pid, reason=_reason(new), hint=hint)
        self._replaceable_at = time.monotonic() + REPLACEMENT_PAUSE
        return None

    def due(self) -> str | None:
        """Why its worker is to be replaced: it asked for it, or has received enough, or for long enough."""
        worker = self._worker
        if worker is None or not self.receiving or time.monotonic() < self._replaceable_at:
            return None
        if worker.asks_to_end and time.monotonic() - worker.started > ASKED_PAUSE:
            return "asked"
        if worker.limit is not None and worker.limit.due(time.monotonic(), worker.started, worker.taken):
            return "recycle"
        return None

    # Watching

    def watch(self) -> None:
        """Put the member back when its worker has settled, and abort a worker that gives no sign of life."""
        now = time.monotonic()
        if self._restarts.settled(now):
            self._put_back()
        worker = self._worker
        if worker is None or not self.receiving or now - worker.last_sign < self._policy.worker_timeout:
            return
        if not self._aborts:
            self._log.error("worker_hung", pid=worker.pid, silent_for=round(now - worker.last_sign, 1))
            task = asyncio.create_task(self._abort(worker))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

    def excuse(self, seconds: float) -> None:
        """Let the silence of its workers not count for so long: nobody listened."""
        for worker in self._living:
            worker.last_sign += seconds

    @property
    def retired(self) -> bool:
        """Whether its time is over."""
        return self._retired.is_set()

    @staticmethod
    async def _abort(worker: WorkerProcess) -> None:
        worker.signal(signal.SIGABRT)
        await worker.end(within=ABORT_TIMEOUT)

    # Ending

    def retire(self) -> None:
        """Start nothing any more. Idempotent."""
        self._retired.set()

    def order(self, name: str, **content: Any) -> None:
        """Send an order to every worker there is."""
        for worker in self._living:
            worker.order(name, **content)

    def give_up(self) -> None:
        """Retire, and let no worker wait for its handlers; one that hangs is killed soon."""
        self.retire()
        self.order("give_up")
        self._given_up += [asyncio.create_task(worker.end(within=GIVE_UP_TIMEOUT)) for worker in self._living]

    async def end(self, order: str) -> None:
        """Retire, and end the worker by ``drain`` or ``hand_over``; returns when no process is left."""
        self.retire()
        async with self._lock:
            for worker in list(self._living):
                worker.order(order)
                await self._end(worker, within=self._policy.graceful_timeout + MARGIN)
        await asyncio.gather(*self._given_up)


def _reason(worker: WorkerProcess) -> str:
    status = worker.status
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"
