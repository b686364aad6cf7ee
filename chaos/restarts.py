"""Scenarios of operations: restarts, takeovers, another number of members, a worker that stands still."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import slots
from aiolb.bpf.hashing import slot_of
from aiolb.bpf.keys import key_of
from chaos.arena import Arena, Verdict, address_of
from chaos.processes import until

MEMBERS = 3


async def rolling_restarts(arena: Arena) -> Verdict:
    """Rolling restarts (SIGHUP) in a row."""
    return await _rolling_restarts(arena, "ebpf")


async def rolling_restarts_classic(arena: Arena) -> Verdict:
    """Rolling restarts (SIGHUP) in a row, with the classic balancer."""
    return await _rolling_restarts(arena, "classic")


async def _rolling_restarts(arena: Arena, balancer: str) -> Verdict:
    times = arena.choose(long=20, short=2)
    supervisor = await arena.supervisor("--balancer", balancer)
    await arena.publish(await supervisor.address("supervising"))
    for n in range(1, times + 1):
        supervisor.signal(signal.SIGHUP)
        await supervisor.until_said("restarted", n)
    report = await arena.end(supervisor)
    verdict = arena.verdict(f"{times} restarts of {MEMBERS} workers, balancer {balancer}")
    verdict.require_nothing_lost()
    verdict.require_order()
    used = [said["balancer"] for said in supervisor.said if said["event"] == "supervising"]
    verdict.require(used == [balancer], f"the balancer was {', '.join(used)}")
    started = Counter(process.member for process in verdict.findings.processes.values())
    verdict.require(started == dict.fromkeys(range(MEMBERS), times + 1), f"workers started: {dict(started)}")
    verdict.require_none("datagrams abandoned", report["abandoned"])
    return verdict


async def takeovers(arena: Arena) -> Verdict:
    """Takeovers of random members, each by another process."""
    times = arena.choose(long=100, short=3)
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        members = [await arena.member(address, index, "--count", str(MEMBERS)) for index in range(MEMBERS)]
    await arena.publish(address)
    reports = []
    for _ in range(times):
        index = arena.random.randrange(MEMBERS)
        displaced = members[index]
        members[index] = await arena.member(address, index, "--takeover")
        # It raises when that one does not end with 0.
        reports.append(await displaced.ended())
    await arena.stop_publishing()
    reports += [await arena.end(member) for member in members]
    verdict = arena.verdict(f"{times} takeovers, every displaced process ended with status 0")
    verdict.require_nothing_lost()
    verdict.require_none("datagrams abandoned", sum(report["abandoned"] for report in reports))
    return verdict


COUNTS, SHORT_COUNTS = (4, 5, 6, 5, 4, 3, 2, 3), (4, 3, 2, 3)
"""Members after each signal."""


async def resizing(arena: Arena) -> Verdict:
    """More members and fewer (SIGTTIN, SIGTTOU): 3 to 6 to 2 to 3."""
    counts = arena.choose(long=COUNTS, short=SHORT_COUNTS)
    supervisor = await arena.supervisor()
    address = await supervisor.address("supervising")
    await arena.publish(address)
    with arena.group(address) as group:
        seed, tables = group.config.seed, [group.slots]
        for n, (before, now) in enumerate(pairwise((MEMBERS, *counts)), 1):
            supervisor.signal(signal.SIGTTIN if now > before else signal.SIGTTOU)
            await supervisor.until(lambda n=n: _resized(supervisor.said) == n, f"{now} members")  # type: ignore[misc]
            tables.append(group.slots)
            await arena.sends(arena.load.sources)
    await arena.end(supervisor)
    owners = {
        source: [table[slot_of(seed, key_of(address_of(source)))] for table in tables]
        for source in range(arena.load.sources)
    }
    movers = frozenset(source for source, members in owners.items() if len(set(members)) > 1)
    moved = sum(_moved(*pair) for pair in pairwise(tables))
    verdict = arena.verdict(
        f"{MEMBERS}→{'→'.join(map(str, counts))} members; {moved:,} slots moved, "
        f"and {len(movers)} of {arena.load.sources} sources with them",
        expected_split=movers,
    )
    verdict.require_nothing_lost()
    for old, new, now in zip(tables, tables[1:], counts, strict=False):
        plan = dict(enumerate(old)) | slots.resize(old, now)
        verdict.require(list(plan.values()) == new, f"the slots for {now} members are not where the plan has them")
        verdict.require_none(f"slots moved without need for {now} members", _moved(old, new) - _due(old, new))
    for source, members in owners.items():
        seen, planned = verdict.findings.members_of(source), [member for member, _ in groupby(members)]
        verdict.require(is_part(seen, planned), f"source {source} was with {seen}, its slot with {planned}")
    return verdict


def _resized(said: Sequence[object]) -> int:
    """How often the supervisor, not a worker, told of another number of members."""
    return sum(isinstance(e, dict) and e["event"] == "count_changed" and "index" not in e for e in said)


def _moved(before: Sequence[int], after: Sequence[int]) -> int:
    return sum(old != new for old, new in zip(before, after, strict=True))


def _due(before: Sequence[int], after: Sequence[int]) -> int:
    """The fewest moves between two tables with these numbers of slots for each member."""
    return (Counter(before) - Counter(after)).total()


def is_part(seen: Sequence[int], planned: Sequence[int]) -> bool:
    """Whether the members seen are some of those planned, in their order."""
    rest = iter(planned)
    return all(member in rest for member in seen)


async def stall(arena: Arena) -> Verdict:
    """A worker stands still (SIGSTOP) for five seconds, then goes on (SIGCONT)."""
    seconds = arena.choose(long=5.0, short=0.5)
    supervisor = await arena.supervisor()
    await arena.publish(await supervisor.address("supervising"))
    victim = arena.process_of(arena.random.randrange(MEMBERS))
    os.kill(victim.pid, signal.SIGSTOP)
    await until(lambda: _state(victim.pid) == "T", "the worker stands still")
    before = arena.process_of(victim.member).handled
    await arena.sends(seconds * arena.load.rate)
    after = arena.process_of(victim.member).handled
    os.kill(victim.pid, signal.SIGCONT)
    await arena.handled()
    await arena.end(supervisor)
    verdict = arena.verdict(f"{seconds:g} s of datagrams waited")
    verdict.require_nothing_lost()
    verdict.require_order()
    verdict.require_none("handled while it stood still", after - before)
    verdict.require(len(verdict.findings.processes) == MEMBERS, "a worker was replaced")
    return verdict


def _state(pid: int) -> str:
    """R, S, T, Z … (proc_pid_stat(5)); the name before it may contain anything but this separator."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
