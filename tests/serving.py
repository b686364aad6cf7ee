"""Member processes for tests, and datagrams for them: nothing of it may take for ever."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from deadline import DEADLINE

from aiolb.cli.members import MemberProcess

AIOLB = (sys.executable, "-m", "aiolb")
"""The command line, as a process of its own."""


async def flood(address: object, number: int, *, sources: int = 100, rate: int = 20_000) -> dict[str, Any]:
    """Send so many datagrams with `aiolb flood`; its own summary."""
    command = [*AIOLB, "flood", address, "--count", number, "--sources", sources, "--rate", rate, "--json"]
    run = asyncio.to_thread(subprocess.run, [*map(str, command)], capture_output=True, timeout=DEADLINE, check=True)
    summary: dict[str, Any] = json.loads((await run).stdout)
    assert summary["sent_datagrams"] == number
    return summary


class Member(MemberProcess):
    """A member process; a test fails when something of it takes longer than the deadline."""

    async def event(self, name: str) -> Mapping[str, Any]:
        """As the base class does, within the deadline."""
        async with asyncio.timeout(DEADLINE):
            return await super().event(name)

    async def ended(self) -> dict[str, Any]:
        """As the base class does, within the deadline."""
        async with asyncio.timeout(DEADLINE):
            return await super().ended()
