"""Loads in members, and how to move few of them until every member holds what it may; pure.

To find the fewest moves is a bin-packing problem, which nobody can solve fast. These are the steps of a search that
comes close; ``searching`` decides which to take.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import inf

REACH = 32
"""Members that are looked at as the other side of one move: the best ones, so that a search stays fast."""

SWAPS = 64
"""Swaps that are tried for all members together, 2 ms each with 1,024; where more are needed, dealing out anew is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What members may hold: between ``lowest[member]`` and ``highest[member]`` packets.

    ``weights`` has one for each; a member of weight 0 may hold nothing. Whatever is off by ``slack`` packets or less
    is a rounding error of a float.
    """

    weights: Sequence[int]
    lowest: Sequence[float]
    highest: Sequence[float]
    slack: float


class Packing:
    """Who holds which slot, and how much that is; made anew for every attempt.

    ``home`` names the member that owns each slot with load, ``loads`` its packets, and ``fixed`` the slots that stay.
    """

    def __init__(self, home: Mapping[int, int], loads: Sequence[float], limits: Limits, fixed: frozenset[int]) -> None:
        self.home = home
        self.loads = loads
        self.limits = limits
        self.fixed = fixed
        self.owner = dict(home)
        self.held = [0.0] * len(limits.weights)
        # Of each member the slots that may move, smallest first.
        self.movable: list[list[tuple[float, int]]] = [[] for _ in limits.weights]
        for slot, member in home.items():
            self.held[member] += loads[slot]
            if slot not in fixed:
                self.movable[member].append((loads[slot], slot))
        for own in self.movable:
            own.sort()

    def copy(self, moves: Mapping[int, int] | None = None) -> Packing:
        """The same with these moves and no others."""
        copy = Packing(self.home, self.loads, self.limits, self.fixed)
        for slot, taker in (moves or {}).items():
            copy.move(slot, taker)
        return copy

    @property
    def moves(self) -> dict[int, int]:
        """The slots that are not where they were, and who has them now."""
        return {slot: member for slot, member in self.owner.items() if self.home[slot] != member}

    def move(self, slot: int, taker: int) -> None:
        """Give a slot to another member."""
        load, giver = self.loads[slot], self.owner[slot]
        own = self.movable[giver]
        del own[bisect_left(own, (load, slot))]
        insort(self.movable[taker], (load, slot))
        self.held[giver] -= load
        self.held[taker] += load
        self.owner[slot] = taker

    def room(self, member: int) -> float:
        """The packets that a member may still take; negative where it holds too much."""
        return self.limits.highest[member] - self.held[member]

    def spare(self, member: int) -> float:
        """The packets that a member can do without; negative where it holds too little."""
        return self.held[member] - self.limits.lowest[member]

    def pick(self, member: int, wanted: float, most: float) -> int | None:
        """The smallest slot of a member of at least ``wanted`` packets, or else the largest; none above ``most``."""
        own, slack = self.movable[member], self.limits.slack
        at = bisect_left(own, (wanted - slack, -1))
        if at < len(own) and own[at][0] <= most + slack:
            return own[at][1]
        end = bisect_right(own, (most + slack, inf))
        return own[end - 1][1] if end else None

    def rooms(self) -> list[tuple[float, int]]:
        """Every member that may hold anything, by its room."""
        return sorted((self.room(member), member) for member, weight in enumerate(self.limits.weights) if weight)


def relieve(packing: Packing, *, tightly: bool) -> None:
    """Move slots out of members that hold too much, each to one that has room for it.

    Members of weight 0 give first, all that they have, whether it fits or not. Then gives who holds most too much. A
    slot goes where it fits most ``tightly``, which keeps large rooms for large slots, or else to the member with most
    room.
    """
    weights, slack = packing.limits.weights, packing.limits.slack
    rooms = packing.rooms()
    homeless = [item for own, weight in zip(packing.movable, weights, strict=True) if not weight for item in own]
    for _, slot in sorted(homeless, reverse=True):
        _give(packing, slot, rooms, tightly=tightly)
    while rooms[0][0] < -slack:
        room, giver = rooms.pop(0)
        if not rooms:
            return
        fitting = packing.pick(giver, -room, rooms[-1][0])
        if fitting is None:
            continue  # nothing of it fits anywhere, and rooms only shrink
        _give(packing, fitting, rooms, tightly=tightly)
        insort(rooms, (packing.room(giver), giver))


def _give(packing: Packing, slot: int, rooms: list[tuple[float, int]], *, tightly: bool) -> None:
    """Move a slot to one of the members in ``rooms``, which stays sorted."""
    load = packing.loads[slot]
    fits = tightly and load <= rooms[-1][0]
    _, taker = rooms.pop(bisect_left(rooms, (load, -1)) if fits else -1)
    packing.move(slot, taker)
    insort(rooms, (packing.room(taker), taker))


def fill(packing: Packing) -> None:
    """Move slots to members that hold too little, from those that have most to spare."""
    limits = packing.limits
    spares = sorted((packing.spare(member), member) for member, weight in enumerate(limits.weights) if weight)
    while spares and spares[0][0] < -limits.slack:
        spare, taker = spares.pop(0)
        room = packing.room(taker)
        offers = []
        for at in range(len(spares) - 1, max(len(spares) - REACH, 0) - 1, -1):
            slot = packing.pick(spares[at][1], -spare, min(room, spares[at][0]))
            if slot is not None:
                offers.append((min(packing.loads[slot], -spare), spares[at][0], at, slot))
        if not offers:
            continue
        *_, at, slot = max(offers)
        giver = spares.pop(at)[1]
        packing.move(slot, taker)
        insort(spares, (packing.spare(giver), giver))
        insort(spares, (packing.spare(taker), taker))


def exchange(packing: Packing) -> None:
    """Let members that hold too much swap a slot for a smaller one where no slot fits by itself."""
    swaps = 0
    for room, member in packing.rooms():
        if room >= -packing.limits.slack:
            return
        while swaps < SWAPS and packing.room(member) < -packing.limits.slack:
            swaps += 1
            swap = _swap_for(packing, member)
            if swap is None:
                break
            larger, smaller = swap
            taker = packing.owner[smaller]
            packing.move(larger, taker)
            packing.move(smaller, member)


def _swap_for(packing: Packing, giver: int) -> tuple[int, int] | None:
    """The slot of ``giver`` and the smaller one of another member whose swap helps most; None where little helps."""
    excess, slack = -packing.room(giver), packing.limits.slack
    best: tuple[float, float, int, int] | None = None
    for room, taker in packing.rooms()[: -REACH - 1 : -1]:
        for load, slot in packing.movable[giver] if room > slack else ():
            other = _smaller(packing.movable[taker], load - excess, max(load - room, 0))
            if other is None:
                continue
            gain = load - other[0]
            swap = (min(gain, excess), -gain, slot, other[1])
            best = swap if best is None else max(best, swap)
    return None if best is None or best[0] < excess / 4 else best[2:]


def _smaller(own: Sequence[tuple[float, int]], wanted: float, least: float) -> tuple[float, int] | None:
    """The largest slot up to ``wanted`` packets, or else the smallest; none below ``least``."""
    at = bisect_right(own, (max(wanted, least), inf)) - 1
    if at >= 0 and own[at][0] >= least:
        return own[at]
    at = bisect_left(own, (least, -1))
    return own[at] if at < len(own) else None


def repack(packing: Packing) -> None:
    """Deal all slots out anew, largest first, each to the member that is then the least busy for its weight (LPT).

    Of members that would be as busy, the first takes the slot: with weights, much may hang on who does.
    With equal weights no member then holds more than 4/3 of the busiest one in the best packing there is:
    R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969.
    """
    base = [0.0] * len(packing.held)
    for slot in packing.fixed:
        base[packing.owner[slot]] += packing.loads[slot]
    items = sorted((item for own in packing.movable for item in own), reverse=True)
    piles = _deal(items, base, packing.limits.weights)
    names = _names(packing, piles)
    for slot, pile in piles.items():
        if packing.owner[slot] != names[pile]:
            packing.move(slot, names[pile])


def _deal(items: Sequence[tuple[float, int]], base: Sequence[float], weights: Sequence[int]) -> dict[int, int]:
    """The pile of each slot; pile n starts with ``base[n]`` packets."""
    heaps: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for member, weight in enumerate(weights):
        if weight:
            heaps[weight].append((base[member], member))
    for heap in heaps.values():
        heapify(heap)
    piles = {}
    for load, slot in items:
        _, member, weight = min(((heap[0][0] + load) / weight, heap[0][1], weight) for weight, heap in heaps.items())
        heapreplace(heaps[weight], (heaps[weight][0][0] + load, member))
        piles[slot] = member
    return piles


def _names(packing: Packing, piles: Mapping[int, int]) -> dict[int, int]:
    """Whose each pile becomes: of members with one weight, and no slot that must stay, who owns most slots of it."""
    weights = packing.limits.weights
    stay = {packing.home[slot] for slot in packing.fixed if slot in packing.home}
    names = {member: member for member, weight in enumerate(weights) if member in stay or not weight}
    taken = set(names)
    common = Counter((pile, packing.home[slot]) for slot, pile in piles.items())
    wishes = [wish for wish, _ in common.most_common()] + [(member, member) for member in range(len(weights))]
    for pile, member in wishes:
        if pile not in names and member not in taken and weights[pile] == weights[member]:
            names[pile] = member
            taken.add(member)
    for weight in set(weights):
        nameless = [pile for pile in range(len(weights)) if weights[pile] == weight and pile not in names]
        free = [member for member in range(len(weights)) if weights[member] == weight and member not in taken]
        names.update(zip(nameless, free, strict=True))
    return names


def take_back(packing: Packing) -> None:
    """Undo the moves that nobody needs, of small slots first, which are the most."""
    limits = packing.limits
    for slot in sorted(packing.moves, key=lambda slot: packing.loads[slot]):
        load, home, owner = packing.loads[slot], packing.home[slot], packing.owner[slot]
        if (
            limits.weights[home]
            and load <= packing.room(home) + limits.slack
            and load <= packing.spare(owner) + limits.slack
        ):
            packing.move(slot, home)
