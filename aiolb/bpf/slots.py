"""Which member owns which slot; pure. A change of the member count moves the fewest slots that keep it even."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aiolb.bpf.abi import SLOT_COUNT


def assign(count: int) -> list[int]:
    """The slot table of a new group: every member owns SLOT_COUNT / count slots, give or take one."""
    return [slot % count for slot in range(SLOT_COUNT)]


def resize(slots: Sequence[int], count: int) -> dict[int, int]:
    """The moves (slot: new member) that make a table even over ``count`` members.

    Only what a removed member owned, and what a member owns above its even share, moves.
    """
    quotas = _quotas(slots, count)
    kept: Counter[int] = Counter()
    homeless = []
    for slot, member in enumerate(slots):
        if kept[member] < quotas.get(member, 0):
            kept[member] += 1
        else:
            homeless.append(slot)
    takers = [member for member, quota in quotas.items() for _ in range(quota - kept[member])]
    return dict(zip(homeless, takers, strict=True))


def _quotas(slots: Sequence[int], count: int) -> dict[int, int]:
    """The even share of each member; the spare slots go to those who own most, so that fewest move."""
    share, spare = divmod(len(slots), count)
    owned = Counter(slots)
    richest = sorted(range(count), key=lambda member: (-owned[member], member))
    quotas = {member: share + (rank < spare) for rank, member in enumerate(richest)}
    return dict(sorted(quotas.items()))
