"""What is known of a group at one moment, whatever balances it: what metrics tell."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from aiolb.bpf import snapshot
from aiolb.bpf.snapshot import MemberSnapshot, State
from aiolb.bpf.told_sources import sketch_of
from aiolb.sketch import Sketch

if TYPE_CHECKING:
    from aiolb.bpf.abi import Report
    from aiolb.bpf.group_name import GroupName
    from aiolb.bpf.snapshot import GroupSnapshot


@dataclass(frozen=True, slots=True)
class ToldMember:
    """A member whose socket is there, of which the kernel counts nothing: what it ``told``, if anything."""

    protocol: str
    index: int
    told: Report | None
    state: State

    kernel = None

    @property
    def sketch(self) -> Sketch:
        """Its sources."""
        return sketch_of(self.told) if self.told else Sketch()


Member = MemberSnapshot | ToldMember


@dataclass(frozen=True)
class Observed:
    """What is known of one group: ``group`` with the eBPF balancer, else what its members ``told``, by index.

    ``only`` is the member to tell of, where others tell of the others; None is all of them. ``count`` is the number of
    members where all of them are ours, and None where ``told`` has one member of a group that nobody knows.
    """

    name: GroupName
    balancer: str
    group: GroupSnapshot | None
    only: int | None = None
    told: Mapping[int, Report] = field(default_factory=dict)
    count: int | None = None
    key: str | None = None

    @cached_property
    def all_members(self) -> Sequence[Member] | None:
        """Every member of the group; None where that is not known."""
        if self.group is not None:
            return self.group.members
        return None if self.count is None else self._told_by(range(self.count))

    @property
    def members(self) -> Sequence[Member]:
        """The members to tell of."""
        found = self._told_by(self.told) if self.all_members is None else self.all_members
        return [member for member in found if self.only in (None, member.index)]

    def _told_by(self, indexes: Iterable[int]) -> list[ToldMember]:
        now, protocol = time.time_ns(), self.name.protocol
        return [
            ToldMember(protocol, index, told := self.told.get(index), snapshot.state_of(told, now)) for index in indexes
        ]
