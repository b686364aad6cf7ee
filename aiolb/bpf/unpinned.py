"""What a group has in the place of pins when it is not pinned: only the process that made it can reach it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from aiolb.bpf.group_name import GroupName
from aiolb.bpf.maps import Maps
from aiolb.bpf.ownership import Owner
from aiolb.errors import GroupError


class Unpinned:
    """Pins that are not there: nothing is kept, and nobody else wants the lock. The group ends with its sockets."""

    pinned = False
    complete = False
    writable = True

    def __init__(self, name: GroupName) -> None:
        self.name = name

    @property
    def owner(self) -> Owner:
        """The user of this process."""
        return Owner(os.geteuid(), os.getegid(), prepared=False)

    def pin(self, maps: Maps, program_fd: int) -> None:
        """Keep nothing."""

    def pin_program(self, fd: int) -> None:
        """Keep nothing."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else can ask for the lock."""
        yield

    def prepare(self, uid: int, gid: int, *, shared: bool) -> None:  # noqa: ARG002 - as of pins
        """Nobody else can find the group. Raises GroupError."""
        raise GroupError("a group that is not pinned cannot be prepared for a user", hint="--bpffs names where to pin")

    def clear(self) -> None:
        """Nothing to remove."""

    def remove(self) -> None:
        """Nothing to remove."""

    def close(self) -> None:
        """Nothing to close."""
