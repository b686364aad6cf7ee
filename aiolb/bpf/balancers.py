"""What chooses among the sockets of a group's members: the group's program, the classic one, or the kernel's hash."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Protocol

from aiolb.bpf import steering
from aiolb.bpf.abi import Report
from aiolb.bpf.group import Group, GroupStatistics, Membership
from aiolb.bpf.keys import Key
from aiolb.bpf.shared_reports import SharedReports
from aiolb.bpf.state import cookie
from aiolb.bpf.steering import Place, UnmanagedPlace
from aiolb.errors import GroupError


class Balancer(Protocol):
    """What chooses among the members' sockets."""

    name: str
    pinned: bool
    waiting: frozenset[int]
    reports_descriptor: int

    @property
    def key(self) -> Key | None:
        """The group's key; None where the kernel's own hash steers."""

    @property
    def group(self) -> Group | None:
        """The group with its slots, where there are any."""

    def told(self) -> Mapping[int, Report]:
        """What the members told last, where no group has it. Any thread may call it."""

    def place(self, index: int, sock: socket.socket) -> Place:
        """The place of a member; changes nothing."""

    def add(self, socks: Sequence[socket.socket]) -> None:
        """Let the last socket be a member too."""

    def remove(self, socks: Sequence[socket.socket]) -> None:
        """Let the last socket be no member any more."""

    def take_over(self, index: int, socks: Sequence[socket.socket]) -> bool:
        """Replace who holds the index; whether somebody did."""

    def statistics(self) -> GroupStatistics | None:
        """The group's counters, where there are any."""

    def close(self, *, forget: bool) -> None:
        """Release what is held."""


class SharedPlace(Membership):
    """A member's place in a group that its :class:`aiolb.bpf.members.Members` close."""

    def close(self, *, forget: bool = False) -> None:
        """Nothing: the other places need the group's descriptors."""


class EbpfBalancer:
    """The group's own program, with a place for each socket."""

    name = "ebpf"

    def __init__(self, group: Group, waiting: frozenset[int]) -> None:
        self.group = group
        self.key = group.key
        self.pinned = group.pinned
        self.waiting = waiting
        self.reports_descriptor = group.reports_descriptor

    def told(self) -> dict[int, Report]:
        """Nothing: look at the group."""
        return {}

    def place(self, index: int, sock: socket.socket) -> SharedPlace:
        """The place of a member; changes nothing."""
        return SharedPlace(self.group, index, sock)

    def add(self, socks: Sequence[socket.socket]) -> None:
        """The new member first, its slots after it; in a takeover it waits for its turn."""
        index = len(socks) - 1
        if self.waiting:
            self.waiting |= {index}
        else:
            self.group.join(socks[index], index, count=len(socks))

    def remove(self, socks: Sequence[socket.socket]) -> None:
        """Its slots first, then its place."""
        index = len(socks) - 1
        self.waiting -= {index}
        with self.group.locked():
            if not self.waiting:
                self.group.resize(index)
            self.group.leave(index, cookie(socks[index]))

    def take_over(self, index: int, socks: Sequence[socket.socket]) -> bool:
        """Replace who holds the index; when nobody waits any more the group has as many members as we."""
        with self.group.locked():
            place = self.place(index, socks[index])
            displaces = place.displaced
            if not place.held:
                count = index + 1 if index >= place.count else None
                self.group.join(socks[index], index, count=count, takeover=True)
            self.waiting -= {index}
            if not self.waiting:
                self.group.resize(len(socks))
        return displaces

    def statistics(self) -> GroupStatistics:
        """The group's counters."""
        return self.group.statistics()

    def close(self, *, forget: bool) -> None:
        """Close the group."""
        if forget:
            self.group.delete_if_empty()
        self.group.close()


class KernelBalancer:
    """The kernel's own hash, which knows no members."""

    name = "none"
    key: Key | None = None
    pinned = False
    waiting: frozenset[int] = frozenset()
    group = None

    def __init__(self, socks: Sequence[socket.socket]) -> None:
        self._places = [UnmanagedPlace(len(socks)) for _ in socks]
        self._cookies = [cookie(sock) for sock in socks]
        self.reports_descriptor = SharedReports.make_descriptor()
        try:
            self._reports = SharedReports.inherited(self.reports_descriptor)
        except OSError:
            os.close(self.reports_descriptor)
            raise

    def told(self) -> dict[int, Report]:
        """What the members told last of the sockets that they have now."""
        found = {index: (self._reports.read(index), wanted) for index, wanted in enumerate(self._cookies)}
        return {index: told for index, (told, wanted) in found.items() if told is not None and told.cookie == wanted}

    def place(self, index: int, sock: socket.socket) -> UnmanagedPlace:  # noqa: ARG002 - places are all alike
        """The place of a member."""
        return self._places[index]

    def add(self, socks: Sequence[socket.socket]) -> None:
        """A bound socket gets its share."""
        self._cookies.append(cookie(socks[-1]))
        self._places.append(UnmanagedPlace(0))
        self._recount(len(socks))

    def remove(self, socks: Sequence[socket.socket]) -> None:
        """The kernel goes on selecting the socket until it is closed."""
        self._places.pop()
        self._cookies.pop()
        self._recount(len(socks) - 1)

    def _recount(self, count: int) -> None:
        for place in self._places:
            place.count = count

    def take_over(self, index: int, socks: Sequence[socket.socket]) -> bool:  # noqa: ARG002 - it is always refused
        """Nobody can be replaced."""
        raise GroupError(f"the balancer {self.name!r} cannot take a place over", hint="--balancer ebpf can")

    def statistics(self) -> None:
        """Nobody counts."""

    def close(self, *, forget: bool) -> None:  # noqa: ARG002 - there is nothing to forget
        """Release the memory in which the members tell of themselves."""
        self._reports.close()
        os.close(self.reports_descriptor)


class ClassicBalancer(KernelBalancer):
    """The classic balancer: numbers the sockets in the order in which they were bound."""

    name = "classic"

    def __init__(self, socks: Sequence[socket.socket], seed: int | None, key: Key) -> None:
        self.key = key
        self._options = seed, key
        self._attach(socks[0], len(socks))
        super().__init__(socks)

    def _attach(self, sock: socket.socket, count: int) -> None:
        steering.attach_classic(sock, count, *self._options)

    def add(self, socks: Sequence[socket.socket]) -> None:
        """Every number of members has a hash of its own: nearly all sources move."""
        self._attach(socks[0], len(socks))
        super().add(socks)

    def remove(self, socks: Sequence[socket.socket]) -> None:
        """As with more members; the last socket is not selected any more."""
        self._attach(socks[0], len(socks) - 1)
        super().remove(socks)
