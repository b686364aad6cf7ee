"""A look for fewer moves than were found, among all that there are, until patience ends; pure."""

from __future__ import annotations

from math import inf

from aiolb.bpf.packing import Packing

PATIENCE = 5_000
"""Moves that are looked at: 10 to 20 ms, and enough to try everything where few slots have load."""


def shorten(start: Packing, most: int) -> dict[int, int] | None:
    """At most ``most`` moves after which nobody is above its ceiling; None when none were found. Floors do not count.

    One move is tried first, then two, and so on: what is found is the fewest there are. A member above its ceiling must
    lose a slot, whatever else moves. So each step tries the slots of one such member, with every taker, also one that
    must then give itself, and goes on only while the moves left can be enough.
    """
    search = _Search(start)
    for length in range(most + 1):
        if search.reaches(length):
            return dict(search.moves)
    return None


class _Search:
    """Moves that are tried one upon the other."""

    def __init__(self, start: Packing) -> None:
        self.limits = start.limits
        self.loads = start.loads
        self.held = list(start.held)
        self.own = [own[::-1] for own in start.movable]
        self.takers = [member for member, weight in enumerate(self.limits.weights) if weight]
        self.moves: dict[int, int] = {}
        self.patience = PATIENCE

    def reaches(self, left: int) -> bool:
        """Whether ``left`` moves more are found to be enough; ``moves`` then has them all."""
        needs = [self._need(member) for member in range(len(self.held))]
        giver = max(range(len(needs)), key=lambda member: needs[member])
        if not needs[giver]:
            return True
        for slot, taker in self._options(giver, needs, left - 1):
            load = self.loads[slot]
            self._move(load, giver, taker)
            self.moves[slot] = taker
            if self.reaches(left - 1):
                return True
            del self.moves[slot]
            self._move(load, taker, giver)
            if self.patience <= 0:
                break
        return False

    def _options(self, giver: int, needs: list[float], left: int) -> list[tuple[int, int]]:
        """The moves after which ``left`` more may be enough, the most promising first."""
        options, seen = [], set()
        others = sum(needs) - needs[giver]
        for load, slot in self.own[giver]:
            if slot in self.moves:
                continue
            least = self._need(giver, -load, slot)
            for taker in self.takers:
                # Slots of one load are alike, and members that have nothing of their own to give.
                alike = (load, taker if self.own[taker] else -1, self.held[taker], self.limits.weights[taker])
                if taker == giver or alike in seen or self.patience <= 0:
                    continue
                seen.add(alike)
                self.patience -= 1
                need = others - needs[taker] + least + self._need(taker, load)
                if need <= left:
                    options.append((need, -load, slot, taker))
        return [(slot, taker) for _, _, slot, taker in sorted(options)]

    def _need(self, member: int, change: float = 0.0, without: int = -1) -> float:
        """How many slots a member must lose at least if it holds ``change`` packets more; infinite if it cannot."""
        excess = self.held[member] + change - self.limits.highest[member]
        if excess <= self.limits.slack:
            return 0
        need = 0
        for load, slot in self.own[member]:
            if slot != without and slot not in self.moves:
                excess -= load
                need += 1
                if excess <= self.limits.slack:
                    return need
        return inf

    def _move(self, load: float, giver: int, taker: int) -> None:
        self.held[giver] -= load
        self.held[taker] += load
