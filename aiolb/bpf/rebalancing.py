"""When to move slots, and which, for a loop that looks at the counters again and again; pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import sqrt

from aiolb.bpf.planning import Plan, imbalance, limits_of, plan
from aiolb.bpf.searching import ROUNDING
from aiolb.bpf.slots import weights_of
from aiolb.errors import ConfigurationError

__all__ = ["Plan", "Rebalancer", "imbalance", "plan"]

WRAP = 2**32
"""Counters are read modulo this."""

SMOOTHING = 0.5
"""How much of the earlier readings' weight is left in the next one."""

CERTAIN = 4.0
"""Standard deviations by which a member's load must exceed the bound: what chance alone does once in 30,000 readings
of a member that is at the bound already, and practically never with one that is even."""

FIRST_REST = 8
"""Intervals for which a slot stays where it was moved to; twice as many after each further move."""

LONGEST_REST = 1024
"""Intervals that no rest is longer than; a slot that stayed for as many after its rest starts afresh."""


class Rebalancer:
    """Reads the counters of all slots in every interval, and plans where a member is too busy for certain.

    ``now`` is always in seconds of one monotonic clock. Whoever asks applies the plan, or does not::

        plan = rebalancer.step(now, slots, packets, count)  # None: nothing to do
        if plan is not None:
            group.move_slots(plan.moves)

    It does not oscillate, for four reasons. Loads are smoothed over the last readings. A member counts as too busy
    only when its packets exceed the bound by CERTAIN times the square root of them, the deviation of a Poisson process:
    with few packets it never acts. A plan aims at the middle between the bound and 1, and is dropped where it gains no
    more than chance. And a slot that was moved rests for FIRST_REST intervals, doubled with every further move up to
    LONGEST_REST, so loads that change to and fro move it ever more rarely. Bursts larger than chance are smoothed and
    nothing more. With loads that stay the same it moves what it must, and then nothing.

    What members of weight 0 have moves in any case, and so does what belongs to members outside of the group.

    Args:
        bound: the multiple of its share from which a member is too busy, above 1.0.
        limit: moves in one interval at most, or None.

    Raises ConfigurationError for anything else.

    """

    def __init__(self, bound: float = 1.10, *, limit: int | None = None) -> None:
        if not 1 < bound < float("inf"):
            raise ConfigurationError(f"the bound is above 1.0 times the mean, not {bound:g}", hint="e.g. 1.1")
        if limit is not None and limit < 1:
            raise ConfigurationError(
                f"the limit is 1 move or more, not {limit}", hint="--dry-run shows what would move, and moves nothing"
            )
        self.bound = bound
        self.limit = limit
        self._last: tuple[float, list[int]] | None = None
        self._packets: list[float] = []
        self._seconds = 0.0
        self._interval = 0.0
        self._steps = 0
        self._planned: dict[int, int] = {}
        self._rests: dict[int, tuple[int, int]] = {}  # slot: its length and its end, in steps

    @property
    def loads(self) -> tuple[float, ...]:
        """The smoothed packets of each slot in an interval as long as the last; empty before the second reading."""
        return tuple(packets * self._interval / self._seconds for packets in self._packets)

    def step(
        self,
        now: float,
        slots: Sequence[int],
        packets: Sequence[int],
        count: int,
        weights: Sequence[int] | None = None,
    ) -> Plan | None:
        """What to move now: None where nothing is too uneven, or nothing helps, or it cannot be told yet.

        ``packets`` are counters of each slot that only grow, modulo 2**32; ``slots`` is the table as it is, whoever
        changed it. The first reading only says where the counters are, and so does one of another size or with counters
        that went back. Readings must follow each other before a counter has grown by 2**31: half an hour at a million
        packets per second. Raises ConfigurationError for weights that cannot be.
        """
        checked = weights_of(count, weights)
        if len(slots) != len(packets):
            raise ConfigurationError(f"there are counters of {len(packets)} slots, and {len(slots)} slots")
        if not self._read(now, packets):
            return None
        self._steps += 1
        self._let_rest(slots)
        found = self._plan(slots, checked)
        self._planned = {} if found is None else dict(found.moves)
        return found

    def _read(self, now: float, packets: Sequence[int]) -> bool:
        """Add what came since the last reading; whether there is anything to go by."""
        last, self._last = self._last, (now, list(packets))
        if last is None or len(last[1]) != len(packets):
            self._forget()
            return False
        grown = [(new - old) % WRAP for new, old in zip(packets, last[1], strict=True)]
        if max(grown, default=0) >= WRAP // 2:
            self._forget()
            return False
        if now <= last[0]:
            self._last = last
            return False
        if not self._packets:
            self._packets = [0.0] * len(packets)
        self._packets = [new + SMOOTHING * old for new, old in zip(grown, self._packets, strict=True)]
        self._interval = now - last[0]
        self._seconds = self._interval + SMOOTHING * self._seconds
        return True

    def _forget(self) -> None:
        """The counters are those of another group: nothing that is known holds for it."""
        self._packets, self._seconds, self._interval = [], 0.0, 0.0
        self._planned, self._rests = {}, {}

    def _let_rest(self, slots: Sequence[int]) -> None:
        """Leave the slots alone that were moved as planned."""
        for slot, member in self._planned.items():
            if slots[slot] != member:
                continue
            length, end = self._rests.get(slot, (0, self._steps))
            fresh = not length or self._steps - end > LONGEST_REST
            length = FIRST_REST if fresh else min(2 * length, LONGEST_REST)
            self._rests[slot] = length, self._steps + length

    def _plan(self, slots: Sequence[int], weights: Sequence[int]) -> Plan | None:
        fixed = {slot for slot, (_, end) in self._rests.items() if self._steps < end}
        whole = self._evened(slots, weights, fixed)
        if whole is None:
            homeless = {
                slot for slot, member in enumerate(slots) if self._packets[slot] and not _may_own(member, weights)
            }
            if not homeless:
                return None
            fixed = set(range(len(slots))) - homeless
            whole = self._aim(slots, weights, self.bound, fixed)
        if self.limit is not None and len(whole.moves) > self.limit:
            whole = self._aim(slots, weights, whole.bound, fixed, self.limit)
        return whole if whole.moves else None

    def _evened(self, slots: Sequence[int], weights: Sequence[int], fixed: Collection[int]) -> Plan | None:
        """A plan, without a limit, if a member is too busy for certain and the plan helps more than chance does."""
        ceilings = limits_of(self._packets, weights, self.bound).highest
        held = [0.0] * len(weights)
        for packets, member in zip(self._packets, slots, strict=True):
            if member < len(weights):
                held[member] += packets
        excess = [load - ceiling for load, ceiling in zip(held, ceilings, strict=True)]
        certain = [member for member, load in enumerate(held) if weights[member] and excess[member] > _chance(load)]
        if not certain:
            return None
        whole = self._aim(slots, weights, (1 + self.bound) / 2, fixed)
        if not whole.reached:
            nearer = self._aim(slots, weights, self.bound, fixed)
            whole = nearer if nearer.reached else whole
        scale = self._seconds / self._interval
        left = sum(max(load * scale - ceiling, 0) for load, ceiling in zip(whole.after, ceilings, strict=True))
        gain = sum(excess[member] for member in certain) - left
        return whole if gain > _chance(max(held[member] for member in certain)) * (1 - ROUNDING) else None

    def _aim(
        self,
        slots: Sequence[int],
        weights: Sequence[int],
        bound: float,
        fixed: Collection[int],
        limit: int | None = None,
    ) -> Plan:
        return plan(slots, self.loads, len(weights), weights=weights, bound=bound, fixed=fixed, limit=limit)


def _may_own(member: int, weights: Sequence[int]) -> bool:
    return member < len(weights) and weights[member] > 0


def _chance(packets: float) -> float:
    """The packets that so many may be off by without a reason."""
    return CERTAIN * sqrt(packets)
