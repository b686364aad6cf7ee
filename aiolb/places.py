"""The places of a supervisor's members: in one group for each address."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from aiolb import binding, descriptors, listening, remarks, sockets
from aiolb.bpf import members
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.steering import JoinOptions

if TYPE_CHECKING:
    from aiolb.address import Address
    from aiolb.bpf.group import Group
    from aiolb.bpf.keys import Key
    from aiolb.bpf.members import Members
    from aiolb.config import ServeConfig
    from aiolb.observed import Observed

Given = Mapping[tuple["Address", int], socket.socket]
"""Bound sockets that somebody else has kept, by address and index."""


class Places:
    """One member's socket and place on every address."""

    def __init__(self, groups: Sequence[Members], index: int, socks: Sequence[socket.socket], *, out: bool) -> None:
        self.index = index
        self.sockets = {group.address: sock for group, sock in zip(groups, socks, strict=True)}
        self.out = out
        """Whether the member is not to be selected for the time being."""
        self._groups = groups

    def enter(self) -> None:
        """Be selected: for the first time, again, or in the place of who is there. Raises StartError."""
        for group in self._groups:
            if self.index >= len(group):
                group.add(self.sockets[group.address])
            elif self.index in group.waiting:
                group.take_over(self.index)
            else:
                group[self.index].place.restore()
        self.out = False

    def leave(self) -> bool:
        """Be selected no more until ``enter()``; false where the balancer cannot do without a member."""
        self.out = True
        left = [group[self.index].place.leave() for group in self._groups]
        return all(left)

    def refuse(self) -> None:
        """Let no new connection in, before a worker that may have no privilege to do so takes its last look."""
        for sock in self.sockets.values():
            if sock.type == socket.SOCK_STREAM:
                listening.refuse_connections(sock)

    @property
    def displaced(self) -> bool:
        """Whether somebody else took one of the places over, or made the group so small that it is outside."""
        return any(
            group[self.index].place.displaced or self.index >= group[self.index].place.count
            for group in self._groups
            if self.index < len(group) and self.index not in group.waiting
        )

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        for sock in self.sockets.values():
            sock.close()


DESCRIPTORS = 4
"""That a worker takes of its supervisor beside its sockets: two for what they say to each other, one to see its end,
and one while it starts."""


class AllPlaces:
    """The places of all members, in the groups of all addresses; owns the sockets until ``close()``."""

    def __init__(self, groups: Sequence[Members], *, forget: Sequence[bool], protocol: str) -> None:
        self._groups = groups
        self._protocol = protocol
        self._forget = list(forget)

    @classmethod
    def open(cls, config: ServeConfig, given: Given | None = None) -> AllPlaces:
        """Bind and join with all sockets, or with ``config.takeover`` wait for ``enter()`` where others are alive.

        Raises what :func:`aiolb.bpf.members.join_all` raises; nothing is left behind then.
        """
        with ExitStack() as on_error:
            groups = []
            for address in config.bind:
                kept = {index: sock for (of, index), sock in (given or {}).items() if of == address}
                for sock in kept.values():
                    binding.renew(sock, config)
                with sockets.reserved_port(address, config.protocol) as numbered:
                    group = members.join_all(numbered, binding.binder(config), JoinOptions.of(config), given=kept)
                on_error.callback(group.close, forget=group.made)
                remarks.on_joined(numbered, group, group[0].sock, binding.queue(config), unpinned=group.unpinned)
                groups.append(group)
            descriptors.allow(DESCRIPTORS * len(groups[0]), f"{len(groups[0]):,} workers")
            on_error.pop_all()
        # Nobody comes back to a port that the kernel chose.
        return cls(groups, forget=[address.port == 0 for address in config.bind], protocol=config.protocol)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the groups are."""
        return tuple(group.address for group in self._groups)

    @property
    def reports(self) -> tuple[int, ...]:
        """For each address the descriptor of the memory in which members tell of themselves."""
        return tuple(group.reports_descriptor for group in self._groups)

    @property
    def balancer(self) -> str:
        """``ebpf``, ``classic`` or ``none``: that of the first group."""
        return self._groups[0].balancer

    @property
    def key(self) -> Key | None:
        """The key of the first group, where there is one."""
        return self._groups[0].key

    @property
    def count(self) -> int:
        """Members."""
        return len(self._groups[0])

    @property
    def group_count(self) -> int:
        """Members of the first group, those of other processes too."""
        return self._groups[0][0].place.count

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that have slots: those with the eBPF balancer."""
        return tuple(members.group for members in self._groups if members.group is not None)

    def observe(self) -> list[Observed]:
        """Each group as it is now. Any thread may call it until ``close()``."""
        from aiolb.bpf import snapshot  # a start needs neither
        from aiolb.observed import Observed

        found = []
        for one in self._groups:
            name = GroupName(self._protocol, one.address)
            group = None if one.group is None else snapshot.take(one.group)
            key = None if one.key is None else str(one.key)
            found.append(Observed(name, one.balancer, group, told=one.told(), count=len(one), key=key))
        return found

    @property
    def whole(self) -> bool:
        """Whether all places of all groups are these."""
        return all(
            len(members) == members[0].place.count
            and not members.waiting
            and not any(joined.place.displaced for joined in members)
            for members in self._groups
        )

    def of(self, index: int) -> Places:
        """The places of one member; ``out`` while it waits to take over."""
        out = any(index in group.waiting for group in self._groups)
        return Places(self._groups, index, [group[index].sock for group in self._groups], out=out)

    def bind_next(self) -> Places:
        """The sockets of one more member, which is none before it enters. Raises StartError."""
        with ExitStack() as on_error:
            descriptors.allow(DESCRIPTORS + len(self._groups), "a member more and its worker")
            socks = [on_error.enter_context(group.bind()) for group in self._groups]
            on_error.pop_all()
        return Places(self._groups, self.count, socks, out=True)

    def remove_last(self) -> None:
        """Give the slots of the last member to the others, then its places up; its sockets are closed by it.

        Raises ConfigurationError, with nothing changed, when no other may own slots.
        """
        for group in self._groups:
            group.check_removable()
        for group in self._groups:
            group.remove()

    def undo(self) -> None:
        """Take those groups away in ``close()`` that were not there before: for a start that fails."""
        self._forget = [forget or group.made for group, forget in zip(self._groups, self._forget, strict=True)]

    def close(self) -> None:
        """Close sockets and descriptors. Idempotent."""
        for group, forget in zip(self._groups, self._forget, strict=True):
            group.close(forget=forget)
