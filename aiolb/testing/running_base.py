"""What groups in a test have in common: where they are, their collectors, errors, statistics, and their end."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic

from aiolb.address import Address, parse_ip, to_send_to
from aiolb.bpf.members import Members
from aiolb.errors import ConfigurationError
from aiolb.testing.life import Life
from aiolb.testing.outcomes import Outcomes
from aiolb.testing.watched import B, WatchedBase


class RunningBase(ABC, Generic[B]):
    """The members of one group; see :func:`aiolb.testing.group`."""

    def __init__(
        self, joined: Members, watched: Sequence[WatchedBase[B]], lives: Sequence[Life], outcomes: Outcomes
    ) -> None:
        self.address = joined.address
        """Where the group receives."""
        self.balancer = joined.balancer
        """``ebpf``, ``classic`` or ``none``."""
        self.fallback = joined.fallback
        """Why ``auto`` did not take the eBPF balancer; None where it did."""
        self.collectors: list[B] = [member.collector for member in watched]
        """The collectors, by index."""
        self.errors = outcomes.errors
        """What handlers and ``shutdown()`` raised so far."""
        self._members = watched
        self._lives = lives
        self._outcomes = outcomes

    def members_of(self, source: str) -> set[int]:
        """The members that got something of a source; one, unless its member left or there is no balancer."""
        host = str(parse_ip(source))
        return {index for index, member in enumerate(self._members) if host in member.sources}

    async def stop(self, index: int) -> None:
        """Stop a member as SIGTERM does: its sources go to the others, what is queued is handled. Idempotent.

        Only the eBPF balancer gives the sources of one member to all others.
        """
        await self._lives[index].stop()

    @abstractmethod
    def close(self) -> None:
        """Close what sends."""

    def _host(self, source: str | None) -> str:
        """Where to send from: a source, or else the group's own address."""
        return self._target.host if source is None else str(parse_ip(source))

    @property
    def _target(self) -> Address:
        """Where to send to: a loopback address for a wildcard."""
        return Address(to_send_to(self.address.host), self.address.port)

    def _bound(self, kind: socket.SocketKind, source: str) -> socket.socket:
        """A non-blocking socket that sends from a source. Raises ConfigurationError."""
        sock = socket.socket(self._target.family, kind | socket.SOCK_NONBLOCK)
        try:
            sock.bind((source, 0))
        except OSError as error:
            sock.close()
            raise self._cannot_send(source, error) from error
        return sock

    def _cannot_send(self, source: str, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"{source} cannot send to {self._target}: {error.strerror}",
            hint="a source is an address of this machine, of the same family as the group's",
        )


async def stop_all(lives: Iterable[Life]) -> None:
    """Stop all members at the same time, and raise the first error of one that did not stop well."""
    for error in await asyncio.gather(*(life.stop() for life in lives), return_exceptions=True):
        if error is not None:
            raise error
