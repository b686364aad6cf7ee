"""Which steps are tried to make members even, and which of the outcomes is kept; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from aiolb.bpf import packing
from aiolb.bpf.packing import REACH, Limits, Packing
from aiolb.bpf.shortening import shorten

ROUNDING = 1e-9
"""The part of all load that sums of floats may be off by."""

WORTH = round(0.01 / ROUNDING)
"""How much less busy the busiest member must get for all slots to be dealt out anew: 1 % of its ceiling."""

SHORT = 24
"""Moves up to which it is worth to look for a shorter plan; there are too many longer ones to find one."""


class Score(NamedTuple):
    """How far members are from what they may hold; less is better, the first number first."""

    undrained: int
    """Load of members that are to have none."""
    busiest: int
    """The load of the busiest member above its ceiling, as a part of it."""
    excess: int
    """Load above the ceilings of all members."""
    lack: int
    """Load missing to the floors of all members."""


REACHED = Score(0, 0, 0, 0)


def score_of(held: Sequence[float], limits: Limits) -> Score:
    """The numbers are multiples of what rounding is responsible for; what is off by ``slack`` at most is not off."""
    slack = limits.slack
    undrained = busiest = excess = lack = 0.0
    for load, weight, lowest, highest in zip(held, limits.weights, limits.lowest, limits.highest, strict=True):
        if not weight:
            undrained += load
        elif load > highest + slack:
            excess += load - highest
            busiest = max(busiest, load / highest - 1)
        elif load < lowest - slack:
            lack += lowest - load
    return Score(round(undrained / slack), round(busiest / ROUNDING), round(excess / slack), round(lack / slack))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Moves in their order, and the load of each member after them."""

    moves: dict[int, int]
    held: list[float]
    score: Score

    def better_than(self, other: Outcome) -> bool:
        """Whether this is the one to choose: it comes closer, or as close with fewer moves."""
        return (self.score, len(self.moves)) < (other.score, len(other.moves))


def search(start: Packing, limit: int | None) -> tuple[Outcome, bool]:
    """The best outcome that the steps of packing.py lead to, and whether the limit kept it from more."""
    best, limited = Outcome({}, start.held, score_of(start.held, start.limits)), False
    if best.score > REACHED:
        for whole in _attempts(start):
            outcome = _within(limit, start, whole)
            if outcome.better_than(best):
                best, limited = outcome, len(outcome.moves) < len(whole.moves)
    return best, limited


def _attempts(start: Packing) -> Iterator[Packing]:
    """Ways to pack, the last one a look for fewer moves where few are needed."""
    found = []
    for whole in _ways(start):
        found.append((score_of(whole.held, whole.limits), len(whole.moves)))
        yield whole
    score, length = min(found)
    if length <= SHORT and not any(start.limits.lowest):
        moves = shorten(start, length - 1 if score == REACHED else SHORT)
        if moves is not None:
            yield start.copy(moves)


def _ways(start: Packing) -> Iterator[Packing]:
    """Ways to pack, of which dear ones are only tried when no cheaper one reaches what is wanted."""
    attempts = [start.copy(), start.copy()]
    for attempt, tightly in zip(attempts, (False, True), strict=True):
        packing.relieve(attempt, tightly=tightly)
        packing.fill(attempt)
        packing.take_back(attempt)
        yield attempt
    if min(score_of(attempt.held, attempt.limits) for attempt in attempts) == REACHED:
        return
    for attempt in attempts:
        packing.exchange(attempt)
        packing.fill(attempt)
        packing.take_back(attempt)
        yield attempt
    if (closest := min(score_of(attempt.held, attempt.limits) for attempt in attempts)) == REACHED:
        return
    afresh = start.copy()
    packing.repack(afresh)
    packing.take_back(afresh)
    score = score_of(afresh.held, afresh.limits)
    # It moves nearly everything, which a little gain is not worth.
    if score == REACHED or (closest.busiest and not score.busiest) or score.busiest < closest.busiest - WORTH:
        yield afresh


def _within(limit: int | None, start: Packing, whole: Packing) -> Outcome:
    """As many of the moves as are allowed and leave everything better, or none."""
    ordered = _ordered(start, whole)
    if limit is None or len(ordered) <= limit:
        return Outcome(dict(ordered), list(whole.held), score_of(whole.held, whole.limits))
    first = score_of(start.held, start.limits)
    for length in range(limit, 0, -1):
        held = list(start.held)
        for slot, taker in ordered[:length]:
            held[start.owner[slot]] -= start.loads[slot]
            held[taker] += start.loads[slot]
        if (score := score_of(held, start.limits)) < first:
            return Outcome(dict(ordered[:length]), held, score)
    return Outcome({}, start.held, first)


def _ordered(start: Packing, whole: Packing) -> list[tuple[int, int]]:
    """The moves, most useful first: of the member that is furthest above its ceiling, the largest slot."""
    loads, takers = start.loads, whole.moves
    pending: dict[int, list[int]] = defaultdict(list)
    for slot in sorted(takers, key=lambda slot: loads[slot]):
        pending[start.owner[slot]].append(slot)
    now = start.copy()
    heap = [(_urgency(now, giver), giver) for giver in pending]
    heapify(heap)
    ordered = []
    while heap:
        urgency, giver = heappop(heap)
        if not pending[giver] or urgency != _urgency(now, giver):
            continue
        # One that fits at once, so that a limit never ends in the middle of an exchange if it can be helped.
        waiting = pending[giver]
        fitting = (
            at
            for at in range(len(waiting) - 1, max(len(waiting) - REACH, 0) - 1, -1)
            if _fits(now, waiting[at], takers)
        )
        slot = waiting.pop(next(fitting, len(waiting) - 1))
        now.move(slot, takers[slot])
        ordered.append((slot, takers[slot]))
        for member in (giver, takers[slot]):
            heappush(heap, (_urgency(now, member), member))
    return ordered


def _urgency(packing: Packing, giver: int) -> tuple[bool, float]:
    """Sorts members that must be drained first, then those that hold most too much."""
    return packing.limits.weights[giver] > 0, packing.room(giver)


def _fits(packing: Packing, slot: int, takers: Mapping[int, int]) -> bool:
    return packing.loads[slot] <= packing.room(takers[slot]) + packing.limits.slack
