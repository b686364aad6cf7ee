"""What the tests of supervision share: supervisors, in a process or in the test, and clients with a source each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
import structlog.testing
from deadline import DEADLINE
from events import Log, children, gone, until
from serving import AIOLB

from aiolb.address import Address
from aiolb.bpf.syscall import end_with_parent
from aiolb.config import ServeConfig
from aiolb.supervised import WorkerPolicy
from aiolb.supervisor import Supervisor as AiolbSupervisor
from aiolb.supervisor import Target

ANYWHERE = Address("127.0.0.1", 0)

# The command line, but for what its supervisor starts.
_WITH_SCRIPTED_WORKERS = """
import json, sys
from aiolb import supervisor
from aiolb.cli import main
command, target = json.loads(sys.argv.pop(1)), supervisor.Target
supervisor.Target = lambda **settings: target(**settings | {"command": command})
main()
"""

# What it does is said by the datagram; its report has all that it handled, in order.
APP = """
import asyncio, os, signal, time
from aiolb import Collector

class App(Collector):
    def __init__(self):
        self.handled = []

    async def handle(self, datagram, addr):
        word, _, rest = datagram.decode().partition(" ")
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if word in ("wait", "hang"):
            self.say("waiting", addr)
        if word == "wait":
            await asyncio.Event().wait()
        if word == "hang":
            time.sleep(3600)  # here it hangs
        self.handled.append(datagram.decode())
        self.say(VERSION, addr)

    def say(self, what, addr):
        self.reply(f"{what} {self.statistics().index} {os.getpid()} {os.getuid()}".encode(), addr)

    def report(self):
        return {"version": VERSION, "handled": self.handled}
"""


def write_module(path: Path, text: str) -> None:
    """Write a module anew.

    Python tells bytecode that is out of date by the second of the file's time and by its size, which may be the same.
    """
    before = path.stat().st_mtime if path.exists() else 0.0
    path.write_text(text)
    os.utime(path, times=(max(time.time(), before + 2),) * 2)


def write_app(path: Path, *, version: str = "1", start: str = "") -> str:
    """Write the application to ``path``, with lines that run on its import; how the command line names it."""
    write_module(path, f"VERSION = {version!r}\n{APP}\n{start}\n")
    return f"{path}:App"


class Answer:
    """Who handled a datagram: version of the application, index, process id, user id."""

    def __init__(self, text: str) -> None:
        self.version, index, pid, uid = text.split()
        self.index, self.pid, self.uid = int(index), int(pid), int(uid)


class Client:
    """One source that sends datagrams to an address and hears the answers."""

    def __init__(self, to: Address | tuple[str, int], host: str = "127.0.0.1") -> None:
        self._to = (to.host, to.port) if isinstance(to, Address) else to
        self._sock = socket.socket(type=socket.SOCK_DGRAM)
        self._sock.bind((host, 0))
        self._sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, *datagrams: str) -> None:
        """Send them, and wait for nothing."""
        for datagram in datagrams:
            self._sock.sendto(datagram.encode(), self._to)

    async def hear(self) -> Answer:
        """The next answer."""
        async with asyncio.timeout(DEADLINE):
            while True:
                with suppress(BlockingIOError):
                    return Answer(self._sock.recv(1024).decode())
                await asyncio.sleep(0.002)

    async def ask(self, datagram: str = "who") -> Answer:
        """The answer to a datagram."""
        self.send(datagram)
        return await self.hear()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """What the workers do, and what they did; a supervisor in the test looks after them often."""
    monkeypatch.setattr("aiolb.supervisor.WATCH_INTERVAL", 0.02)
    return Script(tmp_path / "script")


class Script:
    """What scripted workers do, and what they did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.says("1")

    def says(self, version: str, *words: str) -> None:
        """From now on workers start as this version, with these words of tests/scripted_worker.py."""
        new = self.path.with_suffix(".new")
        new.write_text("\n".join([version, *words]))
        new.replace(self.path)  # at once: a worker may start at any moment

    @property
    def command(self) -> tuple[str, ...]:
        """What starts a worker."""
        return (sys.executable, "-I", "-S", str(Path(__file__).with_name("scripted_worker.py")))

    @property
    def aiolb(self) -> tuple[str, ...]:
        """The command line, with scripted workers."""
        return (sys.executable, "-c", _WITH_SCRIPTED_WORKERS, json.dumps(self.command))

    @property
    def steps(self) -> list[tuple[int, int, str]]:
        """What they did, in order: process id, index, step."""
        return self._lines(".journal")

    @property
    def changes(self) -> list[tuple[int, int, str]]:
        """What they were told of slots, in order: process id, index, change."""
        return self._lines(".slots")

    def _lines(self, suffix: str) -> list[tuple[int, int, str]]:
        journal = self.path.with_suffix(suffix)
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [(int(pid), int(index), step) for pid, index, step in (line.split(" ", 2) for line in lines)]

    def pids(self, index: int, step: str = "receive") -> list[int]:
        """The workers of a member that made a step, in order."""
        return [pid for pid, of, what in self.steps if (of, what) == (index, step)]


class Supervised(Log):
    """A supervisor in the test's own process, with scripted workers; stopped at the end of the block."""

    def __init__(self, script: Script, address: Address, policy: WorkerPolicy | None = None, **settings: Any) -> None:
        super().__init__()
        given = {name: settings.pop(name) for name in ("manager", "inherited", "rebalance") if name in settings}
        self.script = script
        target = Target(command=script.command, app=str(script.path))
        usual = {"bind": (address,), "graceful_timeout": 5.0, "report": script.path.with_suffix(".json")}
        config = ServeConfig(**usual | settings)
        self.supervisor = AiolbSupervisor(target, config, policy or WorkerPolicy(graceful_timeout=5.0), **given)

    async def __aenter__(self) -> Self:
        self._capture = structlog.testing.capture_logs()
        self.events = self._capture.__enter__()
        self._running = asyncio.create_task(self.supervisor.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._running.done():
            self.send_signal(signal.SIGQUIT)
        await asyncio.wait([self._running], timeout=DEADLINE)
        self._capture.__exit__(None, None, None)
        await gone(pid for pid, _, _ in self.script.steps)

    def send_signal(self, number: signal.Signals) -> None:
        """Let it be told of a signal."""
        self.supervisor._signalled(number)

    async def event(self, name: str, /, *, nth: int = 1, **content: Any) -> dict[str, Any]:
        """The ``nth`` event of that name and content, now or later."""
        await until(lambda: len(self.named(name, **content)) >= nth or self._running.done(), name)
        found = self.named(name, **content)
        if len(found) < nth:
            await self.ended()  # raises what it raised
            raise AssertionError(f"ended before {name} {content}: {self.events}")
        return found[nth - 1]

    async def supervising(self) -> Self:
        """Itself, once all workers receive; ``address`` says where."""
        await self.event("supervising")
        (self.address,) = self.supervisor._places.addresses
        return self

    async def ended(self) -> dict[str, Any]:
        """Its report, once it has ended by itself; raises what it raised."""
        async with asyncio.timeout(DEADLINE):
            await self._running
        return self.supervisor.report()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> dict[str, Any]:
        """Stop it by a signal; its report."""
        self.send_signal(number)
        return await self.ended()


class Supervisor(Log):
    """``aiolb serve`` in a process of its own that logs JSON; killed, with its workers, at the end of the block."""

    def __init__(
        self,
        *arguments: str,
        command: tuple[str, ...] = AIOLB,
        prefix: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._command = [*prefix, *command, "serve", *arguments, "--log-format", "json"]
        self._env = {**os.environ, **(env or {})}

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._env,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self.pid = self.process.pid
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            workers = children(self.pid)
            for pid in (self.pid, *workers):
                os.kill(pid, signal.SIGKILL)
        await self.ended()
        await gone(event["pid"] for event in self.named("ready"))

    async def _read(self) -> None:
        async for line in self.process.stderr:
            self.add(line.decode().rstrip("\n"))
        self.end()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Its exit status, once it has ended and all processes that write to its log have too."""
        async with asyncio.timeout(DEADLINE):
            status = await self.process.wait()
            await self._reader
        return status

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it by a signal; its exit status."""
        self.send_signal(number)
        return await self.ended()

    async def supervising(self, *, workers: int) -> tuple[str, int]:
        """Where it receives, once it supervises that many workers."""
        host, port = (await self.event("supervising", workers=workers))["bind"].rsplit(":", 1)
        return host, int(port)

    def worker(self, index: int, *, nth: int = 0) -> int:
        """The process id of the ``nth`` worker of a member that was ready; -1 is the last."""
        return int(self.named("ready", index=index)[nth]["pid"])
