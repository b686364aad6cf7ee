"""A source of ours for each source of a capture, opened when it appears."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from typing import Any

from aiolb.address import Address
from aiolb.errors import StartError
from aiolb.send.sources import Source, open_socket


class CapturedSources:
    """The sources of a capture by their packed addresses, in order of appearance; close it in the end.

    There are at most ``room`` of ours, from ``addresses``: the next source of the capture shares the first one.
    The soft limit of open files is raised to the hard one, and stays raised.
    """

    def __init__(self, target: Address, sockaddr: tuple[Any, ...], room: int, addresses: Iterator[str | None]) -> None:
        self.opened: list[Source] = []
        self._by_captured: dict[bytes, Source] = {}
        self._target, self._sockaddr = target, sockaddr
        self._room, self._addresses = room, addresses
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def __len__(self) -> int:
        """How many sources of the capture appeared."""
        return len(self._by_captured)

    def of(self, captured: bytes) -> Source:
        """Our source for one of the capture. Raises KernelError, and StartError when no file can be opened any more."""
        source = self._by_captured.get(captured)
        if source is None:
            number = len(self._by_captured)
            source = self._open(number) if number < self._room else self.opened[number % self._room]
            self._by_captured[captured] = source
        return source

    def _open(self, number: int) -> Source:
        try:
            source = Source(number, open_socket(self._target, next(self._addresses), self._sockaddr))
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            raise StartError(
                f"the capture has more sources than the {number:,} that open files are left for",
                hint=f"fewer sources share them: --sources {max(number, 1)}; or as root first: ulimit -Hn",
            ) from None
        self.opened.append(source)
        return source

    def sent_per_source(self) -> dict[str, int]:
        """Datagrams by address of ours."""
        found: dict[str, int] = {}
        for source in self.opened:
            found[source.address] = found.get(source.address, 0) + source.sent
        return found

    def close(self) -> None:
        """Close all sockets."""
        for source in self.opened:
            source.wake()
            source.sock.close()
