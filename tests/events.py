"""Log events to wait for, and processes that are to end: what the tests of supervision wait on."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from deadline import DEADLINE


class Log:
    """Events in the order in which they came, to wait for."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        """What was no event."""
        self._news = asyncio.Event()
        self._ended = False

    def add(self, line: str) -> None:
        """Take a line: an event, or something else."""
        try:
            event = json.loads(line)
        except ValueError:
            self.lines.append(line)
        else:
            self.events.append(event)
        self._news.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._news.set()

    def named(self, name: str, /, **content: Any) -> list[dict[str, Any]]:
        """The events of that name and content."""
        wanted = {"event": name, **content}
        return [event for event in self.events if wanted.items() <= event.items()]

    async def event(self, name: str, /, *, nth: int = 1, **content: Any) -> dict[str, Any]:
        """The ``nth`` event of that name and content, now or later."""
        async with asyncio.timeout(DEADLINE):
            while len(found := self.named(name, **content)) < nth:
                assert not self._ended, f"ended before {name} {content}: {self.said}"
                self._news.clear()
                await self._news.wait()
        return found[nth - 1]

    @property
    def said(self) -> str:
        """All of it, for people."""
        return "\n".join([*self.lines, *map(str, self.events)])


async def until(condition: Any, what: str = "") -> None:
    """Wait until the condition holds."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"did not happen within {DEADLINE:g} s: {what}") from None


async def gone(pids: Any) -> None:
    """Wait until no process with one of these ids is left."""
    pids = set(pids)
    await until(lambda: not any(map(is_running, pids)), f"the end of {pids}")


def is_running(pid: int) -> bool:
    """Whether the process is there, and no zombie that its new parent has not looked after yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> set[int]:
    """The child processes of a process that lives, zombies included."""
    return {int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children_of(task)}


def _children_of(task: Path) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return (task / "children").read_text().split()
    return []
