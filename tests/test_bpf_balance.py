"""What one look at a group's load says."""

from __future__ import annotations

from collections.abc import Iterator

from aiolb.bpf.balance import Look, Reading

SLOTS = 16_384


class Counted(tuple[float, ...]):
    """Loads that count how often somebody went through them."""

    __slots__ = ()
    passes = 0

    def __iter__(self) -> Iterator[float]:
        type(self).passes += 1
        return super().__iter__()


def test_slots_that_are_too_big():
    """They are found in a few passes, not one for each slot: a supervisor does nothing else meanwhile."""
    loads = Counted([100.0, 300.0, 500.0, *[0.0] * (SLOTS - 3)])
    reading = Reading(0.0, 0, (0,) * SLOTS, (0,) * SLOTS, (100, 100, 100, 100), frozenset())
    look = Look(reading, loads, (900.0, 0.0, 0.0, 0.0), None)
    assert look.oversized == ((2, 500.0), (1, 300.0))
    assert Counted.passes == 2
