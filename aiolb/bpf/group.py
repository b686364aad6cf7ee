"""A group: its maps, its program and its members; create, open, join, leave, count, statistics."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from aiolb.address import Address, IPAddress
from aiolb.bpf import abi, hashing, program, slots, spec, syscall
from aiolb.bpf.abi import BPFFS, Config, Member
from aiolb.bpf.maps import LayoutMismatchError, Maps
from aiolb.bpf.pins import Pins, namespace_cookie
from aiolb.bpf.spec import ProgramSpec
from aiolb.errors import (
    ConfigurationError,
    GroupError,
    GroupNotFoundError,
    KernelError,
    MemberTakenError,
    PrivilegeError,
    StartError,
)

MAX_SEED = (1 << 128) - 1
_SO_COOKIE = 57  # socket(7); the socket module has no name for it


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """How a group is created; each None leaves it to the group, or to the default for a new one.

    ``count`` members (1 … 1,024; default 1), ``seed`` of the hash (128 bits; default random), ``strict``:
    drop when no member is alive (default: leave it to the kernel). ``program``: the bytecode.
    """

    count: int | None = None
    seed: int | None = None
    strict: bool | None = None
    program: ProgramSpec | None = None
    protocol: str = "udp"
    bpffs: Path = BPFFS

    def __post_init__(self) -> None:
        if self.count is not None and not 1 <= self.count <= abi.MAX_MEMBERS:
            raise ConfigurationError(f"a group has 1 to {abi.MAX_MEMBERS} members, not {self.count}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ConfigurationError(f"a seed is a number from 0 to 2^128 - 1, not {self.seed}")


@dataclass(frozen=True, slots=True)
class MemberStatistics:
    """One member as the program and the maps see it; a train counts as one packet.

    ``packets``, ``bytes`` (UDP payload) and ``failovers`` count since the group's creation, whoever held
    the index. ``cookie`` is that of the live socket, as ``ss -e`` prints it; None when the member is dead.
    """

    index: int
    cookie: int | None
    pid: int
    uid: int
    joined_ns: int
    slots: int
    packets: int
    bytes: int
    failovers: int

    @property
    def alive(self) -> bool:
        """Whether a socket holds the index."""
        return self.cookie is not None


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """A group at one moment. The counters count packets, and a train is one packet."""

    count: int
    seed: int
    strict: bool
    members: tuple[MemberStatistics, ...]
    failovers: int
    unsteered: int
    dropped: int


class Membership:
    """A socket's place in a group; it ends with ``leave()`` or with the socket. Owns the group's descriptors."""

    def __init__(self, group: Group, index: int, sock: socket.socket) -> None:
        self.group = group
        self.index = index
        self.cookie = _cookie(sock)
        self._sock = sock

    @property
    def count(self) -> int:
        """The group's present number of members."""
        return self.group.config.count

    @property
    def displaced(self) -> bool:
        """Whether another socket took the index over."""
        return self.group.cookie_of(self.index) not in (None, self.cookie)

    def restore(self) -> bool:
        """Take the place back if it is empty, because the socket that took it over has died; whether it was.

        Raises KernelError.
        """
        if self.group.cookie_of(self.index) is not None:
            return False
        with self.group.locked():
            if self.group.cookie_of(self.index) is not None:
                return False
            self.group.place(self._sock, self.index)
            return True

    def leave(self) -> bool:
        """Stop being selected, unless displaced already; whether the place was still ours.

        Packets in flight may still arrive: wait with :func:`aiolb.bpf.syscall.membarrier`, then drain.
        """
        return self.group.leave(self.index, self.cookie)

    def close(self, *, forget: bool = False) -> None:
        """Close the group's descriptors; the place stays with the socket.

        With ``forget`` the group's pins are removed too if no member is alive.
        """
        if forget:
            self.group.delete_if_empty()
        self.group.close()


class Group:
    """All sockets that share one address, and the BPF objects that steer among them.

    Owns descriptors until ``close()``; the pins, the program and the members' places live on without it.
    """

    def __init__(self, address: Address, pins: Pins, maps: Maps, program_fd: int) -> None:
        self.address = address
        self._pins = pins
        self._maps = maps
        self._program_fd = program_fd
        self._wanted: GroupOptions | None = None

    @classmethod
    @contextmanager
    def opened_or_created(cls, address: Address, options: GroupOptions) -> Iterator[Self]:
        """The group at ``address``, made if there is none, with its lock held: bind and join inside.

        bpffs is mounted where it is missing. An existing group keeps its seed (another one is refused); another
        count, strictness or program becomes the group's when somebody joins with it. On an error the group is
        closed, and removed if it was made here; else it is the caller's to close. Raises GroupError,
        PrivilegeError, KernelError.
        """
        pins = Pins(address, protocol=options.protocol, bpffs=options.bpffs)
        with pins.locked(create=True), ExitStack() as on_error:
            group = cls._open_ours(address, pins)
            if group is not None:
                on_error.callback(group.close)
                group._check_seed(options)  # noqa: SLF001 - our own instance
                group._wanted = options  # noqa: SLF001
            else:
                on_error.callback(pins.remove)
                group = cls._create(address, pins, options)
                on_error.callback(group.close)
            yield group
            on_error.pop_all()

    @classmethod
    def open(cls, address: Address, *, protocol: str = "udp", bpffs: Path = BPFFS) -> Self:
        """Open the group at ``address``. Raises GroupNotFoundError where there is none, GroupError, KernelError."""
        pins = Pins(address, protocol=protocol, bpffs=bpffs)
        try:
            with pins.locked():
                if (group := cls._open_ours(address, pins)) is not None:
                    return group
        except FileNotFoundError:
            pass
        raise GroupNotFoundError(f"there is no group at {address}", hint="start a collector there first")

    @classmethod
    def _open_ours(cls, address: Address, pins: Pins) -> Self | None:
        """The group that is pinned here; None without one, and for that of a namespace whose number was used again."""
        if not pins.complete:
            return None
        group = cls._open(address, pins)
        if group.config.namespace == namespace_cookie():
            return group
        group.close()
        return None

    @classmethod
    def _open(cls, address: Address, pins: Pins) -> Self:
        with ExitStack() as on_error:
            try:
                maps = Maps.open(pins.folder)
                on_error.callback(maps.close)
                program_fd = pins.open_program()
            except (OSError, LayoutMismatchError) as error:
                raise _open_error(error, pins) from error
            on_error.pop_all()
        return cls(address, pins, maps, program_fd)

    @classmethod
    def _create(cls, address: Address, pins: Pins, options: GroupOptions) -> Self:
        bytecode = options.program or spec.shipped()
        pins.clear()
        with ExitStack() as on_error:
            try:
                maps = Maps.create(options.protocol)
                on_error.callback(maps.close)
                _fill(maps, options, bytecode.digest)
                program_fd = program.load(bytecode, maps.by_placeholder())
                on_error.callback(os.close, program_fd)
                pins.pin_program(program_fd)
                maps.pin(pins.folder)
            except KernelError:
                raise
            except OSError as error:
                raise program.privilege_error(error) or KernelError(
                    f"the group at {address} cannot be created: {error}", errno=error.errno
                ) from error
            on_error.pop_all()
        return cls(address, pins, maps, program_fd)

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        self._maps.close()
        if self._program_fd >= 0:
            os.close(self._program_fd)
            self._program_fd = -1

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
        """Remove the group's pins unless a member is alive."""
        with self.locked():
            if self._pins.complete and not self.alive():
                self._pins.remove()

    def alive(self) -> set[int]:
        """The indexes that live sockets hold."""
        return {index for index in range(self.config.count) if self.cookie_of(index) is not None}

    @property
    def config(self) -> Config:
        """The group's settings as they stand."""
        return self._maps.read_struct("config", 0, Config)

    @property
    def slots(self) -> list[int]:
        """The slot table: the owner of each of the 16,384 slots."""
        return [owner for (owner,) in abi.U32.iter_unpack(self._maps.read_all("slots"))]

    def cookie_of(self, index: int) -> int | None:
        """The cookie of the socket that holds ``index``; None when the member is dead."""
        value = self._maps.read("targets", index)
        return None if value is None else int(abi.U64.unpack(value)[0])

    def join(self, sock: socket.socket, index: int, *, count: int | None = None, takeover: bool = False) -> Membership:
        """Give a bound SO_REUSEPORT socket the place ``index``; the caller keeps the socket.

        ``count`` changes the group's number of members, and moves only the slots that must move. An index held by
        a live socket is refused with MemberTakenError unless ``takeover`` is asked for: then it is replaced in one
        atomic update, and its owner sees that it was displaced. Raises GroupError, KernelError too.
        """
        with self.locked():
            self.check_vacant(index, count=count, takeover=takeover)
            self._adopt()
            self.place(sock, index)
            # The new member first, its slots after it: its sources move once, and straight to it.
            if count is not None:
                self._resize(count)
            return Membership(self, index, sock)

    def place(self, sock: socket.socket, index: int) -> None:
        """Let the program select ``sock`` for ``index``, whoever held it; under the lock. Raises KernelError."""
        try:
            syscall.attach_reuseport(sock, self._program_fd)
            # The kernel may refuse the socket (EBUSY: it has another place): then nobody is named as its holder.
            self._maps.write("targets", index, abi.U64.pack(sock.fileno()))
            self._maps.write("members", index, _member(_cookie(sock)).pack())
        except OSError as error:
            raise program.privilege_error(error) or KernelError(
                f"the socket cannot join the group at {self.address}: {error}", errno=error.errno
            ) from error
        self._write_config(newest=index)

    def check_vacant(self, index: int, *, count: int | None = None, takeover: bool = False) -> None:
        """Raise ConfigurationError for an index outside of the group, MemberTakenError for one in use."""
        count = count or self.config.count
        if not 0 <= index < count:
            members = "1 member" if count == 1 else f"{count} members"
            raise ConfigurationError(
                f"index {index} is outside of the group at {self.address}, which has {members}",
                hint=f"an --index below {count}, or a larger --count",
            )
        if self.cookie_of(index) is None or takeover:
            return
        holder = self.holder(index)
        since = datetime.fromtimestamp(holder.joined_ns // 10**9, tz=UTC).astimezone()
        raise MemberTakenError(
            f"index {index} of the group at {self.address} is held by pid {holder.pid} since {since:%F %T}",
            hint="choose another --index, or replace it with --takeover",
        )

    def holder(self, index: int) -> Member:
        """Who joined as ``index`` last, alive or not."""
        return self._maps.read_struct("members", index, Member)

    def leave(self, index: int, cookie: int) -> bool:
        """Empty the place ``index`` if the socket with ``cookie`` still holds it; whether it did."""
        with self.locked():
            return self.cookie_of(index) == cookie and self._maps.delete("targets", index)

    def move_slots(self, moves: dict[int, int]) -> None:
        """Give slots to other members (slot: member), under the lock."""
        with self.locked():
            self._maps.write_many("slots", {slot: abi.U32.pack(member) for slot, member in moves.items()})

    def locate(self, source: IPAddress) -> int | None:
        """The member that gets the datagrams of ``source`` now, failover included; None when nobody is alive."""
        config = self.config
        return hashing.choose(config.seed, source, self.slots, config.count, self.alive(), newest=config.newest).member

    def statistics(self) -> GroupStatistics:
        """Counters and members, read one after the other while traffic goes on."""
        config = self.config
        owned = Counter(self.slots)
        counters = self._maps.sums("member_stats")
        ((failovers, unsteered, dropped),) = self._maps.sums("group_stats")
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
                    *counters[index],
                )
            )
        return GroupStatistics(config.count, config.seed, config.strict, tuple(members), failovers, unsteered, dropped)

    def slot_packets(self) -> list[int]:
        """Packets counted per slot since the group's creation; a train is one packet."""
        return [packets for (packets,) in self._maps.sums("slot_stats")]

    def _check_seed(self, options: GroupOptions) -> None:
        seed = self.config.seed
        if options.seed not in (None, seed):
            raise GroupError(
                f"the group at {self.address} has the seed {seed}, not {options.seed}",
                hint=f"leave --seed out, or start afresh: stop its members, then rm -r {self._pins.folder}",
            )

    def _adopt(self) -> None:
        """Make what was asked for when the group was opened its own; a join that is refused changes nothing."""
        options, self._wanted = self._wanted, None
        if options is None:
            return
        config = self.config
        if options.strict not in (None, config.strict):
            self._write_config(flags=config.flags ^ abi.FLAG_STRICT)
        bytecode = options.program or spec.shipped()
        if bytecode.digest != config.program:
            self._replace_program(bytecode)

    def _replace_program(self, bytecode: ProgramSpec) -> None:
        """Load another version of the program over the same maps; the join that follows attaches it."""
        try:
            fd = program.load(bytecode, self._maps.by_placeholder())
        except PrivilegeError:
            return  # who joins through the pins' permissions alone takes the program that is there
        os.close(self._program_fd)
        self._program_fd = fd
        self._pins.pin_program(fd)
        self._write_config(program=bytecode.digest)

    def _resize(self, count: int) -> None:
        if count != self.config.count:
            self.move_slots(slots.resize(self.slots, count))
            self._write_config(count=count)

    def _write_config(self, **changes: int) -> None:
        self._maps.write("config", 0, replace(self.config, **changes).pack())


def _fill(maps: Maps, options: GroupOptions, digest: int) -> None:
    count = options.count or 1
    seed = secrets.randbits(128) if options.seed is None else options.seed
    config = Config(
        layout=abi.LAYOUT_VERSION,
        count=count,
        flags=abi.FLAG_STRICT if options.strict else 0,
        newest=0,
        seed_low=seed & (1 << 64) - 1,
        seed_high=seed >> 64,
        program=digest,
        created_ns=time.time_ns(),
        namespace=namespace_cookie(),
    )
    maps.write("config", 0, config.pack())
    maps.write_many("slots", {slot: abi.U32.pack(owner) for slot, owner in enumerate(slots.assign(count))})


def _cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


def _member(cookie: int) -> Member:
    return Member(cookie, time.time_ns(), os.getpid(), os.geteuid())


def _open_error(error: OSError | LayoutMismatchError, pins: Pins) -> StartError:
    if isinstance(error, LayoutMismatchError) or error.errno == errno.ENOENT:
        return GroupError(
            f"{pins.folder} holds a group with {error}, and this aiolb works with layout {abi.LAYOUT_VERSION}",
            hint=f"another version made it: stop its members, then rm -r {pins.folder}",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError(
            f"this user may not open the group in {pins.folder}: {error.strerror}",
            errno=error.errno,
            hint="run as the user that made it",
        )
    return KernelError(f"the group in {pins.folder} cannot be opened: {error}", errno=error.errno)
