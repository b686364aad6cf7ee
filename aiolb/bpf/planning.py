"""Which slots to move so that no member is much busier than the others; pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import nlargest

from aiolb.bpf.packing import Limits, Packing
from aiolb.bpf.searching import REACHED, ROUNDING, search
from aiolb.bpf.slots import weights_of
from aiolb.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Plan:
    """What to move, and what becomes of it. A load is packets in the interval; a train is one packet."""

    moves: dict[int, int]
    """The new member of each slot that moves, the most useful move first."""
    before: tuple[float, ...]
    """The load of each member as it is; what slots of members outside of the group get is in none."""
    after: tuple[float, ...]
    """The load of each member when all moves are made."""
    bound: float
    """What the busiest member was to stay under, as a multiple of its share of all load."""
    oversized: tuple[tuple[int, float], ...]
    """Slots with more load than any member's share, and their load, the largest first: most likely a single key each,
    which only ``--key flow`` can split."""
    limited: bool
    """Whether more moves would have helped, but were not allowed."""
    reached: bool
    """Whether every member ends under ``bound`` times its share, or under the largest slot where that is more, and
    at the floor where one was asked for."""


def imbalance(loads: Sequence[float], weights: Sequence[int] | None = None) -> float:
    """How busy the busiest member is, as a multiple of its share of all load: 1.0 is even, or no load at all.

    Infinite when a member of weight 0 has load. Raises ConfigurationError for weights that cannot be.
    """
    checked = weights_of(len(loads), weights)
    total = sum(loads)
    if not total:
        return 1.0
    if any(load for load, weight in zip(loads, checked, strict=True) if not weight):
        return math.inf
    mean = total / sum(checked)
    return max(load / (weight * mean) for load, weight in zip(loads, checked, strict=True) if weight)


def plan(
    slots: Sequence[int],
    loads: Sequence[float],
    count: int,
    *,
    weights: Sequence[int] | None = None,
    bound: float = 1.10,
    floor: float = 0.0,
    limit: int | None = None,
    fixed: Collection[int] = (),
) -> Plan:
    """Few slot moves that bring every member under ``bound`` times its share of all load.

    Where one slot alone is more than that, its load is the ceiling instead: a slot cannot be split. With weights both
    are for the weight of a member, and the largest slot belongs on the heaviest one. Slots with load of members of
    weight 0, and of members outside of the group, all move. Nothing moves when nothing is above its ceiling (or below
    its floor), and no plan makes the busiest member busier.

    To find the fewest moves is bin packing, so this is a search that comes close: the tests compare it with all
    possibilities on small tables. Without a limit it reaches the bound whenever dealing out anew all slots that may
    move would: largest first, each to the member that is then the least busy, to the first of several. Where neither
    does, its busiest member is at most 1 % of the ceiling busier than that would leave it. What is less than 1e-9 of
    all load is taken for rounding, and for none.

    Args:
        slots: the slot table, a member for each slot.
        loads: packets of each slot in the interval, 0 or more.
        count: the number of members.
        weights: one for each member, as in :func:`aiolb.bpf.slots.resize`.
        bound: 1.0 or more.
        floor: what every member is to have at least, as a multiple of its share, 0 … 1. Where single slots are larger
            than a share, that of the others is of what these leave. It is reached where the search finds how.
        limit: moves at most, 1 or more.
        fixed: slots that stay where they are, unless they must leave a member of weight 0.

    Raises ConfigurationError for arguments outside of these.

    """
    checked = weights_of(count, weights)
    _check(slots, loads, bound, floor, limit)
    # Members outside of the group may hold nothing, like those of weight 0.
    outside = max(count, max(slots, default=0) + 1) - count
    limits = limits_of(loads, checked + (0,) * outside, bound, floor)
    home = {slot: member for slot, member in enumerate(slots) if loads[slot] > 0}
    stay = frozenset(slot for slot in fixed if slot in home and limits.weights[home[slot]])
    start = Packing(home, loads, limits, stay)
    best, limited = search(start, limit)
    share = sum(loads) * max(checked) / sum(checked)
    return Plan(
        moves=best.moves,
        before=tuple(start.held[:count]),
        after=tuple(best.held[:count]),
        bound=bound,
        oversized=tuple(sorted(_above(loads, share + limits.slack), key=lambda entry: -entry[1])),
        limited=limited,
        reached=best.score <= REACHED,
    )


def _check(slots: Sequence[int], loads: Sequence[float], bound: float, floor: float, limit: int | None) -> None:
    if len(slots) != len(loads):
        raise ConfigurationError(f"there are loads of {len(loads)} slots, and {len(slots)} slots")
    for load in loads:
        if not 0 <= load < math.inf:
            raise ConfigurationError(f"the load of a slot is 0 or more packets, not {load:g}")
    if not 1 <= bound < math.inf:
        raise ConfigurationError(f"the bound is 1.0 or more times the mean, not {bound:g}")
    if not 0 <= floor <= 1:
        raise ConfigurationError(f"the floor is 0 to 1 times the mean, not {floor:g}")
    if limit is not None and limit < 1:
        raise ConfigurationError(f"the limit is 1 move or more, not {limit}")


def _above(loads: Sequence[float], share: float) -> list[tuple[int, float]]:
    return [(slot, float(load)) for slot, load in enumerate(loads) if load > share]


def limits_of(loads: Sequence[float], weights: Sequence[int], bound: float, floor: float = 0.0) -> Limits:
    """What each member may hold under the rules of :func:`plan`, in packets."""
    total, heaviest = sum(loads), max(weights)
    ceiling = max(bound * total / sum(weights), max(loads, default=0) / heaviest)
    least = floor * _common_share(loads, weights)
    return Limits(
        weights=weights,
        lowest=[least * weight for weight in weights],
        highest=[ceiling * weight for weight in weights],
        slack=ROUNDING * (total or 1),
    )


def _common_share(loads: Sequence[float], weights: Sequence[int]) -> float:
    """The packets for one unit of weight that members share which need not take a slot larger than their share."""
    total, sum_of_weights = sum(loads), sum(weights)
    for load, weight in zip(nlargest(len(weights), loads), sorted(weights, reverse=True), strict=False):
        if sum_of_weights <= weight or load * sum_of_weights <= total * weight:
            break
        total, sum_of_weights = total - load, sum_of_weights - weight
    return total / sum_of_weights
