"""A group's counters at one moment, as frozen objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemberStatistics:
    """One member as the program and the maps see it; a train counts as one packet.

    ``packets``, ``bytes`` (UDP payload) and ``failovers`` count since the group's creation, whoever held
    the index. ``cookie`` is that of the live socket, as ``ss -e`` prints it; None when the member is dead.
    ``weight`` is its part of the slots beside the others' weights; while it is ``drained`` it owns none.
    """

    index: int
    cookie: int | None
    pid: int
    uid: int
    joined_ns: int
    slots: int
    weight: int
    drained: bool
    packets: int
    bytes: int
    failovers: int

    @property
    def alive(self) -> bool:
        """Whether a socket holds the index."""
        return self.cookie is not None


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """A group at one moment. The counters count packets, and a train is one packet; ``struct group_stats`` has them."""

    count: int
    seed: int
    strict: bool
    key: str
    members: tuple[MemberStatistics, ...]
    failovers: int
    unsteered: int
    dropped: int
    denied: int
    unlisted: int
    limited: int
    migrated: int
    events_lost: int
