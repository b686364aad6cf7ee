"""Scenarios of floods of spoofed sources: the guard keeps them from those who behave."""

from __future__ import annotations

import asyncio
import sys

from aiolb.address import Address
from chaos.arena import ROOT, Arena, Verdict

SPOOFED = 1_000_000
SPOOFED_SHORT = 20_000
ALLOWED = "127.0.0.0/16"
"""Where the publisher's sources are."""
LIMIT = "10000"


async def spoofed(arena: Arena) -> Verdict:
    """A million random sources that no rule allows: none reaches a worker, and nobody else loses anything."""
    supervisor = await arena.supervisor("--allow", ALLOWED, "--limit-source", LIMIT)
    address = await supervisor.address("supervising")
    await arena.publish(address)
    number = arena.choose(long=SPOOFED, short=SPOOFED_SHORT)
    sent, seconds = await _flood(address, number)
    await arena.all_get_through()
    with arena.group(address) as group:
        found = group.guard.statistics()
    report = await arena.end(supervisor)
    verdict = arena.verdict(f"{sent:,} spoofed in {seconds:.1f} s, {found.unlisted:,} dropped")
    verdict.require_nothing_lost()
    verdict.require_order()
    verdict.require(found.unlisted == sent == number, "another number of the spoofed ones was dropped")
    verdict.require_none("dropped by the limit", found.limited)
    verdict.require_none("dropped by the kernel", report["kernel_drops"])
    return verdict


async def _flood(address: Address, number: int) -> tuple[int, float]:
    """Let a process send from so many random sources; how many it sent, and in how many seconds."""
    clock = asyncio.get_running_loop().time
    command = [sys.executable, "-m", "chaos.spoof", address.host, str(address.port), str(number)]
    started = clock()
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return int(output), clock() - started
