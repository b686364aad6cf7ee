"""A group for programs to look at: where a source is, who the members are, what was counted."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from aiolb.address import Address, IPAddress, parse_source
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group import Group
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.location import Location
from aiolb.bpf.state import GroupState
from aiolb.bpf.statistics import GroupStatistics


class GroupView:
    """A group that somebody has open."""

    def __init__(self, group: GroupState) -> None:
        self._group = group

    @property
    def address(self) -> Address:
        """Where the group's sockets are bound."""
        return self._group.address

    @property
    def count(self) -> int:
        """The present number of members."""
        return self._group.config.count

    @property
    def key(self) -> str:
        """What is hashed, as ``--key`` takes it."""
        return str(self._group.key)

    def locate(self, addr: str | Address | IPAddress | tuple[str, int] | tuple[str, int, int, int]) -> Location:
        """Where the packets of a sender go, by the group's tables as they are now.

        ``addr`` is an IP address, ``HOST:PORT``, or what ``recvfrom()`` and ``getpeername()`` give; the port matters
        for the key ``flow`` alone. Raises ConfigurationError for what is no address, and where the address does not
        tell the key: key ``random``, a key file, or ``flow`` without a port.
        """
        return self._group.location(*parse_source(addr))

    def statistics(self) -> GroupStatistics:
        """Counters and members, read one after the other while traffic goes on."""
        return self._group.statistics()


class OpenGroup(GroupView):
    """A group that was opened to be looked at; nothing joins it. ``close()`` it, or use it as a context manager."""

    def close(self) -> None:
        """Close the group's descriptors. Idempotent."""
        self._group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_group(name: str | Address, *, protocol: str | None = None, bpffs: str | Path = BPFFS) -> OpenGroup:
    """Open the group at an address without joining it.

    ``name`` is an address, ``HOST:PORT`` or ``tcp:HOST:PORT``. Raises GroupNotFoundError where there is none,
    PrivilegeError where this user may not, ConfigurationError, GroupError, KernelError.
    """
    found = GroupName("udp", name) if isinstance(name, Address) else GroupName.parse(name)
    return OpenGroup(Group.open(found.address, protocol=protocol or found.protocol, bpffs=Path(bpffs)))
