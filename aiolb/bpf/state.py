"""A group as it stands: what its maps say, and the places of its members, read and written."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from aiolb.address import Address, IPAddress
from aiolb.bpf import abi, classic, hashing, program, syscall
from aiolb.bpf.abi import Config, Member
from aiolb.bpf.keys import Key
from aiolb.bpf.objects import Objects
from aiolb.bpf.pins import Pins
from aiolb.bpf.shared_reports import SharedReports
from aiolb.bpf.statistics import GroupStatistics, MemberStatistics
from aiolb.bpf.unpinned import Unpinned
from aiolb.errors import ConfigurationError, KernelError

FORMER_GROUP_TIMEOUT = 10.0
"""Seconds to wait until sockets are free of a group that has ended; the kernel needs 20 ms (measured)."""

_FORMER_GROUP_POLL = 0.001
_SO_COOKIE = 57  # socket(7); the socket module has no name for it


class GroupState:
    """The members, slots, settings and counters of a group; owns its descriptors until ``close()``.

    Everything but joining with another program works through these descriptors alone: also in a process that has
    given up its privileges since (Linux 5.19 or newer: Linux kernel commit c8644cd0efe7 ("bpf: refine
    kernel.unprivileged_bpf_disabled behaviour")).
    """

    def __init__(self, address: Address, pins: Pins | Unpinned, objects: Objects) -> None:
        self.address = address
        self._pins = pins
        self._objects = objects
        self._maps = objects.maps

    @property
    def pinned(self) -> bool:
        """Whether other processes can find the group; one that is not pinned ends with its sockets."""
        return self._pins.pinned

    def close(self) -> None:
        """Close the descriptors; the pins, the program and the members' places live on. Idempotent."""
        self._objects.close()
        self._pins.close()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the group's lock; re-entrant. A group whose pins were deleted needs none."""
        with ExitStack() as stack:
            with suppress(FileNotFoundError):
                stack.enter_context(self._pins.locked())
            yield

    def delete(self) -> None:
        """Remove the group's pins. Live members go on as they are, but nobody can join them any more. Idempotent."""
        with suppress(FileNotFoundError), self._pins.locked():
            self._pins.remove()

    def delete_if_empty(self) -> None:
        """Remove the group's pins unless a member is alive, or this user may not."""
        with self.locked(), suppress(PermissionError):
            if self._pins.complete and not self.alive():
                self._pins.remove()

    @property
    def config(self) -> Config:
        """The group's settings as they stand."""
        return self._maps.read_struct("config", 0, Config)

    @property
    def slots(self) -> list[int]:
        """The slot table: the owner of each of the 16,384 slots."""
        return list(memoryview(self._maps.slots[:]).cast("H"))

    def alive(self) -> set[int]:
        """The indexes that live sockets hold."""
        return {index for index in range(self.config.count) if self.cookie_of(index) is not None}

    def cookie_of(self, index: int) -> int | None:
        """The cookie of the socket that holds ``index``; None when the member is dead."""
        value = self._maps.read("targets", index)
        return None if value is None else int(abi.U64.unpack(value)[0])

    def holder(self, index: int) -> Member:
        """Who joined as ``index`` last, alive or not."""
        return self._maps.read_struct("members", index, Member)

    @property
    def key(self) -> Key:
        """What is hashed; a group keeps the one that it was made with."""
        return Key.of(self.config)

    def locate(self, source: IPAddress, port: int | None = None) -> int | None:
        """The member that gets the datagrams of ``source`` now, failover included; None when nobody is alive.

        ``port`` is the sender's, for a key that looks at it. Raises ConfigurationError where both do not tell the key.
        """
        config = self.config
        key = self.key.bytes_of(source, port)
        if key is None:
            raise ConfigurationError(f"the key {self.key} of the group at {self.address} is not the source")
        return hashing.choose(config.seed, key, self.slots, config.count, self.alive(), newest=config.newest).member

    def statistics(self) -> GroupStatistics:
        """Counters and members, read one after the other while traffic goes on."""
        config = self.config
        owned = Counter(self.slots)
        counters = self._maps.sums("member_stats")
        (group,) = self._maps.sums("group_stats")
        members = []
        for index in range(config.count):
            member = self.holder(index)
            members.append(
                MemberStatistics(
                    index,
                    self.cookie_of(index),
                    member.pid,
                    member.uid,
                    member.joined_ns,
                    owned[index],
                    member.weight,
                    bool(member.drained),
                    *counters[index],
                )
            )
        return GroupStatistics(config.count, config.seed, config.strict, str(Key.of(config)), tuple(members), *group)

    @property
    def reports(self) -> SharedReports:
        """What the members tell of themselves; usable until ``close()``."""
        return SharedReports(self._maps.reports)

    @property
    def reports_descriptor(self) -> int:
        """The descriptor of their memory, for a worker that inherits it; it stays the group's to close."""
        return self._maps.reports_descriptor

    def slot_packets(self) -> list[int]:
        """Packets counted per slot; a train is one packet. The counts begin again at 0 after 2^32."""
        return [packets % (1 << 32) for part in self._maps.sums("slot_stats") for packets in part]

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
        syscall.attach_reuseport_classic(sock, classic.program(self.config.count, self.config.seed))
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
            f"the socket cannot join the group at {self.address}: {error}",
            errno=error.errno,
            hint=hint if error.errno == errno.EBUSY else None,
        )

    def leave(self, index: int, cookie: int) -> bool:
        """Empty the place ``index`` if the socket with ``cookie`` still holds it; whether it did."""
        with self.locked():
            return self.cookie_of(index) == cookie and self._maps.delete("targets", index)

    def move_slots(self, moves: dict[int, int]) -> None:
        """Give slots to other members (slot: member), under the lock."""
        with self.locked(), memoryview(self._maps.slots) as table, table.cast("H") as owners:
            for slot, member in moves.items():
                owners[slot] = member
            self._write_config(generation=self.config.generation + 1 & 0xFFFFFFFF)

    def _write_config(self, **changes: int) -> None:
        self._maps.write("config", 0, replace(self.config, **changes).pack())


def cookie(sock: socket.socket) -> int:
    """The number that the kernel gives a socket and no other one (SO_COOKIE, socket(7))."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")
