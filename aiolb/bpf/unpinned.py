"""What a group has in the place of pins when it is not pinned: only the process that made it can reach it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiolb.bpf.maps import Maps


class Unpinned:
    """Pins that are not there: nothing is kept, and nobody else wants the lock. The group ends with its sockets."""

    pinned = False
    complete = False

    def pin(self, maps: Maps, program_fd: int) -> None:
        """Keep nothing."""

    def pin_program(self, fd: int) -> None:
        """Keep nothing."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else can ask for the lock."""
        yield

    def clear(self) -> None:
        """Nothing to remove."""

    def remove(self) -> None:
        """Nothing to remove."""

    def close(self) -> None:
        """Nothing to close."""
