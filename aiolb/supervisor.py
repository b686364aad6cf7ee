"""The supervisor: owns the sockets of a whole group, keeps a worker at work for each member, restarts without loss."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from aiolb import logs, privileges, remarks, signals
from aiolb.address import as_text
from aiolb.assignment import Assignment
from aiolb.balancing import RebalancePolicy, SlotWatches, keep_even
from aiolb.config import ServeConfig
from aiolb.errors import CompileStoppedError, ConfigurationError, StartError
from aiolb.member_report import MemberReport
from aiolb.metrics_server import MetricsServer
from aiolb.operations import Operations
from aiolb.places import AllPlaces, Places
from aiolb.reports import check_writable, write_report
from aiolb.stats import STATISTICS
from aiolb.store import SocketStore
from aiolb.supervised import SupervisedMember, WorkerPolicy
from aiolb.systemd import Inherited, ServiceManager
from aiolb.waiting import happens
from aiolb.worker_process import WorkerProcess

if TYPE_CHECKING:
    from aiolb.observed import Observed

WATCH_INTERVAL = 0.25
"""Seconds between two looks at workers and places."""
LONG_GAP = 2.0
"""Seconds between two looks from which this process counts as having been stopped itself."""
BEATS = 4
"""Signs of life that a worker has to miss before it counts as hung."""

_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What runs in a worker: ``command`` starts one, and takes a channel's number and an assignment as arguments."""

    command: Sequence[str]
    app: str
    log: Mapping[str, Any] = field(default_factory=dict)


class Supervisor:
    """Runs ``count`` workers as ``config`` says, until SIGTERM, SIGINT or a takeover; used once.

    SIGHUP replaces all workers, one at a time; SIGTTIN and SIGTTOU make it one member more or less; SIGUSR1 reopens
    the log file; SIGQUIT, or a second SIGINT, stops without waiting for handlers. ``config.index`` means nothing here,
    and ``config.count`` is the number of workers. ``report`` gets the sums of all workers at the end.
    """

    def __init__(
        self,
        target: Target,
        config: ServeConfig,
        policy: WorkerPolicy,
        *,
        manager: ServiceManager | None = None,
        inherited: Inherited | None = None,
        rebalance: RebalancePolicy | None = None,
    ) -> None:
        self._target = target
        self._config = config
        self._policy = policy
        self._rebalance = rebalance
        self._manager = manager or ServiceManager()
        self._store = SocketStore(self._manager, inherited or Inherited({}, ()), config.protocol)
        self._members: list[SupervisedMember] = []
        self._keepers: dict[SupervisedMember, asyncio.Task[None]] = {}
        self._present: set[SupervisedMember] = set()
        self._reports: list[MemberReport] = []
        self._endings: list[asyncio.Task[None]] = []
        self._given_up = False
        self._joined = False
        self._started = False
        self._stopping = asyncio.Event()
        self._operations = Operations(self._stopping)
        self._metrics = MetricsServer(config.metrics, self._observe, wait=config.takeover)
        self._places: AllPlaces

    async def run(self) -> None:
        """Start, supervise, stop. Raises StartError and ConfigurationError; nothing is left behind then."""
        said = {"bind": as_text(self._config.bind)}
        logs.MEMBER.set(said)
        check_writable(self._config.report)
        if self._config.user is not None:
            privileges.check_may_switch(privileges.parse(self._config.user))
        with signals.captured(self._signalled, _SIGNALS):
            try:
                async with self._metrics:
                    await self._run(said)
            except CompileStoppedError as error:
                _log.info("start_given_up", reason=str(error))

    async def _run(self, said: dict[str, str]) -> None:
        self._places = AllPlaces.open(self._config, self._store.taken_back(self._config.bind))
        self._joined = True
        said["bind"] = as_text(self._places.addresses)
        try:
            for index in range(self._places.count):
                self._store.keep(self._places.of(index))
            await self._start()
            self._started = True
            await self._supervise()
        finally:
            await self._stop()

    def restart(self) -> None:
        """Replace all workers, one at a time, as SIGHUP does; a new one that fails leaves the old ones at work.

        Call it in the loop's thread. Asked for during a restart, it is done once more after that one.
        """
        self._operations.ask(self._roll, again=False)

    # Starting

    async def _start(self) -> None:
        self._members = [self._make_member(self._places.of(index)) for index in range(self._places.count)]
        # One first: a mistake in the application is told once.
        first, *others = self._members
        prepared = [await first.prepare()]
        if all(prepared):
            prepared += await asyncio.gather(*(member.prepare() for member in others))
        if self._stopping.is_set():
            return
        failed = [member for member, ready in zip(self._members, prepared, strict=False) if not ready]
        if failed:
            kind = ConfigurationError if failed[0].refused else StartError
            raise kind(f"the worker of member {failed[0].index} did not start; what it said is above")
        for member in self._members:
            if not await member.receive():
                raise StartError(f"the worker of member {member.index} does not receive; what it said is above")
            if member.places.out:
                member.places.enter()
        for member in self._members:
            self._keep(member)
        # Members that the service manager kept, and that are not wanted any more.
        for _ in range(len(self._members) - (self._config.count or 1)):
            self._operations.ask(self._shrink)
        self._manager.ready(self._status())
        steering = {"balancer": self._places.balancer, **remarks.on_key(self._places.key)}
        _log.info("supervising", workers=len(self._members), **steering, pid=os.getpid())
        if self._rebalance is not None and not self._places.groups:
            reason = f"the balancer {self._places.balancer} has no slots: --rebalance does nothing"
            _log.warning("rebalance_off", reason=reason, hint="with --balancer ebpf it does not start without them")

    def _observe(self) -> list[Observed]:
        """For metrics: all groups with all members, with eBPF those of other processes too."""
        return self._places.observe() if self._joined else []

    def _make_member(self, places: Places) -> SupervisedMember:
        async def start() -> WorkerProcess:
            assignment = Assignment(
                app=self._target.app,
                index=places.index,
                count=max(self._places.count, places.index + 1),
                balancer=self._places.balancer,
                sockets=tuple((str(address), sock.fileno()) for address, sock in places.sockets.items()),
                reports=self._places.reports,
                user=self._config.user,
                kept=self._store.complete,
                beat=self._policy.worker_timeout / BEATS,
                settings=Assignment.settings_of(self._config),
                log=self._target.log,
            )
            return await WorkerProcess.start(self._target.command, assignment)

        collectors = self._config.report is not None
        member = SupervisedMember(places, start, self._policy, self._stopping, collectors=collectors)
        self._present.add(member)
        return member

    def _keep(self, member: SupervisedMember) -> None:
        self._keepers[member] = asyncio.create_task(member.keep())

    # Supervising

    async def _supervise(self) -> None:
        operating, watching = asyncio.create_task(self._operations.run()), asyncio.create_task(self._watch())
        balancing = asyncio.create_task(self._keep_even())
        try:
            await self._stopping.wait()
        finally:
            # Half of what is under way must not be left undone; it ends soon, for nothing new is waited for.
            await asyncio.wait([operating, watching, balancing])
        for task in (operating, watching, balancing):
            task.result()

    async def _roll(self) -> None:
        """Replace every worker, one at a time; the first that fails ends it."""
        self._manager.reloading("replacing workers")
        try:
            for member in list(self._members):
                if self._stopping.is_set() or not (await member.replace("restart") or member.retired):
                    return
            _log.info("restarted", workers=len(self._members))
        finally:
            self._manager.ready(self._status())

    def _status(self) -> str:
        """For people who ask the service manager."""
        receiving = sum(member.receiving for member in self._members)
        return f"{receiving} of {len(self._members)} workers receive at {as_text(self._places.addresses)}"

    async def _replace_due(self) -> None:
        """Replace the workers that are due, one at a time."""
        for member in list(self._members):
            if not self._stopping.is_set() and (reason := member.due()) is not None:
                await member.replace(reason)

    async def _grow(self) -> None:
        """Add a member: its worker first, then its share of the slots."""
        if not self._is_whole():
            return
        member = self._make_member(self._places.bind_next())
        entered = False
        try:
            if await member.prepare() and await member.receive():
                member.places.enter()
                entered = True
        finally:
            if not entered:
                _log.error("member_failed", index=member.index, hint="the group stays as it is")
                await self._end(member, "hand_over")
        if not entered:
            return
        self._members.append(member)
        self._keep(member)
        self._store.keep(member.places)
        self._note_count()

    async def _shrink(self) -> None:
        """Take the last member away: its slots first, then its place, then its worker."""
        if not self._is_whole():
            return
        if len(self._members) == 1:
            _log.warning("last_member", hint="SIGTERM stops it")
            return
        self._places.remove_last()
        member = self._members.pop()
        self._note_count()
        self._store.forget(member.places)
        await self._end(member, "drain")

    def _is_whole(self) -> bool:
        """Whether all places of the groups are ours; what is another process's is not to be changed."""
        whole = [member.index for member in self._members] == list(range(self._places.group_count))
        if not whole:
            _log.error("count_kept", reason="other processes hold some of the group's places")
        return whole

    def _note_count(self) -> None:
        _log.info("count_changed", now=self._places.count)
        self._manager.status(self._status())
        for member in self._members:
            member.order("count", count=self._places.count)

    async def _keep_even(self) -> None:
        """Move slots where load is uneven, if that was asked for."""
        if self._rebalance is None or not self._places.groups:
            return
        try:
            await keep_even(self._places.groups, self._rebalance, self._holds_all, self._stopping)
        finally:
            self._stopping.set()

    def _holds_all(self) -> bool:
        return len(self._members) == self._places.count and self._places.whole

    async def _watch(self) -> None:
        """Look after members, places and keepers until stopping; stop when the last place was taken over."""
        looked = time.monotonic()
        slots = SlotWatches(self._places.groups)
        try:
            while self._members and not self._stopping.is_set():
                gap, looked = time.monotonic() - looked, time.monotonic()
                if gap > LONG_GAP:
                    _log.warning("supervisor_paused", seconds=round(gap, 1))
                    for member in self._members:
                        member.excuse(gap)
                self._look_after_members()
                self._tell_of_slots(slots)
                if self._manager.keep_alive(time.monotonic(), every=WATCH_INTERVAL):
                    self._manager.status(self._status())
                await happens(self._stopping, seconds=WATCH_INTERVAL)
        finally:
            self._stopping.set()

    def _tell_of_slots(self, slots: SlotWatches) -> None:
        members = {member.index: member for member in self._members}
        for index, change in slots.changes():
            if index in members:
                members[index].order("slots", **change.as_message())

    def _look_after_members(self) -> None:
        for member in list(self._members):
            if member.places.displaced:
                self._members.remove(member)
                self._store.forget(member.places)
                _log.info("displaced", index=member.index)
                self._endings.append(asyncio.create_task(self._end(member, "drain")))
            else:
                member.watch()
        if any(member.due() for member in self._members):
            self._operations.ask(self._replace_due, again=False)
        for keeper in self._keepers.values():
            if keeper.done():
                keeper.result()

    def _signalled(self, number: signal.Signals) -> None:
        _log.info("signal", name=number.name)
        if number == signal.SIGQUIT or (number == signal.SIGINT and self._stopping.is_set()):
            self._given_up = True
            for member in self._present:
                member.give_up()
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._stopping.set()
        elif number == signal.SIGHUP:
            self.restart()
        elif number == signal.SIGTTIN:
            self._operations.ask(self._grow)
        elif number == signal.SIGTTOU:
            self._operations.ask(self._shrink)
        elif number == signal.SIGUSR1:
            logs.reopen()
            for member in self._present:
                member.order("reopen_log")

    # Stopping

    async def _stop(self) -> None:
        self._stopping.set()
        self._manager.stopping()
        await self._metrics.close()
        if self._started:
            _log.info("stopping", graceful_timeout=self._config.graceful_timeout, kept=self._store.complete)
        else:
            self._places.undo()
        try:
            if not self._store.complete:
                for member in self._members:
                    member.places.leave()
            # Kept sockets wait, with their places and their queues, for the next supervisor.
            order = "hand_over" if self._store.complete else "drain"
            await asyncio.gather(*self._endings, *(self._end(member, order) for member in self._members))
        finally:
            self._places.close()
        if self._started:
            self._tell()

    async def _end(self, member: SupervisedMember, order: str) -> None:
        if member in self._keepers and not self._given_up:
            await member.steady(seconds=self._config.graceful_timeout)
        if order == "drain":
            member.places.refuse()
        await member.end(order)
        if (keeper := self._keepers.pop(member, None)) is not None:
            await keeper
        member.report.close(kept=order == "hand_over" and self._store.complete)
        member.places.close()
        self._present.discard(member)
        self._reports.append(member.report)

    def _tell(self) -> None:
        report = self.report()
        told = (*STATISTICS[self._config.protocol].told, "kernel_drops", "killed", "lost_at_most")
        _log.info("stopped", **{name: report.get(name, 0) for name in told})
        if self._config.report is not None:
            write_report(self._config.report, report)

    def report(self) -> dict[str, Any]:
        """The sums over all members, and each member; complete once it has stopped."""
        members = [report.as_dict() for report in sorted(self._reports, key=lambda report: report.index)]
        total: Counter[str] = Counter()
        for member in members:
            total.update({name: value for name, value in member.items() if isinstance(value, int) and name != "index"})
        return {"pid": os.getpid(), **total, "members": members}
