"""A stand-in for systemd: starts a service over real sockets, hears it, watches over nothing, keeps its sockets."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

DEADLINE = 30.0
"""Seconds after which something that must happen counts as not happening; chaos uses this file alone."""
FIRST_DESCRIPTOR = 3
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_MAX_MESSAGE, _MAX_DESCRIPTORS = 4096, 253  # NOTIFY_BUFFER_MAX; SCM_MAX_FD
_ANCILLARY = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS)

# Runs in the child: it alone knows its process id, and puts the descriptors where sd_listen_fds(3) looks for them.
_LAUNCHER = """
import os, sys
passed = [int(number) for number in sys.argv[1].split(",") if number]
for place, descriptor in enumerate(passed, 3):
    os.dup2(descriptor, place)
    os.close(descriptor)
for variable in sys.argv[2].split(","):
    if variable:
        os.environ[variable] = str(os.getpid())
os.execvp(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True)
class Message:
    """What one process said: its assignments in order, and how many descriptors came along."""

    pid: int
    assignments: tuple[str, ...]
    descriptors: int

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    @property
    def values(self) -> dict[str, str]:
        """The assignments by name."""
        return dict(assignment.split("=", 1) for assignment in self.assignments)


class ServiceManager:
    """One service at a time, under a notify socket that hears its main process alone (``NotifyAccess=main``).

    ``store`` is FileDescriptorStoreMax=, ``watchdog`` is WatchdogSec= in seconds: told to the service, and nobody is
    killed for being silent. ``tells_store``: set FDSTORE, as systemd does since 254. ``abstract``: an abstract
    socket. Used as ``async with``; what still runs at its end is killed, and everything closed.

    ``messages`` are all that were heard, ``refused`` those of other processes, ``stored`` the names and descriptors
    that are kept, in the order in which they came.
    """

    def __init__(
        self, *, store: int = 0, watchdog: float | None = None, abstract: bool = False, tells_store: bool = True
    ) -> None:
        self.store, self.watchdog, self.abstract, self.tells_store = store, watchdog, abstract, tells_store
        self.messages: list[Message] = []
        self.refused: list[Message] = []
        self.stored: list[tuple[str, int]] = []
        self.process: asyncio.subprocess.Process | None = None
        self.main_pid: int | None = None
        self._told = 0  # messages that told() has gone past
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._open()
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        return self

    def _open(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="aiolb-notify-")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        path = Path(self._folder.name) / "notify"
        self._socket.bind(f"\0{path}" if self.abstract else str(path))
        if not self.abstract:
            path.chmod(0o666)  # whoever the service becomes
            path.parent.chmod(0o711)
        self.address = f"@{path}" if self.abstract else str(path)

    async def __aexit__(self, *_: object) -> None:
        if self.running:
            self.process.kill()
            await self.process.wait()
        self.be_deaf()
        self.clear()
        self._folder.cleanup()

    @property
    def running(self) -> bool:
        """Whether a service was started and has not ended."""
        return self.process is not None and self.process.returncode is None

    def be_deaf(self) -> None:
        """Close the notify socket, as a manager that is gone; idempotent."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def environment(self) -> dict[str, str]:
        """What a service is told, but for the variables with its process id."""
        told = {"NOTIFY_SOCKET": self.address}
        if self.watchdog is not None:
            told["WATCHDOG_USEC"] = str(round(self.watchdog * 1e6))
        if self.store and self.tells_store:
            told["FDSTORE"] = str(self.store)
        if self.stored:
            told["LISTEN_FDS"] = str(len(self.stored))
            told["LISTEN_FDNAMES"] = ":".join(name for name, _ in self.stored)
        return told

    async def start(self, *command: str, env: dict[str, str] | None = None, **options: Any) -> None:
        """Start the service with what is kept from descriptor 3 on; ``options`` are those of a subprocess."""
        assert not self.running, "it runs already"
        environment = {**os.environ, **(env or {}), **self.environment()}
        own_pid = ["WATCHDOG_PID"] * (self.watchdog is not None) + ["LISTEN_PID"] * bool(self.stored)
        # Out of the way of the numbers that they get in the child.
        above = FIRST_DESCRIPTOR + len(self.stored)
        passed = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for _, descriptor in self.stored]
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, ",".join(map(str, passed)), ",".join(own_pid)]
        try:
            self.process = await asyncio.create_subprocess_exec(
                *launcher, *command, env=environment, pass_fds=passed, **options
            )
        finally:
            for descriptor in passed:
                os.close(descriptor)
        self.main_pid = self.process.pid

    async def ended(self) -> int:
        """Wait for the service's end; its exit status, or minus the signal that killed it."""
        async with asyncio.timeout(DEADLINE):
            status = await self.process.wait()
        self._receive()  # what it said last
        return status

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the service a signal and wait for its end, as a restart does: what is kept stays."""
        self.process.send_signal(number)
        return await self.ended()

    def reload(self) -> None:
        """Send the service SIGHUP, as ExecReload= does."""
        self.process.send_signal(signal.SIGHUP)

    async def told(self, *assignments: str) -> Message:
        """Wait for the next message with these assignments (``"READY=1"``, or ``"STATUS="`` for any value).

        Each message is given once: the next call looks only at those after it. Fails after DEADLINE seconds, or
        when the service has ended without it.
        """
        deadline = asyncio.get_running_loop().time() + DEADLINE
        while (found := self._next(assignments)) is None:
            if self.process is not None and not self.running:
                raise AssertionError(f"ended with {self.process.returncode} before {assignments}: {self.messages}")
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not told within {DEADLINE:g} s: {assignments}: {self.messages}")
            await self._something(deadline)
        return found

    async def _something(self, deadline: float) -> None:
        """Wait for a message, or for the end of the service."""
        self._news.clear()
        waiting = [asyncio.ensure_future(self._news.wait())]
        if self.running:
            waiting.append(asyncio.ensure_future(self.process.wait()))
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        self._receive()

    def _next(self, assignments: Sequence[str]) -> Message | None:
        for position in range(self._told, len(self.messages)):
            if all(_says(self.messages[position], wanted) for wanted in assignments):
                self._told = position + 1
                return self.messages[position]
        return None

    def clear(self) -> None:
        """Close everything that is kept, as the end of a stopped service does."""
        while self.stored:
            os.close(self.stored.pop()[1])

    def _receive(self) -> None:
        """Take every message that is there."""
        while self._socket.fileno() >= 0:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(_MAX_MESSAGE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), "a message that systemd would ignore"
            self._take(data.decode(), list(_descriptors(ancillary)), _sender(ancillary))
            self._news.set()

    def _take(self, text: str, descriptors: list[int], pid: int) -> None:
        message = Message(pid, tuple(text.splitlines()), len(descriptors))
        if pid != self.main_pid:
            self.refused.append(message)
            _close(descriptors)
            return
        self.messages.append(message)
        if _says(message, "FDSTOREREMOVE=1"):
            self._discard(lambda name: name == message["FDNAME"])
        if _says(message, "FDSTORE=1"):
            self._keep(message.values.get("FDNAME", "stored"), descriptors)
        else:
            _close(descriptors)

    def _keep(self, name: str, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            known = any(os.path.sameopenfile(descriptor, kept) for _, kept in self.stored)
            if known or len(self.stored) >= self.store:
                os.close(descriptor)
            else:
                self.stored.append((name, descriptor))

    def _discard(self, chosen: Callable[[str], bool]) -> None:
        _close([descriptor for name, descriptor in self.stored if chosen(name)])
        self.stored = [(name, descriptor) for name, descriptor in self.stored if not chosen(name)]


def _says(message: Message, wanted: str) -> bool:
    return any(said == wanted or (wanted.endswith("=") and said.startswith(wanted)) for said in message.assignments)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> Iterable[int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            yield from (number for (number,) in struct.iter_unpack("i", data))


def _sender(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data)[0])
    raise AssertionError("a message without credentials")
