"""Member processes for tests: nothing of them may take for ever."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from deadline import DEADLINE

from aiolb.cli.members import MemberProcess

AIOLB = (sys.executable, "-m", "aiolb")
"""The command line, as a process of its own."""


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
