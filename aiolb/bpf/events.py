"""Steering decisions as they are made: asked for, taken out of the group's ring buffer, and told as objects."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from aiolb.address import IPAddress, IPNetwork
from aiolb.bpf import abi, syscall
from aiolb.bpf.abi import FLAG_EVENTS, NO_MEMBER, Config, Event, GroupStats
from aiolb.bpf.maps import Maps
from aiolb.bpf.ring import Ring
from aiolb.errors import ConfigurationError, GroupError

PATIENCE = 10.0
"""Seconds with a full buffer after which the program stops to write to it: its reader has died, or sleeps."""
MOST = 512
"""Decisions that one :meth:`EventReader.read` gives at most."""
MAX_SAMPLE = (1 << 32) - 1

_WORDS = struct.Struct("=QQ")
_PEER = struct.Struct("=iII")  # struct ucred, unix(7)
_MAPPED = IPv6Network("::ffff:0:0/96")


class Action(Enum):
    """What the program did with a packet; ACTION_… of balancer.h."""

    STEER = abi.ACTION_STEER
    FAILOVER = abi.ACTION_FAILOVER
    UNSTEERED = abi.ACTION_UNSTEERED
    DROP = abi.ACTION_DROP
    DENY = abi.ACTION_DENY
    UNLISTED = abi.ACTION_UNLISTED
    LIMIT = abi.ACTION_LIMIT

    @property
    def guards(self) -> bool:
        """Whether the guard dropped the packet, before a slot was looked up."""
        return self in (Action.DENY, Action.UNLISTED, Action.LIMIT)


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one packet; a train, or a new TCP connection, is one packet.

    ``time_ns`` is of CLOCK_MONOTONIC, ``port`` the sender's, ``bytes`` the UDP payload. ``slot`` is None where the
    guard dropped it, ``member`` is None where nobody was selected.
    """

    time_ns: int
    source: IPAddress
    port: int
    bytes: int
    slot: int | None
    member: int | None
    action: Action

    @classmethod
    def of(cls, event: Event) -> Self:
        """Read ``struct event``."""
        action = Action(event.action)
        address = IPv6Address(_WORDS.pack(event.source_low, event.source_high))
        return cls(
            event.time_ns,
            address.ipv4_mapped or address,
            event.port,
            event.bytes,
            None if action.guards else event.slot,
            None if event.member == NO_MEMBER else event.member,
            action,
        )


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which decisions to tell: those about sources in ``network`` (None: all), and one in ``sample``, by chance."""

    network: IPNetwork | None = None
    sample: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.sample <= MAX_SAMPLE:
            raise ConfigurationError(f"one of {self.sample} cannot be chosen", hint="choose one of 1, 2, 3, …")

    @property
    def settings(self) -> dict[str, int]:
        """The fields of ``struct config`` that are the filter's."""
        network = _in_v6(self.network or IPv6Network("::/0"))
        source = _WORDS.unpack(network.network_address.packed)
        mask = _WORDS.unpack(network.netmask.packed)
        return {
            "event_source_low": source[0],
            "event_source_high": source[1],
            "event_mask_low": mask[0],
            "event_mask_high": mask[1],
            "event_sample": self.sample,
        }

    def passes(self, decision: Decision) -> bool:
        """Whether the program was right to tell it: no IPv4 source is in ::/0, though ::ffff:a.b.c.d is."""
        return self.network is None or isinstance(decision.source, IPv4Address) == _is_v4(self.network)


def _is_v4(network: IPNetwork) -> bool:
    return isinstance(network, IPv4Network) or network.subnet_of(_MAPPED)


def _in_v6(network: IPNetwork) -> IPv6Network:
    if isinstance(network, IPv6Network):
        return network
    mapped = _MAPPED.network_address.packed[:12] + network.network_address.packed
    return IPv6Network((mapped, _MAPPED.prefixlen + network.prefixlen))


class EventReader:
    """The one reader of a group's decisions; from ``start()`` to ``stop()`` the program writes them.

    It never waits for the reader: what finds no room for it (5,461 decisions) is counted in :attr:`lost`. A reader
    that takes nothing out of a full buffer for ``patience`` seconds, or that was killed, is written to no more, which
    :meth:`read` mends. Borrows the maps; ``locked`` takes the group's lock.
    """

    def __init__(
        self,
        maps: Maps,
        locked: Callable[[], AbstractContextManager[None]],
        wanted: EventFilter,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._maps = maps
        self._locked = locked
        self._wanted = wanted
        self._patience_ns = round(patience * 1e9)
        self._place: socket.socket | None = None
        self._ring: Ring | None = None
        self._lost_before = 0
        self.pauses = 0
        """How often the program stopped to write for want of a reader; nobody counts the decisions meanwhile."""

    def start(self) -> None:
        """Let the program write. Raises GroupError where another reader does so, KernelError."""
        self._place = self._only_reader()
        self._ring = Ring(self._maps.descriptor("events"), abi.EVENTS_SIZE)
        self._switch(on=False)  # a reader that was killed has left it on, with another filter
        self._ring.skip()
        self._lost_before = self._events_lost
        self._switch(on=True)

    def read(self) -> list[Decision]:
        """The next decisions in the order in which the CPUs wrote them, up to MOST; never waits."""
        records = self._records()
        if not records and self._has_paused():
            self._switch(on=True)
        return self._decisions(records)

    @property
    def lost(self) -> int:
        """Decisions since ``start()`` that found the buffer full."""
        return self._events_lost - self._lost_before

    def stop(self) -> None:
        """Let the program write no more. What it has written can be read until ``close()``. Idempotent."""
        if self._place is None:
            return
        try:
            self._has_paused()
            self._switch(on=False)
            with suppress(OSError):  # where it cannot wait, a decision more may be missing
                syscall.membarrier()
        finally:
            self._place.close()
            self._place = None

    def rest(self) -> list[Decision]:
        """What was written before ``stop()`` and is not read yet."""
        found = []
        while records := self._records():
            found += self._decisions(records)
        return found

    def close(self) -> None:
        """Stop, and unmap the buffer. Idempotent."""
        try:
            self.stop()
        finally:
            if self._ring is not None:
                self._ring.close()
                self._ring = None

    def _has_paused(self) -> bool:
        """Whether the program has stopped to write by itself; if so, counts that."""
        paused = not self._config.flags & FLAG_EVENTS
        self.pauses += paused
        return paused

    def _records(self) -> list[bytes]:
        assert self._ring is not None  # noqa: S101 - started
        return self._ring.read(MOST)

    def _decisions(self, records: Iterable[bytes]) -> list[Decision]:
        decisions = (Decision.of(Event.unpack(record)) for record in records)
        return [decision for decision in decisions if self._wanted.passes(decision)]

    @property
    def _config(self) -> Config:
        return self._maps.read_struct("config", 0, Config)

    @property
    def _events_lost(self) -> int:
        (counters,) = self._maps.sums("group_stats")
        return GroupStats(*counters).events_lost

    def _switch(self, *, on: bool) -> None:
        with self._locked():
            config = self._config
            if on:
                # The filter first, and only then the flag: no packet meets the flag with half of a filter.
                config = replace(
                    config,
                    **self._wanted.settings,
                    event_patience_ns=self._patience_ns,
                    event_position=(1 << 64) - 1,  # no reader's
                )
                self._maps.write("config", 0, config.pack())
            flags = config.flags & ~FLAG_EVENTS | (FLAG_EVENTS if on else 0)
            self._maps.write("config", 0, replace(config, flags=flags).pack())

    def _only_reader(self) -> socket.socket:
        """A name that the kernel gives to one process, and takes back when it ends, however it ends (unix(7)).

        The name belongs to the network namespace, as the group does.
        """
        config = self._config
        name = f"\0aiolb/events/{config.namespace}/{config.created_ns}"
        place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            place.bind(name)
            place.listen(0)
        except OSError as error:
            holder = _holder(name)
            place.close()
            raise GroupError(
                f"{holder} reads the decisions of this group already, and one can at a time",
                hint="end that one first",
            ) from error
        return place


def _holder(name: str) -> str:
    """Who has the name, for people."""
    pid = uid = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking, suppress(OSError):
        asking.connect(name)
        pid, uid, _ = _PEER.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    # 0: it has just ended, or lives in another PID namespace.
    return f"process {pid} (user {uid})" if pid else "another process"
