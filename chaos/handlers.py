"""Scenarios of handlers: that raise, that wait, that are too slow, and that run for long."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean

from aiolb.receive import choose
from chaos.arena import Arena, Verdict
from chaos.behaviour import BLOCKS_EVERY, BLOCKS_FOR, RAISES_EVERY

P99_LIMIT = 50_000
"""Microseconds that others than the source whose handler waits may have to wait."""
SMALL_RCVBUF, SMALL_BACKLOG = "64K", "64"
TRAIN = 8
SOAK_DATAGRAMS = 10_000_000
SOAK_SECONDS = 600.0
SAMPLES = 100
MEMORY_GROWTH = 0.02
"""Part of a worker's memory by which the last quarter of a soak may differ from the second."""


async def raising(arena: Arena) -> Verdict:
    """The handler raises for every seventh datagram of each source."""
    supervisor = await arena.supervisor(app="Raising")
    await arena.publish(await supervisor.address("supervising"))
    await arena.sends(arena.load.rate * arena.choose(long=30.0, short=1.0))
    report = await arena.end(supervisor)
    due = sum(number // RAISES_EVERY for number in arena.sent.values())
    verdict = arena.verdict(f"{due:,} times a handler raised")
    verdict.require_nothing_lost()
    verdict.require_order()
    verdict.require(report["errors"] == due, f"{report['errors']:,} errors were counted")
    good = verdict.findings.sent - due
    verdict.require(report["handled"] == good, f"{report['handled']:,} of {good:,} were counted as handled")
    return verdict


async def blocking(arena: Arena) -> Verdict:
    """The handler waits a second, again and again, for one source; the others do not notice."""
    supervisor = await arena.supervisor(app="Blocking")
    await arena.publish(await supervisor.address("supervising"))
    await arena.sends(arena.load.rate * arena.choose(long=30.0, short=1.0))
    await arena.end(supervisor)
    sent = arena.sent
    worst = {source: _p99(arena, source, number) for source, number in sent.items()}
    waits = -(-sent[0] // BLOCKS_EVERY)
    others = max(worst[source] for source in worst if source != 0)
    verdict = arena.verdict(
        f"{waits} waits of {BLOCKS_FOR:g} s; p99 of that source {worst[0] / 1000:,.1f} ms, "
        f"of each other at most {others / 1000:,.1f} ms"
    )
    verdict.require_nothing_lost()
    verdict.require_order()
    if not arena.short:
        verdict.require(others < P99_LIMIT, f"the p99 of another source is over {P99_LIMIT // 1000} ms")
    return verdict


def _p99(arena: Arena, source: int, sent: int) -> int:
    """Microseconds that 99 of 100 datagrams of a source took at most."""
    latencies = sorted(arena.ledger.latencies(source, sent))
    return latencies[-(-len(latencies) * 99 // 100) - 1]


async def overload(arena: Arena) -> Verdict:
    """The handlers are slower than the traffic: what is not handled was dropped, and counted, by the kernel."""
    return await _overload(arena, "off")


async def overload_trains(arena: Arena) -> Verdict:
    """The same with trains, which the kernel counts as one each."""
    return await _overload(arena, TRAIN)


async def _overload(arena: Arena, gso: str | int) -> Verdict:
    supervisor = await arena.supervisor("--rcvbuf", SMALL_RCVBUF, "--backlog", SMALL_BACKLOG, app="Slow")
    rate = max(arena.load.rate, 10_000.0)
    await arena.publish(await supervisor.address("supervising"), rate=rate, gso=gso)
    await arena.sends(rate * arena.choose(long=10.0, short=0.5))
    report = await arena.end(supervisor)
    # For a receiver that takes no trains the kernel parts them, and counts datagrams.
    train = TRAIN if gso != "off" and choose.best().trains else 1
    drops = report["kernel_drops"]
    verdict = arena.verdict(f"the kernel counts {drops:,} dropped{f', which were trains of {gso}' * (train > 1)}")
    verdict.require(drops * train == verdict.lost, "the kernel counted others")
    verdict.require(drops, "nothing was dropped: the traffic was too slow")
    verdict.require(report["handled"] == verdict.findings.received, f"{report['handled']:,} were counted as handled")
    verdict.require_order()
    return verdict


async def soak(arena: Arena) -> Verdict:
    """10,000,000 datagrams, or ten minutes: the memory of the workers does not grow."""
    supervisor = await arena.supervisor()
    await arena.publish(await supervisor.address("supervising"))
    workers = {process.member: process.pid for process in arena.ledger.processes}
    datagrams, seconds = arena.choose(long=(SOAK_DATAGRAMS, SOAK_SECONDS), short=(arena.load.rate, SOAK_SECONDS))
    started, memory = time.monotonic(), {member: list[int]() for member in workers}
    for _ in range(SAMPLES):
        await arena.sends(datagrams / SAMPLES)
        for member, pid in workers.items():
            memory[member].append(_memory(pid))
        if time.monotonic() - started > seconds:
            break
    await arena.end(supervisor)
    growth = {member: _growth(samples) for member, samples in memory.items()}
    now = max(samples[-1] for samples in memory.values()) / 1024
    verdict = arena.verdict(
        f"{time.monotonic() - started:.0f} s, {now:.1f} MiB in a worker, "
        f"{max(growth.values(), key=abs):+.2%} from the second to the last quarter"
    )
    verdict.require_nothing_lost()
    verdict.require_order()
    if not arena.short:
        for member, part in growth.items():
            verdict.require(abs(part) <= MEMORY_GROWTH, f"the memory of member {member} changed by {part:+.2%}")
    return verdict


def _memory(pid: int) -> int:
    """KiB of a process's own memory (RssAnon of proc_pid_status(5)): without the ledger, which all of them share."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def _growth(samples: list[int]) -> float:
    """By which part the last quarter is above the second."""
    quarter = len(samples) // 4
    second = fmean(samples[quarter : 2 * quarter])
    return fmean(samples[-quarter:]) / second - 1
