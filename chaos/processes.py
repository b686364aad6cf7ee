"""The processes under test: ``aiolb serve`` with its log, as a supervisor or as a single member."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiolb import signals
from aiolb.address import Address, parse_address
from aiolb.cli.members import MemberProcess
from aiolb.errors import AiolbError

DEADLINE = 60.0
"""Seconds after which something that must happen counts as not happening."""
LOOK_INTERVAL = 0.005
"""Seconds between two looks at what tells nobody when it changes."""


class ScenarioError(AiolbError):
    """Something that must happen did not."""


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition holds. Raises ScenarioError at the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise ScenarioError(f"did not happen within {DEADLINE:g} s: {what}")
        await asyncio.sleep(LOOK_INTERVAL)


class Served(MemberProcess):
    """One ``aiolb serve``, alone or with workers; ``said`` is all that it and its workers logged."""

    def __init__(self, *arguments: str, report: Path) -> None:
        super().__init__(*arguments, report=report)
        self.said: list[Mapping[str, Any]] = []

    def _happened(self, event: Mapping[str, Any]) -> None:
        self.said.append(event)
        super()._happened(event)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def count(self, name: str) -> int:
        """How often it or a worker logged that."""
        return sum(event["event"] == name for event in self.said)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until the condition holds; no longer than it runs, and than the deadline."""
        await until(lambda: condition() or self.process.returncode is not None, what)
        if not condition():
            raise self._failure(f"it ended before this happened: {what}")

    async def until_said(self, name: str, times: int = 1) -> None:
        """Wait until it or a worker logged that so often."""
        await self.until(lambda: self.count(name) >= times, f"{name} ({times})")

    async def address(self, event: str) -> Address:
        """Where it listens, from its first log event of that name."""
        await self.until_said(event)
        return parse_address(next(said["bind"] for said in self.said if said["event"] == event))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        signals.send(self.process, number)

    async def ended(self) -> dict[str, Any]:
        """As the base class does, within the deadline."""
        try:
            async with asyncio.timeout(DEADLINE):
                return await super().ended()
        except TimeoutError:
            raise ScenarioError(f"pid {self.pid} did not end within {DEADLINE:g} s") from None

    async def killed(self) -> None:
        """Kill it, and wait until it has ended."""
        self.signal(signal.SIGKILL)
        await self.process.wait()
