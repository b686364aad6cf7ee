"""One member under supervision: its worker is started, replaced, watched, and outlived when it dies."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import structlog

from aiolb.errors import ConfigurationError, StartError
from aiolb.restarts import DAY, RestartPolicy, Restarts

if TYPE_CHECKING:
    from aiolb.places import Places
    from aiolb.recycling import RecyclePolicy
    from aiolb.worker_process import WorkerProcess

ABORT_TIMEOUT = 5.0
"""Seconds from SIGABRT, which dumps the tracebacks of a hung worker, to SIGKILL."""
REPLACEMENT_PAUSE = 30.0
"""Seconds after a replacement that failed in which none is tried without being asked for."""
MARGIN = 10.0
"""Seconds beyond the graceful timeout that a worker has to end before it is killed."""
GIVE_UP_TIMEOUT = 7.0
"""Seconds that a worker has to end when it waits for no handler: more than one that is cancelled has to clean up."""

_NO_SUMS = ("index", "count", "pid")


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
    ) -> None:
        self.index = places.index
        self.places = places
        self.workers = 0
        """Workers that it has had."""
        self.killed = 0
        """Workers among them that ended without a report."""
        self.lost_at_most = 0
        """Datagrams that those had in their memory, at most."""
        self.sums: Counter[str] = Counter()
        """The sums of the counters that the others reported."""
        self.collectors: list[Any] = []
        """What their collectors reported of themselves, where ``keeps_reports``."""
        self.keeps_reports = False
        self._start = start
        self._policy = policy
        self._random = Random()  # noqa: S311 - jitter is no secret
        self._restarts = Restarts(policy.restart, self._random)
        self._worker: WorkerProcess | None = None
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
        self.workers += 1
        self._living.add(worker)
        await _wait(worker.reaches("prepared"), unless, seconds=self._policy.start_timeout)
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
        await _wait(self._steady.wait(), self._retired, seconds=seconds)

    # Dying

    async def keep(self) -> None:
        """Start another worker for each that dies, until the member retires."""
        while not self._retired.is_set():
            worker = self._worker
            assert worker is not None  # noqa: S101 - prepare() came before
            await _wait(worker.over(), self._retired)
            async with self._lock:
                if self._worker is not worker or self._retired.is_set():
                    continue
                delay = self._mourn(worker)
            await _wait(self._replaced.wait(), self._retired, seconds=delay)
            async with self._lock:
                if self._worker is not worker or self._retired.is_set():
                    continue
                try:
                    self._worker = await self._prepared(self._retired)
                except StartError as error:
                    self._log.error("worker_start_failed", reason=str(error), hint=error.hint)
                    continue
                if self._worker.alive:
                    await self._let_receive(self._worker)

    def _mourn(self, worker: WorkerProcess) -> float:
        """Note that the worker has died; seconds until another one may start."""
        self._replaced.clear()
        self._steady.clear()
        restart = self._restarts.died(time.monotonic())
        self._log.error(
            "worker_died",
            pid=worker.pid,
            reason=_reason(worker),
            restart_in=round(restart.delay, 3),
            lost_at_most=worker.held,
        )
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

    def _put_back(self) -> None:
        if self.places.out:
            self.places.enter()
            self._log.info("member_back")

    async def _end(self, worker: WorkerProcess, *, within: float) -> None:
        await worker.end(within=within)
        self._take_report(worker)

    def _take_report(self, worker: WorkerProcess) -> None:
        if worker not in self._living:
            return
        self._living.remove(worker)
        if worker.report is None:
            self.killed += worker.has("receiving")
            self.lost_at_most += worker.held
            return
        report = dict(worker.report)
        collector = report.pop("collector")
        self.sums.update({name: value for name, value in report.items() if type(value) is int and name not in _NO_SUMS})
        if self.keeps_reports:
            self.collectors.append(collector)

    # Replacing

    async def replace(self, reason: str) -> bool:
        """Let a new worker take the old one's place without losing a datagram; false when the new one failed.

        The old one stops reading and finishes its handlers once the new one is prepared; meanwhile the datagrams
        wait in the sockets' queues. When the new one fails the old one goes on.
        """
        async with self._lock:
            if self._retired.is_set():
                return False
            old, new = self._worker, await self._prepared(self._stopping)
            if not new.alive:
                if not self._stopping.is_set():
                    self._replaceable_at = time.monotonic() + REPLACEMENT_PAUSE
                    self._log.error("replacement_failed", pid=new.pid, reason=_reason(new), hint="the old one goes on")
                return False
            assert old is not None  # noqa: S101 - prepare() came before
            old.order("hand_over")
            if not await old.reaches("finished", seconds=self._policy.graceful_timeout + MARGIN):
                await self._end(old, within=0)
            self._worker = new
            self._replaced.set()
            received = await self._let_receive(new)
            await self._end(old, within=self._policy.graceful_timeout + MARGIN)
            self._log.info("replaced", reason=reason, old=old.pid, new=new.pid)
            return received

    def due(self) -> str | None:
        """Why its worker is to be replaced: it asked for it, or has received enough, or for long enough."""
        worker = self._worker
        if worker is None or not self.receiving or time.monotonic() < self._replaceable_at:
            return None
        if worker.asks_to_end:
            return "signal"
        received = worker.counters.get("received", 0)
        if worker.limit is not None and worker.limit.due(time.monotonic(), worker.started, received):
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


async def _wait(work: Awaitable[Any], unless: asyncio.Event, *, seconds: float | None = None) -> None:
    """Wait for ``work``, for ``unless`` or for the seconds, whichever comes first."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(unless.wait())]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _reason(worker: WorkerProcess) -> str:
    status = worker.status
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"
