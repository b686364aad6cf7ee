"""A worker as its supervisor sees it: what it tells, what it is ordered, how it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import supervision

from aiolb import sockets, worker_process
from aiolb.assignment import Assignment
from aiolb.errors import StartError
from aiolb.worker_process import WorkerProcess

TESTS = Path(__file__).parent


script, until = supervision.script, supervision.until

pytestmark = pytest.mark.usefixtures("nothing_left")


@asynccontextmanager
async def started(script, *socks, beat=3600.0, linger=False):
    """A worker process on these sockets, or else one of its own, killed at the end."""
    with sockets.bind_reuseport(supervision.ANYWHERE) as own:
        worker = await WorkerProcess.start(script.command, assignment(script, *(socks or [own]), beat=beat))
        try:
            yield worker
        finally:
            if linger:
                os.killpg(worker.pid, signal.SIGKILL)
            await worker.end(within=0)


def assignment(script, *socks, beat=3600.0):
    """The work of a worker on these sockets."""
    pairs = tuple((str(sockets.address_of(sock)), sock.fileno()) for sock in socks)
    return Assignment(app=str(script.path), index=0, count=1, balancer="none", sockets=pairs, beat=beat)


async def test_a_life(script):
    """A worker tells its milestones in order, its counters, and its report at the end; then it is over."""
    with sockets.bind_reuseport(supervision.ANYWHERE) as sock, supervision.Client(sockets.address_of(sock)) as client:
        async with started(script, sock) as worker:
            assert await worker.reaches("prepared")
            assert (worker.alive, worker.has("receiving"), worker.status, worker.report) == (True, False, None, None)
            worker.order("receive")
            assert await worker.reaches("receiving")
            assert (await client.ask()).pid == worker.pid
            await until(lambda: worker.counters.get("received") == 1, "its counters")
            assert worker.counters == {"received": 1, "handled": 1, "errors": 0, "abandoned": 0}
            worker.order("drain")
            assert await worker.reaches("released")
            assert await worker.reaches("ended")
            assert await worker.over()
            assert (worker.alive, worker.status, worker.report["collector"]) == (False, 0, ["who"])
            worker.order("drain")
            worker.signal(signal.SIGKILL)
            assert worker.status == 0
            assert sock.fileno() >= 0


async def test_signs_of_life(script):
    """Every message moves the time of the last sign of life."""
    async with started(script, beat=0.01) as worker:
        assert worker.last_sign >= worker.started
        for _ in range(3):
            before = worker.last_sign
            await until(lambda: worker.last_sign > before, "a sign of life")  # noqa: B023 - used at once


async def test_a_death(script):
    """Who waits for a milestone of a worker that dies is told; there is no report, and the status names the signal."""
    script.says("1", "stuck")
    async with started(script) as worker:
        waiting = asyncio.create_task(worker.reaches("prepared"))
        await until(lambda: script.steps, "its start")
        worker.signal(signal.SIGKILL)
        assert await waiting is False
        assert (worker.alive, worker.status, worker.report) == (False, -signal.SIGKILL, None)
        assert not await worker.reaches("receiving")


async def test_an_exit(script):
    """The exit status of a worker that gives up by itself is known."""
    script.says("1", "exit")
    async with started(script) as worker:
        assert not await worker.reaches("prepared")
        assert worker.status == 3


async def test_limits_of_patience(script):
    """Waiting for a milestone or the end ends with the seconds; ending kills."""
    script.says("1", "stuck")
    async with started(script) as worker:
        assert not await worker.reaches("prepared", seconds=0.01)
        assert not await worker.over(seconds=0.01)
        assert worker.alive
        await worker.end(within=0.01)
        assert worker.status == -signal.SIGKILL
        await worker.end(within=0.01)


async def test_a_child_that_holds_the_channel(script, monkeypatch):
    """A worker whose children live on is over all the same, shortly after its last words."""
    monkeypatch.setattr(worker_process, "LAST_WORDS", 0.05)
    script.says("1", "linger")
    async with started(script, linger=True) as worker:
        await worker.reaches("prepared")
        worker.signal(signal.SIGKILL)
        assert await worker.over(seconds=supervision.DEADLINE)


def files_of(pid):
    """What a process has open, by descriptor."""
    return {file.name: str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}


async def test_what_it_inherits(script):
    """A worker has its channel and its sockets, and no other one; and a session of its own."""
    with sockets.bind_reuseport(supervision.ANYWHERE) as sock, sockets.bind_reuseport(supervision.ANYWHERE) as other:
        async with started(script, sock) as worker:
            await worker.reaches("prepared")
            files = files_of(worker.pid)
            inode = os.fstat(sock.fileno()).st_ino
            assert files[str(sock.fileno())] == f"socket:[{inode}]"
            assert f"socket:[{os.fstat(other.fileno()).st_ino}]" not in files.values()
            assert files["0"] == "/dev/null"
            assert len([name for name in files.values() if name.startswith("socket:")]) == 2
            assert os.getsid(worker.pid) == worker.pid


async def test_no_such_command(script):
    """A command that cannot be run is a failed start, and leaves nothing behind."""
    with sockets.bind_reuseport(supervision.ANYWHERE) as sock:
        for _ in range(2):
            with pytest.raises(StartError, match=r"^a worker cannot be started with /nowhere: No such file or dir"):
                await WorkerProcess.start(["/nowhere"], assignment(script, sock))


async def test_no_descriptors(script, monkeypatch):
    """Where a channel or a tally cannot be had the start has failed, and leaves nothing behind."""

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with sockets.bind_reuseport(supervision.ANYWHERE) as sock:
        for name in ("os.memfd_create", "socket.socketpair"):
            monkeypatch.setattr(name, refuse)
            with pytest.raises(StartError, match=r"^a worker cannot be started with .*: Too many open files$"):
                await WorkerProcess.start(script.command, assignment(script, sock))
