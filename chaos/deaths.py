"""Scenarios of deaths: workers, single members and supervisors that are killed, and a worker that never comes up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.hashing import choose
from aiolb.bpf.keys import key_of
from chaos.arena import Arena, Verdict, address_of
from chaos.behaviour import BROKEN_MEMBER
from chaos.ledger import Process
from chaos.processes import until

MEMBERS = 3
BATCH = 64
"""Messages that a receiver takes at once."""
NO_LIMIT = ("--restart-limit", "1000/60")


async def killed_workers(arena: Arena) -> Verdict:
    """Random workers are killed (SIGKILL), every other one amid a full batch; others go on with their sockets."""
    times = arena.choose(long=50, short=2)
    supervisor = await arena.supervisor(*NO_LIMIT, app="Mortal")
    # Single datagrams: then a batch of messages is one of datagrams.
    await arena.publish(await supervisor.address("supervising"), gso="off")
    killed = set()
    for n in range(1, times + 1):
        victim = arena.process_of(arena.random.randrange(MEMBERS))
        if n % 2:
            os.kill(victim.pid, signal.SIGKILL)
        else:
            await _kill_amid_a_batch(arena, victim)
        killed.add(victim.number)
        await supervisor.until_said("ready", MEMBERS + n)
        await arena.all_get_through()
    report = await arena.end(supervisor)
    verdict = arena.verdict()
    lost = verdict.findings.lost_after()
    verdict.remark = f"{times} workers killed; {_lost_text(lost)}"
    verdict.require_order()
    verdict.require(max(lost.values(), default=0) <= BATCH, "a worker took more than a batch with it")
    verdict.remark += f", {report['lost_at_most']} in all as the supervisor knows"
    processes = verdict.findings.processes
    for member in report["members"]:
        own = [number for number in killed if processes[number].member == member["index"]]
        verdict.require(member["killed"] == len(own), f"of member {member['index']} {len(own)} workers were killed")
        told, known = member["lost_at_most"], sum(lost[number] for number in own)
        verdict.require(known <= told, f"member {member['index']} lost {known}, and {told} at most says the supervisor")
    _require_holes_after(verdict, killed, same_member=True)
    return verdict


async def _kill_amid_a_batch(arena: Arena, victim: Process) -> None:
    """Let a queue grow, so that the next batch is full, and let the handler of its first datagram crash."""
    os.kill(victim.pid, signal.SIGSTOP)
    await arena.sends(MEMBERS * BATCH * 2)
    arena.ledger.sentence(victim.number)
    os.kill(victim.pid, signal.SIGCONT)


def _lost_text(lost: Mapping[int, int]) -> str:
    return f"lost at a kill: {max(lost.values(), default=0)} at most, by {len(lost)} of them"


def _require_holes_after(verdict: Verdict, killed: set[int], *, same_member: bool) -> None:
    """What is missing of a source comes right after the last datagram that a killed process handled of it."""
    for source, hole, before, after in verdict.findings.holes():
        holds = before is not None and after is not None and before.number in killed and before.number != after.number
        if holds and before is not None and after is not None:
            holds = (before.member == after.member) == same_member
        verdict.require(holds, f"source {source} misses {hole.first} to {hole.last}, which no killed process had")


async def killed_members(arena: Arena) -> Verdict:
    """Single members are killed (SIGKILL), and come back; meanwhile the survivors have their sources."""
    times = arena.choose(long=20, short=2)
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        members = [await arena.member(address, index, "--count", str(MEMBERS)) for index in range(MEMBERS)]
    await arena.publish(address)
    with arena.group(address) as group:
        seed, table = group.config.seed, group.slots
    killed = []
    for _ in range(times):
        victim = arena.process_of(arena.random.randrange(MEMBERS))
        await members[victim.member].killed()
        killed.append(victim)
        await arena.all_get_through()
        members[victim.member] = await arena.member(address, victim.member)
        await arena.all_get_through()
    await arena.stop_publishing()
    for member in members:
        await arena.end(member)
    planned = {
        source: _failovers(seed, table, source, [victim.member for victim in killed])
        for source in range(arena.load.sources)
    }
    movers = frozenset(source for source, where in planned.items() if len(where) > 1)
    verdict = arena.verdict(expected_split=movers)
    lost = _lost_text(verdict.findings.lost_after())
    verdict.remark = f"{times} members killed; {lost}; {len(movers)} of {len(planned)} sources moved and came back"
    _require_holes_after(verdict, {victim.number for victim in killed}, same_member=False)
    for source, where in planned.items():
        seen = verdict.findings.members_of(source)
        verdict.require(seen == where, f"source {source} was with {seen} instead of {where}")
    return verdict


def _failovers(seed: int, table: Sequence[int], source: int, dead: Sequence[int]) -> list[int]:
    """The members that a source is with when one after the other is dead for a while."""
    everyone = set(range(MEMBERS))
    where: list[int] = []
    for members in [everyone, *(part for index in dead for part in (everyone - {index}, everyone))]:
        chosen = choose(seed, key_of(address_of(source)), table, MEMBERS, members, newest=dead[-1]).member
        assert chosen is not None  # noqa: S101 - somebody is alive
        if not where or where[-1] != chosen:
            where.append(chosen)
    return where


async def broken_worker(arena: Arena) -> Verdict:
    """Every worker of one member exits at once; its sources go to the others until one stays."""
    limit = arena.choose(long="5/60", short="1/60")
    supervisor = await arena.supervisor("--restart-limit", limit, app="Broken")
    address = await supervisor.address("supervising")
    await arena.publish(address, gso="off")
    with arena.group(address) as group:
        home = {source: group.locate(address_of(source)) for source in range(arena.load.sources)}
    arena.broken.touch()
    started = time.monotonic()
    victim = arena.process_of(BROKEN_MEMBER)
    os.kill(victim.pid, signal.SIGKILL)
    await supervisor.until_said("member_out")
    await arena.sends(arena.load.rate * arena.choose(long=60.0, short=0.2))
    starts, minutes = supervisor.count("worker_died"), (time.monotonic() - started) / 60
    arena.broken.unlink()
    await supervisor.until_said("ready", MEMBERS + 1)
    if not arena.short:
        await supervisor.until_said("member_back")
        await arena.sends(arena.load.rate)
    await arena.end(supervisor)
    orphans = frozenset(source for source, member in home.items() if member == BROKEN_MEMBER)
    rate = f", {starts / minutes:.0f} per minute" if minutes >= 1 else ""
    verdict = arena.verdict(
        f"{starts} starts in vain in {minutes * 60:.1f} s{rate}; {len(orphans)} of {len(home)} sources failed over",
        expected_split=orphans,
    )
    verdict.require(verdict.lost <= BATCH, "more than a batch is lost")
    for source, hole, before, _ in verdict.findings.holes():
        holds = before is not None and before.number == victim.number
        verdict.require(
            holds, f"source {source} misses {hole.first} to {hole.last}, which the killed worker did not have"
        )
    split = verdict.findings.split
    verdict.require(split == orphans, f"{len(split)} sources moved")
    back = [] if arena.short else [BROKEN_MEMBER]
    for source in orphans:
        seen = verdict.findings.members_of(source)
        verdict.require(seen[:1] + seen[2:] == [BROKEN_MEMBER, *back], f"source {source} was with {seen}")
    return verdict


async def kept_sockets(arena: Arena) -> Verdict:
    """The supervisor is killed (SIGKILL) and stopped in turn; its service manager keeps the sockets and starts it."""
    times = arena.choose(long=10, short=2)
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        command = arena.command("--bind", str(address), "--workers", str(MEMBERS))
        manager = await arena.manager(command)
    await arena.publish(address)
    statuses = []
    for n in range(times):
        number = signal.SIGTERM if n % 2 else signal.SIGKILL
        statuses.append(await manager.stop(number))
        await arena.start_again(manager, command)
        await arena.all_get_through()
    await arena.stop_publishing()
    await arena.handled()
    await manager.stop()
    verdict = arena.verdict(f"{times} supervisors killed or stopped, and started again with the same sockets")
    verdict.require_nothing_lost()
    verdict.require(set(statuses[1::2]) <= {0}, f"the supervisors ended with {statuses}")
    return verdict


async def killed_supervisor(arena: Arena) -> Verdict:
    """The supervisor is killed (SIGKILL): its workers finish and end; another supervisor starts on the same port."""
    groups = set(BPFFS.glob("aiolb/*/*"))
    supervisor = await arena.supervisor()
    address = await supervisor.address("supervising")
    await arena.publish(address)
    await arena.sends(arena.load.rate / 4)
    workers = {process.number: process.pid for process in arena.ledger.processes}
    await supervisor.killed()
    for pid in workers.values():
        await until(lambda pid=pid: _has_ended(pid), f"worker {pid} ends")  # type: ignore[misc]
    with arena.group(address) as group:
        left = group.alive()
    groups = set(BPFFS.glob("aiolb/*/*")) - groups
    heirs = await arena.supervisor(bind=str(address))
    await arena.all_get_through()
    await arena.end(heirs)
    verdict = arena.verdict(
        "all that is lost came while nobody was there", expected_split=frozenset(range(arena.load.sources))
    )
    verdict.require(not left, f"the members {left} are still alive")
    verdict.require(len(groups) == 1, f"these groups are left: {groups}")
    verdict.require_none("sources with holes in what one worker had", len(verdict.findings.torn))
    for source, hole, before, after in verdict.findings.holes():
        holds = before is not None and before.number in workers and after is not None and after.number not in workers
        verdict.require(holds, f"source {source} misses {hole.first} to {hole.last}")
    return verdict


def _has_ended(pid: int) -> bool:
    """Whether a process that became ours when its parent was killed has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not os.path.exists(f"/proc/{pid}")  # noqa: PTH110 - one line
