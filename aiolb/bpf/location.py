"""Where a source is: its slot, the member that owns it, and the one that gets it now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """Where the packets of one key go.

    ``slot`` is the key's, ``owner`` the member that the slot belongs to. ``member`` is the one that gets the packets
    now: the owner, or another one while the owner is dead; None when nobody is alive. ``pid`` is the process that
    joined as ``member``, as that process saw itself.
    """

    slot: int
    owner: int
    member: int | None
    pid: int | None

    @property
    def alive(self) -> bool:
        """Whether the owner is."""
        return self.member == self.owner
