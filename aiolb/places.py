"""The places of a supervisor's members in their groups, one group for each address."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.group import Group, GroupOptions, Membership
from aiolb.config import ServeConfig


class Places:
    """One member's socket on every address, and its place in each group."""

    def __init__(self, groups: Mapping[Address, Group], socks: Mapping[Address, socket.socket], index: int) -> None:
        self.sockets = socks
        self._groups = groups
        self._index = index
        self._memberships: list[Membership] = []
        self.out = True

    def enter(self, *, takeover: bool = False) -> None:
        """Be selected on every address, with a share of the slots. Idempotent."""
        if not self.out:
            return
        for address, group in self._groups.items():
            count = max(group.config.count, self._index + 1)
            self._memberships.append(group.join(self.sockets[address], self._index, count=count, takeover=takeover))
        self.out = False

    def leave(self) -> None:
        """Be selected no more. Idempotent."""
        for membership in self._memberships:
            membership.leave()
        self._memberships.clear()
        self.out = True

    @property
    def displaced(self) -> bool:
        """Whether another socket took one of the places over."""
        return any(membership.displaced for membership in self._memberships)

    def close(self) -> None:
        """Close the sockets."""
        for sock in self.sockets.values():
            sock.close()


class AllPlaces:
    """The groups of every address, and this supervisor's places in them."""

    def __init__(self, groups: Mapping[Address, Group], config: ServeConfig) -> None:
        self._groups = groups
        self._config = config
        self._places: list[Places] = []
        self.balancer = "ebpf"

    @classmethod
    def open(cls, config: ServeConfig) -> AllPlaces:
        """Bind all sockets and enter, unless places are to be taken over. Nothing is left on errors."""
        groups: dict[Address, Group] = {}
        options = GroupOptions(count=config.count, seed=config.seed, strict=config.strict, bpffs=config.bpffs)
        with ExitStack() as stack:
            for address in config.bind:
                numbered = stack.enter_context(sockets.reserved_port(address))
                with Group.opened_or_created(numbered, options) as group:
                    groups[numbered] = group
            self = cls(groups, config)
            for index in range(config.count or 1):
                places = self._bind(index)
                if not config.takeover:
                    places.enter()
            return self

    def _bind(self, index: int) -> Places:
        socks = {}
        for address in self._groups:
            socks[address] = sockets.bind_reuseport(address)
            sockets.set_receive_buffer(socks[address], self._config.rcvbuf)
        self._places.append(Places(self._groups, socks, index))
        return self._places[-1]

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the groups are."""
        return tuple(self._groups)

    @property
    def count(self) -> int:
        """Members of the groups."""
        return next(iter(self._groups.values())).config.count

    def of(self, index: int) -> Places:
        """The places of one member."""
        return self._places[index]

    def add(self) -> Places:
        """Bind the sockets of one more member, which has no place yet."""
        return self._bind(len(self._places))

    def remove_last(self) -> Places:
        """Give the slots of the last member to the others, then its place up."""
        places = self._places.pop()
        for group in self._groups.values():
            with group.locked():
                group._resize(len(self._places))
        places.leave()
        return places

    def close(self) -> None:
        """Close the descriptors."""
        for group in self._groups.values():
            group.close()
