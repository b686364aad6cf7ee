"""A group's load, looked at in intervals, and the slots moved that make its members even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiolb.bpf.rebalancing import Plan, Rebalancer, imbalance
from aiolb.bpf.table import SlotTable

INTERVAL = 10.0
"""Seconds between two looks, unless told otherwise."""
BOUND = 1.10
"""How busy the busiest member may be, as a multiple of its share, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A group's counters and slot table at one moment, in seconds of a monotonic clock."""

    now: float
    generation: int
    slots: tuple[int, ...]
    packets: tuple[int, ...]
    shares: tuple[int, ...]
    dead: frozenset[int]
    """Members that have slots to own and no live socket: others do their work, and nothing can be planned."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look has found. Loads are packets in the interval, smoothed over earlier ones; a train is one packet."""

    reading: Reading
    loads: tuple[float, ...]
    """The load of each slot; empty after the first look, and as long as a member is dead."""
    members: tuple[float, ...]
    """The load of each member."""
    plan: Plan | None
    """What to move now, if anything."""

    @property
    def imbalance(self) -> float:
        """How busy the busiest member is, as a multiple of its share; 1.0 is even, or no load at all."""
        return imbalance(self.members, self.reading.shares)

    @property
    def imbalance_after(self) -> float:
        """The same, once the plan is carried out."""
        return self.imbalance if self.plan is None else imbalance(self.plan.after, self.reading.shares)

    @property
    def share(self) -> float:
        """The largest part of all load that a member is meant to have, in packets."""
        return sum(self.loads) * max(self.reading.shares) / sum(self.reading.shares)

    def owner_after(self, slot: int) -> int:
        """The member of a slot, once the plan is carried out."""
        moves = {} if self.plan is None else self.plan.moves
        return moves.get(slot, self.reading.slots[slot])

    @property
    def oversized(self) -> tuple[tuple[int, float], ...]:
        """Slots with more load than any member's share, and their load, the largest first."""
        most = self.share * (1 + 1e-9)  # once: it is a sum over all slots
        found = [(slot, load) for slot, load in enumerate(self.loads) if load > most]
        return tuple(sorted(found, key=lambda entry: -entry[1]))


class Balance:
    """Evens a group out: ``look()`` again and again, and ``carry_out()`` what it plans, or not.

    ``bound`` and ``limit`` are those of :class:`aiolb.bpf.rebalancing.Rebalancer`. Raises ConfigurationError for them.
    """

    def __init__(self, group: SlotTable, bound: float = BOUND, *, limit: int | None = None) -> None:
        self.bound = bound
        self._group = group
        self._rebalancer = Rebalancer(bound, limit=limit)

    def read(self, now: float) -> Reading:
        """The group as it is now. Raises KernelError, OSError."""
        group = self._group
        with group.locked():
            shares, alive = group.shares, group.alive()
            return Reading(
                now=now,
                generation=group.config.generation,
                slots=tuple(group.slots),
                packets=tuple(group.slot_packets()),
                shares=shares,
                dead=frozenset(index for index, share in enumerate(shares) if share) - alive,
            )

    def consider(self, reading: Reading) -> Look:
        """What to do after a reading; touches no group, so it may run in another thread."""
        if reading.dead:
            return Look(reading, (), (0.0,) * len(reading.shares), None)
        count = len(reading.shares)
        plan = self._rebalancer.step(reading.now, reading.slots, reading.packets, count, reading.shares)
        loads = self._rebalancer.loads
        return Look(reading, loads, _held(loads, reading.slots, count), plan)

    def look(self, now: float) -> Look:
        """``consider()`` what there is to ``read()``; ``now`` in seconds of a monotonic clock."""
        return self.consider(self.read(now))

    def carry_out(self, look: Look) -> bool:
        """Move what was planned, unless somebody has changed the table since the reading; whether it was done."""
        if look.plan is None:
            return False
        return self._group.move_slots_since(look.reading.generation, look.plan.moves)


def _held(loads: Sequence[float], slots: Sequence[int], count: int) -> tuple[float, ...]:
    held = [0.0] * count
    for load, member in zip(loads, slots, strict=False):
        if member < count:
            held[member] += load
    return tuple(held)
