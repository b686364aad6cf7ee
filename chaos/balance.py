"""Scenarios of slots that move under load: by hand, by a drain, by a supervisor that evens its members out."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from chaos.arena import Arena, Verdict, address_of
from chaos.processes import LOOK_INTERVAL
from chaos.restarts import is_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

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
                with tables.changed():
                    group.move(_crowd(tables[-1], crowded), to=crowded)
                await supervisor.until_said("rebalanced", before + 1)
                with tables.changed():
                    group.drain(drained)
                await supervisor.until_said("drained", n)
                await arena.sends(arena.load.rate / 2)
                with tables.changed():
                    group.undrain(drained)
                await supervisor.until_said("undrained", n)
                await arena.sends(arena.load.rate / 2)
            await arena.stop_publishing()
    await arena.end(supervisor)
    owners = {source: [table[slot] for table in tables] for source, slot in enumerate(slot_of)}
    movers = frozenset(source for source, members in owners.items() if len(set(members)) > 1)
    verdict = arena.verdict(
        f"{times} crowds and drains, evened out {supervisor.count('rebalanced')} times; {len(movers)} of"
        f" {arena.load.sources} sources moved",
        expected_split=movers,
    )
    verdict.require_nothing_lost()
    verdict.require(len(tables) == tables.last - tables.first + 1, "a table was not seen")
    for source, members in owners.items():
        seen, planned = verdict.findings.members_of(source), [member for member, _ in groupby(members)]
        verdict.require(is_part(seen, planned), f"source {source} was with {seen}, its slot with {planned}")
    return verdict


class _Tables(list["list[int]"]):
    """The slot tables of a group, one after the other; ``first`` and ``last`` are generations."""

    def __init__(self, group: Group) -> None:
        super().__init__([group.slots])
        self.first = self.last = group.config.generation
        self._group = group

    def note(self) -> None:
        """Add the table, if it is another one than the last."""
        with self._group.locked():
            if (generation := self._group.config.generation) != self.last:
                self.last = generation
                self.append(self._group.slots)

    @contextmanager
    def changed(self) -> Iterator[None]:
        """Note the table as it is, and as what happens in the block makes it; nobody changes it meanwhile."""
        with self._group.locked():
            self.note()
            yield
            self.note()


def _crowd(table: Sequence[int], member: int) -> list[int]:
    """Two thirds of the slots of all others."""
    return [slot for slot, owner in enumerate(table) if owner != member and slot % 3]


@asynccontextmanager
async def _noted(group: Group) -> AsyncIterator[_Tables]:
    """Every table that the group has inside of the block; the supervisor's own changes are a second apart."""
    tables = _Tables(group)

    async def note() -> None:
        while True:
            tables.note()
            await asyncio.sleep(LOOK_INTERVAL)

    noting = asyncio.create_task(note())
    try:
        yield tables
    finally:
        noting.cancel()
        await asyncio.wait([noting])
        tables.note()
