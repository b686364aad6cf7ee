"""Which sources are in a slot, of those that members name as their busiest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

from aiolb.address import IPAddress
from aiolb.bpf.hashing import slot_of
from aiolb.bpf.told_sources import top_of

if TYPE_CHECKING:
    from aiolb.bpf.group import Group

MOST = 3
"""Sources of one slot that are named at most."""
SMALLEST = 0.05
"""Part of what a slot's known sources sent that is worth a name."""


def sources_in(group: Group, slots: Collection[int]) -> dict[int, list[IPAddress]]:
    """The busiest sources of these slots, as members have told; the busiest first.

    A slot is missing of which nobody has told: its source is not among the busiest that its member names, or the
    members are no collectors, or the key is more than a source. Counted since the members joined.
    """
    key, seed, wanted = group.key, group.config.seed, set(slots)
    counts: dict[int, Counter[IPAddress]] = defaultdict(Counter)
    for index, cookie in enumerate(group.cookies()):
        report = group.reports.read(index)
        if report is None or cookie != report.cookie:
            continue
        for top in top_of(report):
            hashed = key.bytes_of(top.source)
            if hashed is not None and (slot := slot_of(seed, hashed)) in wanted:
                counts[slot][top.source] += top.received
    return {slot: _worth_a_name(found) for slot, found in counts.items()}


def _worth_a_name(counts: Counter[IPAddress]) -> list[IPAddress]:
    least = counts.total() * SMALLEST
    return [source for source, count in counts.most_common(MOST) if count >= least]
