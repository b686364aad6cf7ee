"""Member processes that another command starts, waits for and stops."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from aiolb import signals
from aiolb.bpf.syscall import end_with_parent
from aiolb.errors import StartError

LOG_LINE = 1 << 20
"""Bytes that a log line of a member may have."""
LOG_EVENTS = 1000
"""Log events of a member that are kept."""
LOG_TAIL = 20
"""Log lines of a member that are kept, to show when it fails."""

_ERROR, _HINT = "aiolb: error: ", "  hint: "


class MemberProcess:
    """One ``aiolb serve APP`` in a process of its own; kills it on exit if it still runs.

    ``arguments`` are those of ``aiolb serve``; the log format is JSON, and ``report`` gets the final statistics.
    """

    def __init__(self, *arguments: str, report: Path) -> None:
        self._command = ["-m", "aiolb", "serve", *arguments, "--report", str(report), "--log-format", "json"]
        self._report = report
        self._tail: deque[str] = deque(maxlen=LOG_TAIL)
        self._ended = False
        self._first: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self.events: deque[Mapping[str, Any]] = deque(maxlen=LOG_EVENTS)
        """Its last log events."""

    async def __aenter__(self) -> Self:
        # A session of its own: Ctrl-C is for the command that started it, which then stops it.
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._command,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                preexec_fn=end_with_parent,
                limit=LOG_LINE,
            )
        except OSError as error:
            raise StartError(f"a member cannot be started with {sys.executable}: {error.strerror}") from error
        self._reader = asyncio.create_task(self._read_log())
        return self

    async def __aexit__(self, *_: object) -> None:
        signals.send(self.process, signal.SIGKILL)
        await self.process.wait()
        await self._reader

    async def _read_log(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - it is a pipe
        async for line in self.process.stderr:
            self._tail.append(line.decode(errors="replace").rstrip("\n"))
            if event := _event(line):
                self._happened(event)
        self._ended = True
        for future in self._first.values():
            future.cancel()

    def _happened(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
        future = self._future(str(event.get("event")))
        if not future.done():
            future.set_result(event)

    def _future(self, name: str) -> asyncio.Future[Mapping[str, Any]]:
        if name not in self._first:
            self._first[name] = asyncio.get_running_loop().create_future()
        return self._first[name]

    async def event(self, name: str) -> Mapping[str, Any]:
        """Its first log event of that name, now or later. Raises StartError when it ends without one."""
        future = self._future(name)
        if not (self._ended and not future.done()):
            await asyncio.wait([future])
        if not future.done() or future.cancelled():
            raise self._failure(f"a member ended, and never was {name}")
        return future.result()

    def _failure(self, what: str) -> StartError:
        """What it said when it failed, or else the end of its log."""
        said = [line.removeprefix(_ERROR) for line in self._tail if line.startswith(_ERROR)]
        if not said:
            return StartError("\n".join([f"{what}:", *self._tail]))
        hints = [line.removeprefix(_HINT) for line in self._tail if line.startswith(_HINT)]
        return StartError(f"{what}: {said[-1]}", hint=hints[-1] if hints else None)

    async def ready(self) -> Mapping[str, Any]:
        """Its log event ``ready``. Raises StartError, with what it said, when it ended before that."""
        try:
            return await self.event("ready")
        except StartError:
            raise self._failure("a member did not start") from None

    async def stop(self) -> dict[str, Any]:
        """Stop it gracefully and read its report. Raises StartError, with what it said, when it failed."""
        signals.send(self.process, signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> dict[str, Any]:
        """Wait for its end and read its report. Raises StartError, with what it said, when it failed."""
        status = await self.process.wait()
        await self._reader
        if status != 0:
            raise self._failure(f"a member ended with status {status}")
        report: dict[str, Any] = json.loads(self._report.read_text())
        return report


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
