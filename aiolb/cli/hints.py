"""What an operator should know of a group first, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiolb import remarks
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.pins import in_bpffs
from aiolb.bpf.snapshot import GroupSnapshot, MemberRates, MemberSnapshot, State
from aiolb.cli.texts import listed

NAMED = 5
"""Members that a hint names at most."""
FULL = 0.5
"""The part of a receive queue from which a member that loses packets is too slow, and does not just meet bursts."""
UNEVEN = 1.5
"""Times its part of the datagrams that a member has to get before it is told of."""
BUSY = 100.0
"""Datagrams per second below which a member's share does not matter."""


@dataclass(frozen=True, slots=True)
class Hint:
    """What is wrong, and what mends it or tells more."""

    what: str
    fix: str


def hints(
    group: GroupSnapshot,
    members: Sequence[MemberSnapshot],
    rates: Sequence[MemberRates] | None = None,
    *,
    bpffs: Path = BPFFS,
) -> list[Hint]:
    """The worst first, of these ``members``; ``rates`` are those of all members, by index.

    ``bpffs`` is where the group is: the commands that are told find it there.
    """
    where = in_bpffs(bpffs)
    found = [*_of_states(group, members, where), *_of_drops(group, members, rates)]
    if raising := [one for one in members if one.told and one.told.errors]:
        found.append(Hint(f"handlers of {_named(raising)} raise", "handler_error in the log says what"))
    kernel = group.kernel
    if kernel.denied or kernel.unlisted or kernel.limited:
        found.append(Hint("the guard drops packets", f"aiolb guard --group {group.name}{where} says whose"))
    return [*found, *_of_shares(group, members, rates, where)]


def _of_states(group: GroupSnapshot, members: Sequence[MemberSnapshot], where: str) -> Iterable[Hint]:
    if group.empty:
        user, delete = ("", "--stale") if group.prepared is None else (f" as {group.prepared}", str(group.name))
        fix = f"start a collector{user}; or, to forget the group: aiolb group delete {delete}{where}"
        yield Hint("nobody is alive", fix)
        return
    if dead := [one for one in members if one.state is State.DEAD]:
        protocol = "--protocol tcp " if group.name.protocol == "tcp" else ""
        start = f"aiolb serve APP {protocol}--bind {group.name.address} --index {dead[0].index}{where}"
        yield Hint(f"{_named(dead)} {_are(dead)} dead, others get the sources", start)
    if silent := [one for one in members if one.state is State.SILENT]:
        yield Hint(f"{_named(silent)} {_are(silent)} silent", "the collector hangs or was killed: see its log")


def _of_drops(
    group: GroupSnapshot, members: Sequence[MemberSnapshot], rates: Sequence[MemberRates] | None
) -> Iterable[Hint]:
    tcp = group.name.protocol == "tcp"
    what = "attempts to connect" if tcp else "packets"
    now = {} if rates is None else {one.index: rates[one.index].kernel_drops for one in members}
    losing = [one for one in members if now.get(one.index)]
    slow = [one for one in losing if (one.queue or 0) >= FULL]
    if slow:
        lost = sum(now[one.index] for one in slow)
        yield Hint(
            f"{_named(slow)} cannot keep up, and the kernel drops {max(round(lost), 1):,} {what}/s",
            "a faster handler, a higher --concurrency if it waits, or more members",
        )
    elif dropped := [one for one in members if one.told and one.told.kernel_drops]:
        limit = max(one.told.queue_limit for one in dropped if one.told)
        yield Hint(
            f"the kernel {'drops' if losing else 'dropped'} {what} of {_named(losing or dropped)}",
            remarks.AGAINST_FULL_QUEUES if tcp else remarks.against_drops(limit),
        )


def _of_shares(
    group: GroupSnapshot, members: Sequence[MemberSnapshot], rates: Sequence[MemberRates] | None, where: str
) -> Iterable[Hint]:
    if rates is None:
        return
    # A dead member's sources are at others, and one that cannot keep up gets more than it receives.
    if any(one.state is not State.ALIVE or rates[one.index].kernel_drops for one in group.members):
        return

    slots = sum(one.kernel.slots for one in group.members)

    def times(member: MemberSnapshot) -> float:
        return rates[member.index].share * slots / member.kernel.slots if member.kernel.slots else 0.0

    what = "connections" if group.name.protocol == "tcp" else "datagrams"
    worst = max(members, key=times, default=None)
    if worst is not None and times(worst) > UNEVEN and rates[worst.index].datagrams >= BUSY:
        yield Hint(
            f"member {worst.index} gets {times(worst):.1f} times its part of the {what}",
            f"aiolb rebalance --group {group.name}{where} --dry-run says what to move",
        )


def _named(members: Sequence[MemberSnapshot]) -> str:
    indexes = [one.index for one in members]
    if len(indexes) <= NAMED:
        return listed(indexes, "member")
    return f"members {', '.join(map(str, indexes[:NAMED]))} and {len(indexes) - NAMED} more"


def _are(members: Sequence[MemberSnapshot]) -> str:
    return "is" if len(members) == 1 else "are"
