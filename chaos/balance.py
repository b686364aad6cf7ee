"""Scenarios of slots that move under load: by hand, by a drain, by a supervisor that evens its members out."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from chaos.arena import Arena, Verdict, address_of
from chaos.processes import LOOK_INTERVAL
from chaos.restarts import is_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiolb.bpf.group import Group

MEMBERS = 4


async def rebalance(arena: Arena) -> Verdict:
    """Members made uneven by hand, and drained, again and again, while a supervisor evens them out."""
    times = arena.choose(long=5, short=1)
    options = ("--rebalance", "--rebalance-interval", "1")
    supervisor = await arena.supervisor(*options, workers=MEMBERS)
    address = await supervisor.address("supervising")
    await arena.publish(address)
    with arena.group(address) as group:
        slot_of = [group.slot_of(address_of(source)) for source in range(arena.load.sources)]
        async with _noted(group) as tables:
            for n in range(1, times + 1):
                before = supervisor.count("rebalanced")
                crowded, drained = arena.random.sample(range(MEMBERS), 2)
                group.move(
                    [slot for slot, owner in enumerate(group.slots) if owner != crowded and slot % 3], to=crowded
                )
                await supervisor.until_said("rebalanced", before + 1)
                group.drain(drained)
                await supervisor.until_said("drained", n)
                await arena.sends(arena.load.rate / 2)
                group.undrain(drained)
                await supervisor.until_said("undrained", n)
                await arena.sends(arena.load.rate / 2)
        changes = group.config.generation
    await arena.end(supervisor)
    owners = {source: [table[slot] for table in tables] for source, slot in enumerate(slot_of)}
    movers = frozenset(source for source, members in owners.items() if len(set(members)) > 1)
    verdict = arena.verdict(
        f"{times} crowds and drains, evened out {supervisor.count('rebalanced')} times; {len(movers)} of"
        f" {arena.load.sources} sources moved",
        expected_split=movers,
    )
    verdict.require_nothing_lost()
    verdict.require(len(tables) == changes - tables.first + 1, "a table was not seen")
    for source, members in owners.items():
        seen, planned = verdict.findings.members_of(source), [member for member, _ in groupby(members)]
        verdict.require(is_part(seen, planned), f"source {source} was with {seen}, its slot with {planned}")
    return verdict


class _Tables(list[list[int]]):
    """The slot tables of a group, one after the other; ``first`` is the generation of the first."""

    first = 0


@asynccontextmanager
async def _noted(group: Group) -> AsyncIterator[_Tables]:
    """Every table that the group has inside of the block."""
    tables, generation = _Tables([group.slots]), group.config.generation
    tables.first = generation

    async def note() -> None:
        nonlocal generation
        while True:
            if (now := group.config.generation) != generation:
                generation = now
                tables.append(group.slots)
            await asyncio.sleep(LOOK_INTERVAL)

    noting = asyncio.create_task(note())
    try:
        yield tables
    finally:
        noting.cancel()
        await asyncio.wait([noting])
