"""One member under supervision: its worker is started, outlived, replaced, given up; nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import supervision
from events import is_running

from aiolb import sockets, supervised
from aiolb.assignment import Assignment
from aiolb.errors import ConfigurationError, StartError
from aiolb.recycling import RecycleLimit
from aiolb.restarts import DAY, RestartPolicy
from aiolb.supervised import SupervisedMember, WorkerPolicy
from aiolb.worker_process import WorkerProcess

TESTS = Path(__file__).parent


script, until = supervision.script, supervision.until

pytestmark = pytest.mark.usefixtures("nothing_left")


class Places:
    """The places of a member, which nobody else wants."""

    index = 0
    out = False

    def __init__(self, sock):
        self.sockets = {sockets.address_of(sock): sock}

    def enter(self):
        """Be selected."""
        self.out = False

    def leave(self):
        """Be selected no more."""
        self.out = True
        return True


class Run:
    """A member, what was logged, and how often a worker was started."""

    def __init__(self, script, sock, policy):
        self._sockets = ((str(sockets.address_of(sock)), sock.fileno()),)
        self.script, self.places, self.stopping = script, Places(sock), asyncio.Event()
        self.refusal = None
        self.starts = 0
        self.logged = []
        self.member = SupervisedMember(self.places, self._start, policy, self.stopping)

    async def _start(self):
        self.starts += 1
        if self.refusal is not None:
            raise self.refusal
        work = Assignment(
            app=str(self.script.path), index=0, count=1, balancer="none", sockets=self._sockets, beat=0.02, settings={}
        )
        return await WorkerProcess.start(self.script.command, work)

    def named(self, name):
        """The log events of that name."""
        return [event for event in self.logged if event["event"] == name]

    async def event(self, name, nth=1):
        """The event of that name, now or later."""
        await until(lambda: len(self.named(name)) >= nth, name)
        return self.named(name)[nth - 1]

    async def begin(self):
        """Let the first worker receive, and keep the member."""
        assert await self.member.prepare()
        assert await self.member.receive()
        self.keeper = asyncio.create_task(self.member.keep())
        return self.member


@asynccontextmanager
async def member(script, **policy):
    """A member; ended at the end."""
    with structlog.testing.capture_logs() as logged, sockets.bind_reuseport(supervision.ANYWHERE) as sock:
        run = Run(script, sock, WorkerPolicy(**{"graceful_timeout": 5} | policy))
        run.logged, run.keeper = logged, None
        try:
            yield run
        finally:
            run.member.give_up()
            await run.member.end("hand_over")
            if run.keeper is not None:
                await run.keeper


FOR_EVER = {"restart": RestartPolicy(limit=0, window=60, first=3600, longest=3600)}


@pytest.mark.parametrize("seconds", [0, -1, DAY + 1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["start", "worker"])
def test_timeouts(name, seconds):
    """A timeout that cannot work is refused."""
    with pytest.raises(ConfigurationError, match=f"the {name} timeout is above 0 and at most 86,400 seconds, not "):
        WorkerPolicy(**{f"{name}_timeout": seconds})


async def test_a_life(script):
    """A member prepares, receives, ends by order, and knows what its worker did."""
    async with member(script) as run:
        assert not run.member.receiving
        it = await run.begin()
        assert it.receiving
        assert it.due() is None
        await it.end("drain")
        assert not it.receiving
        assert (it.report.workers, it.report.killed, it.report.as_dict()["collector"]) == (1, 0, [[]])
        assert it.report.as_dict()["received"] == 0
    assert [step for *_, step in script.steps] == ["started", "prepared", "receive", "drain", "ended"]
    assert run.logged == []


async def test_a_first_worker_that_fails(script):
    """A first worker that fails is no member that keeps trying."""
    script.says("1", "exit")
    async with member(script) as run:
        assert not await run.member.prepare()
        assert (run.starts, run.member.report.killed, run.logged) == (1, 0, [])


async def test_a_first_worker_that_is_stuck(script):
    """A worker that is not prepared in time is killed, and told of; it has lost nothing."""
    script.says("1", "stuck")
    async with member(script, start_timeout=0.05) as run:
        assert not await run.member.prepare()
        late = run.named("worker_start_timeout")[0]
        assert (late["seconds"], late["log_level"], run.member.report.killed) == (0.05, "error", 0)
        assert not is_running(late["pid"])


async def test_a_stop_during_the_start(script):
    """A stop ends a worker that starts, at once and without a remark."""
    script.says("1", "stuck")
    async with member(script) as run:
        preparing = asyncio.create_task(run.member.prepare())
        await until(lambda: script.steps, "its start")
        run.stopping.set()
        assert not await preparing
        assert run.logged == []


async def test_workers_that_cannot_be_started(script):
    """When no process can be had it is tried again after a back-off, and told each time."""
    short = RestartPolicy(limit=0, window=60, first=0.01, longest=0.01)
    async with member(script, restart=short) as run:
        await run.begin()
        run.refusal = StartError("a worker cannot be started with x: Cannot allocate memory")
        os.kill(script.pids(0)[0], signal.SIGKILL)
        failed = await run.event("worker_start_failed", nth=2)
        assert failed["reason"] == "a worker cannot be started with x: Cannot allocate memory"
        run.refusal = None
        await until(lambda: run.member.receiving, "the next worker")
        assert (run.member.report.workers, run.member.report.killed) == (2, 1)


async def test_a_replacement_that_fails(script):
    """The old worker goes on; no other is tried for a while without being asked for, but is when asked for."""
    async with member(script) as run:
        it = await run.begin()
        it._worker.limit = RecycleLimit(datagrams=0, seconds=None)
        assert it.due() == "recycle"
        script.says("2", "exit")
        assert not await it.replace("recycle")
        assert (it.receiving, it.due()) == (True, None)
        assert run.named("replacement_failed")[0]["hint"] == "the old one goes on"


async def test_replaced_by_hand(script):
    """A replacement that was asked for is made although one has failed just before."""
    async with member(script) as run:
        it = await run.begin()
        script.says("2", "exit")
        assert not await it.replace("restart")
        script.says("3")
        assert await it.replace("restart")
        assert (it.receiving, it.report.workers, it.report.killed) == (True, 3, 0)
        assert [run.named("replaced")[0][name] for name in ("reason", "old", "new")] == ["restart", *script.pids(0)]


async def test_replaced_while_it_waits_for_its_restart(script):
    """A replacement does not wait for the back-off of a worker that has died."""
    async with member(script, **FOR_EVER) as run:
        it = await run.begin()
        os.kill(script.pids(0)[0], signal.SIGKILL)
        await run.event("member_out")
        assert run.places.out
        assert await it.replace("restart")
        assert it.receiving
    assert (it.report.workers, it.report.killed) == (2, 1)


async def test_nothing_is_replaced_after_the_end(script):
    """A member that has retired starts nothing."""
    async with member(script) as run:
        it = await run.begin()
        it.retire()
        assert not await it.replace("restart")
        assert run.starts == 1


async def test_steady(script):
    """Who waits for a steady member waits for its next worker, but not for one that waits for a back-off."""
    async with member(script) as run:
        it = await run.begin()
        await it.steady(seconds=0)
        os.kill(script.pids(0)[0], signal.SIGKILL)
        await run.event("worker_died")
        await it.steady(seconds=supervision.DEADLINE)
        assert it.receiving
    async with member(script, **FOR_EVER) as run:
        it = await run.begin()
        os.kill(script.pids(0)[-1], signal.SIGKILL)
        await run.event("member_out")
        await it.steady(seconds=supervision.DEADLINE)
        assert not it.receiving


async def test_given_up(script, monkeypatch):
    """A worker that obeys no order is killed soon after it was given up, whatever the graceful timeout."""
    monkeypatch.setattr(supervised, "GIVE_UP_TIMEOUT", 0.05)
    script.says("1", "deaf")
    async with member(script, graceful_timeout=3600) as run:
        it = await run.begin()
        ending = asyncio.create_task(it.end("drain"))
        await until(lambda: script.pids(0, "drain"), "the order")
        it.give_up()
        await ending
        assert (it.report.killed, it.receiving) == (1, False)


async def test_a_worker_that_ignores_its_end(script, monkeypatch):
    """A worker that does not end is killed after the graceful timeout and a margin."""
    monkeypatch.setattr(supervised, "MARGIN", 0.05)
    script.says("1", "deaf")
    async with member(script, graceful_timeout=0) as run:
        it = await run.begin()
        await it.end("drain")
        assert (it.report.killed, it.receiving) == (1, False)


async def test_reports(script):
    """Sums go over all workers; what collectors say of themselves is kept where somebody wants it."""
    async with member(script) as run:
        it = await run.begin()
        assert await it.replace("restart")
        await it.end("drain")
        assert it.report.as_dict()["collector"] == [[], []]
        counted = {"received", "handled", "errors", "abandoned", "kernel_drops", "killed", "lost_at_most", "workers"}
        assert set(it.report.as_dict()) == {"index", "collector", *counted}


async def test_silence_that_nobody_could_hear(script):
    """A worker whose supervisor was stopped itself is not taken for hung."""
    async with member(script, worker_timeout=3600) as run:
        it = await run.begin()
        it._worker.last_sign -= 3600
        it.excuse(3600)
        it.watch()
        assert (it.receiving, run.logged) == (True, [])
        it._worker.last_sign -= 3600
        it.watch()
        assert run.named("worker_hung")[0]["pid"] == script.pids(0)[0]
