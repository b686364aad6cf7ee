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

from aiolb.errors import StartError

LOG_LINE = 1 << 20
"""Bytes that a log line of a member may have."""
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
        self._ready: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        # A session of its own: Ctrl-C is for the command that started it, which then stops it.
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._command,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LOG_LINE,
        )
        self._reader = asyncio.create_task(self._read_log())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader
        self._ready.cancel()

    async def _read_log(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - it is a pipe
        async for line in self.process.stderr:
            self._tail.append(line.decode(errors="replace").rstrip("\n"))
            self.on_event(_event(line))
        if not self._ready.done():
            self._ready.set_exception(self._failure("a member did not start"))
            self._ready.exception()  # nobody need ask: another member may have failed first

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Called for each line of its log; an empty event is a line that is none."""
        if event.get("event") == "ready" and not self._ready.done():
            self._ready.set_result(event)

    def _failure(self, what: str) -> StartError:
        """What it said when it failed, or else the end of its log."""
        said = [line.removeprefix(_ERROR) for line in self._tail if line.startswith(_ERROR)]
        if not said:
            return StartError("\n".join([f"{what}:", *self._tail]))
        hints = [line.removeprefix(_HINT) for line in self._tail if line.startswith(_HINT)]
        return StartError(f"{what}: {said[-1]}", hint=hints[-1] if hints else None)

    async def ready(self) -> Mapping[str, Any]:
        """Its log event ``ready``. Raises StartError, with what it said, when it ended before that."""
        return await asyncio.shield(self._ready)

    async def stop(self) -> dict[str, Any]:
        """Stop it gracefully and read its report. Raises StartError, with what it said, when it failed."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
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
