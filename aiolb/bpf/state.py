"""A group as it stands: what its maps say, and the places of its members, read and written."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from aiolb.address import IPAddress
from aiolb.bpf import abi, classic, hashing, program, syscall
from aiolb.bpf.events import PATIENCE, EventFilter, EventReader
from aiolb.bpf.guard import Guard
from aiolb.bpf.keys import custom_key
from aiolb.bpf.location import Location
from aiolb.bpf.objects import Objects
from aiolb.bpf.ownership import Owner
from aiolb.bpf.pins import Pins
from aiolb.bpf.shared_reports import SharedReports
from aiolb.bpf.statistics import GroupStatistics, MemberStatistics
from aiolb.bpf.table import SlotTable
from aiolb.bpf.unpinned import Unpinned
from aiolb.errors import ConfigurationError, KernelError

FORMER_GROUP_TIMEOUT = 10.0
"""Seconds to wait until sockets are free of a group that has ended; the kernel needs 20 ms (measured)."""

_FORMER_GROUP_POLL = 0.001
_SO_COOKIE = 57  # socket(7); the socket module has no name for it


class GroupState(SlotTable):
    """The members and counters of a group, with its slot table; owns its descriptors until ``close()``.

    Everything but joining with another program works through these descriptors alone: also in a process that has
    given up its privileges since (Linux 5.19 or newer: Linux kernel commit c8644cd0efe7 ("bpf: refine
    kernel.unprivileged_bpf_disabled behaviour")).
    """

    def __init__(self, pins: Pins | Unpinned, objects: Objects) -> None:
        super().__init__(pins, objects.maps)
        self._objects = objects

    @property
    def pinned(self) -> bool:
        """Whether other processes can find the group; one that is not pinned ends with its sockets."""
        return self._pins.pinned

    @property
    def owner(self) -> Owner:
        """Whose the pins are: who may join without privileges. Raises OSError."""
        return self._pins.owner

    def close(self) -> None:
        """Close the descriptors; the pins, the program and the members' places live on. Idempotent."""
        self._objects.close()
        self._pins.close()

    def delete(self) -> None:
        """Remove the group's pins. Live members go on as they are, but nobody can join them any more. Idempotent."""
        with suppress(FileNotFoundError), self._pins.locked():
            self._pins.remove()

    def delete_if_empty(self) -> None:
        """Remove the group's pins unless a member is alive, they were prepared for a user, or this user may not."""
        with self.locked(), suppress(PermissionError):
            if self._pins.complete and not self._pins.owner.prepared and not self.alive():
                self._pins.remove()

    @property
    def guard(self) -> Guard:
        """What the group drops before any member gets it; works until the group is closed."""
        return Guard(self._maps)

    @property
    def deleted(self) -> bool:
        """Whether the pins are gone that this group was opened with and locked by; another one may have its name."""
        return self.pinned and not self._pins.complete

    def locate(self, source: IPAddress, port: int | None = None) -> int | None:
        """The member that gets the datagrams of ``source`` now, failover included; None when nobody is alive.

        ``port`` is the sender's, for a key that looks at it. Raises ConfigurationError where both do not tell the key.
        """
        return self.location(source, port).member

    def location(self, source: IPAddress, port: int | None = None) -> Location:
        """The same with its slot, the slot's owner, and the process."""
        return self._location_of(self.key.told_by(source, port))

    def locate_key(self, low: int, high: int) -> int | None:
        """As :meth:`locate` for ``set_key(key, low, high)`` of a key file. Raises ConfigurationError without one."""
        if (key := self.key).kind != abi.KEY_CUSTOM:
            raise ConfigurationError(f"the group at {self.name} has the key {key}, not one of a key file")
        return self._location_of(custom_key(low, high)).member

    def _location_of(self, key: bytes) -> Location:
        config = self.config
        with memoryview(self._maps.slots) as table, table.cast("H") as owners:
            found = hashing.choose(config.seed, key, owners, config.count, _Living(self), newest=config.newest)
            owner = owners[found.slot]
        pid = None if found.member is None else self.holder(found.member).pid
        return Location(found.slot, owner, found.member, pid)

    def statistics(self) -> GroupStatistics:
        """Counters and members, read one after the other while traffic goes on."""
        config = self.config
        owned = Counter(self.slots)
        counters = self._maps.sums("member_stats")
        (group,) = self._maps.sums("group_stats")
        members = []
        for index, (member, found) in enumerate(zip(self.holders(), self.cookies(), strict=False)):
            members.append(
                MemberStatistics(
                    index,
                    found,
                    member.pid,
                    member.uid,
                    member.joined_ns,
                    owned[index],
                    member.weight,
                    bool(member.drained),
                    *counters[index],
                )
            )
        return GroupStatistics(config.count, config.seed, config.strict, str(self.key), tuple(members), *group)

    @property
    def reports(self) -> SharedReports:
        """What the members tell of themselves; usable until ``close()``."""
        return SharedReports(self._maps.reports)

    @property
    def reports_descriptor(self) -> int:
        """The descriptor of their memory, for a worker that inherits it; it stays the group's to close."""
        return self._maps.reports_descriptor

    def events(self, wanted: EventFilter, *, patience: float = PATIENCE) -> EventReader:
        """A reader of the program's decisions, not started yet; close it before the group."""
        return EventReader(self._maps, self.locked, wanted, patience=patience)

    def place(self, sock: socket.socket, index: int) -> None:
        """Let the program select ``sock`` for ``index``, whoever held it; under the lock. Raises KernelError."""
        try:
            syscall.attach_reuseport(sock, self._objects.program_fd)
            # The kernel may refuse the socket (EBUSY: it has another place): then nobody is named as its holder.
            self._maps.write("targets", index, abi.U64.pack(sock.fileno()))
        except OSError as error:
            raise self._join_error(error) from error
        self._record(sock, index)

    def place_all(self, sockets: Mapping[int, socket.socket]) -> None:
        """Let the program select each socket for its index, which is empty or the socket's already; under the lock.

        The program is attached when all have their places, so that no packet meets some of them. On an error the
        places are emptied again that were not the sockets' before. Raises KernelError.
        """
        placed: list[int] = []
        try:
            for index, sock in sockets.items():
                if self.cookie_of(index) != cookie(sock):
                    self._fill(sock, index)
                    placed.append(index)
            syscall.attach_reuseport(next(iter(sockets.values())), self._objects.program_fd)
        except OSError as error:
            for index in placed:
                self._maps.delete("targets", index)
            raise self._join_error(error) from error
        for index, sock in sockets.items():
            self._record(sock, index)

    def _fill(self, sock: socket.socket, index: int) -> None:
        """Write a place; a socket that a former group still has is freed of it first. Raises OSError."""
        value = abi.U64.pack(sock.fileno())
        try:
            return self._maps.write("targets", index, value)
        except OSError as error:
            if error.errno != errno.EBUSY or cookie(sock) in map(self.cookie_of, range(abi.MAX_MEMBERS)):
                raise
        # A socket has one place. That in a group which is pinned nowhere goes when its program is no longer attached
        # and the kernel has freed its maps. Until ours is attached the classic balancer steers, or nothing would.
        syscall.attach_reuseport_classic(sock, classic.program(self.config.count, self.config.seed, self.key))
        deadline = time.monotonic() + FORMER_GROUP_TIMEOUT
        while True:
            try:
                return self._maps.write("targets", index, value)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_FORMER_GROUP_POLL)

    def _record(self, sock: socket.socket, index: int) -> None:
        """Note who holds a place, and since when the socket does."""
        former, mine = self.holder(index), cookie(sock)
        since = former.joined_ns if former.cookie == mine else time.time_ns()
        holder = replace(former, cookie=mine, joined_ns=since, pid=os.getpid(), uid=os.geteuid())
        self._maps.write("members", index, holder.pack())
        self._write_config(newest=index)

    def _join_error(self, error: OSError) -> KernelError:
        hint = "another group has the socket: its pins, or a process with its maps open, keep it there"
        return program.privilege_error(error) or KernelError(
            f"the socket cannot join the group at {self.name}: {error}",
            errno=error.errno,
            hint=hint if error.errno == errno.EBUSY else None,
        )

    def leave(self, index: int, cookie: int) -> bool:
        """Empty the place ``index`` if the socket with ``cookie`` still holds it; whether it did."""
        with self.locked():
            return self.cookie_of(index) == cookie and self._maps.delete("targets", index)


class _Living:
    """The indexes that live sockets hold; each is looked at when it is asked for."""

    def __init__(self, group: GroupState) -> None:
        self._group = group

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self._group.cookie_of(index) is not None


def cookie(sock: socket.socket) -> int:
    """The number that the kernel gives a socket and no other one (SO_COOKIE, socket(7))."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")
