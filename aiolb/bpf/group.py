"""A group and its members: create, open, join, leave, change the number of members."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from aiolb.address import Address
from aiolb.bpf import abi
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.cautions import cautions
from aiolb.bpf.changes import SlotsChange, SlotsWatch
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.objects import GroupOptions, Objects, check_count
from aiolb.bpf.ownership import user_name
from aiolb.bpf.pins import Pins
from aiolb.bpf.state import GroupState, cookie
from aiolb.bpf.statistics import GroupStatistics, MemberStatistics
from aiolb.bpf.unpinned import Unpinned
from aiolb.errors import (
    AiolbError,
    ConfigurationError,
    GroupError,
    GroupNotFoundError,
    MemberTakenError,
    PrivilegeError,
)

__all__ = ["Group", "GroupOptions", "GroupStatistics", "MemberStatistics", "Membership"]


class Membership:
    """A socket's place in a group; it ends with ``leave()`` or with the socket. Owns the group's descriptors."""

    def __init__(self, group: Group, index: int, sock: socket.socket) -> None:
        self.group = group
        self.index = index
        self.cookie = cookie(sock)
        self._sock = sock
        self._watch: SlotsWatch | None = None

    @property
    def count(self) -> int:
        """The group's present number of members."""
        return self.group.config.count

    @property
    def weight(self) -> int:
        """The member's part of the slots beside the others' weights."""
        return self.group.holder(self.index).weight

    @property
    def drained(self) -> bool:
        """Whether the member is to own no slots for the time being."""
        return bool(self.group.holder(self.index).drained)

    def slots_change(self) -> SlotsChange | None:
        """What slots have left the member and come to it since the last call; None the first time."""
        if self._watch is None:
            self._watch = SlotsWatch(self.group, self.index)
        return self._watch.look().get(self.index)

    @property
    def held(self) -> bool:
        """Whether the place is the socket's."""
        return self.group.cookie_of(self.index) == self.cookie

    @property
    def displaced(self) -> bool:
        """Whether another socket has the index."""
        return self.group.cookie_of(self.index) not in (None, self.cookie)

    def restore(self) -> bool:
        """Take the place if it is empty, after ``leave()`` or because who took it over has died; whether it was.

        An index that a smaller count has left outside of the group is no place. Raises KernelError.
        """
        if self.group.cookie_of(self.index) is not None:
            return False
        with self.group.locked():
            if self.group.cookie_of(self.index) is not None or self.index >= self.count:
                return False
            self.group.place(self._sock, self.index)
            return True

    def leave(self) -> bool:
        """Stop being selected, unless displaced already; whether the place was still ours.

        The sources go to the other members until ``restore()``. Packets in flight may still arrive: wait with
        :func:`aiolb.bpf.syscall.membarrier`, then drain.
        """
        return self.group.leave(self.index, self.cookie)

    def close(self, *, forget: bool = False) -> None:
        """Close the group's descriptors; the place stays with the socket.

        With ``forget`` the group's pins are removed too if no member is alive, as far as this user may.
        """
        if forget:
            self.group.delete_if_empty()
        self.group.close()


class Group(GroupState):
    """All sockets that share one address, and the BPF objects that steer among them.

    Owns descriptors until ``close()``; the pins, the program and the members' places live on without it.
    """

    def __init__(self, pins: Pins | Unpinned, objects: Objects) -> None:
        super().__init__(pins, objects)
        self.made = False
        """Whether there was no group before: a start that fails takes it away again."""
        self._wanted: GroupOptions | None = None
        self._program_kept = False

    @classmethod
    @contextmanager
    def opened_or_created(cls, address: Address, options: GroupOptions) -> Iterator[Self]:
        """The group at ``address``, made if there is none, with its lock held: bind and join inside.

        bpffs is mounted where it is missing. An existing group keeps its seed and its key (others are refused); another
        count, strictness, guard or program becomes the group's when somebody joins with it. On an error the group is
        closed, and removed if it was made here; else it is the caller's to close. Raises GroupError,
        PrivilegeError, KernelError.
        """
        if options.bpffs is None:
            unpinned = Unpinned(GroupName(options.protocol, address))
            group = cls(unpinned, Objects.create(unpinned, options))
            with ExitStack() as on_error:
                on_error.callback(group.close)
                yield group
                on_error.pop_all()
            return
        pins = Pins(address, protocol=options.protocol, bpffs=options.bpffs)
        with ExitStack() as on_error:
            on_error.callback(pins.close)
            with pins.locked(create=True), cls._made_or_found(pins, options) as group:
                yield group
            on_error.pop_all()

    @classmethod
    @contextmanager
    def _made_or_found(cls, pins: Pins, options: GroupOptions) -> Iterator[Self]:
        with ExitStack() as on_error:
            if (objects := Objects.open(pins)) is not None:
                on_error.callback(objects.close)
                group = cls(pins, objects)
                group._check_kept(options, pins)
                group._wanted = options
                group._program_kept = not pins.writable and group._keeps_program(options)
            else:
                on_error.callback(pins.remove)
                objects = Objects.create(pins, options)
                on_error.callback(objects.close)
                group = cls(pins, objects)
                group.made = True
            yield group
            on_error.pop_all()

    @classmethod
    def open(cls, address: Address, *, protocol: str = "udp", bpffs: Path = BPFFS) -> Self:
        """Open the group at ``address``. Raises GroupNotFoundError where there is none, GroupError, KernelError."""
        pins = Pins(address, protocol=protocol, bpffs=bpffs)
        with ExitStack() as on_error:
            on_error.callback(pins.close)
            try:
                with pins.locked():
                    objects = Objects.open(pins)
            except FileNotFoundError:
                objects = None
            if objects is None:
                raise GroupNotFoundError(f"there is no group at {pins.name}", hint="start a collector there first")
            on_error.pop_all()
            return cls(pins, objects)

    def join(
        self,
        sock: socket.socket,
        index: int,
        *,
        count: int | None = None,
        weight: int | None = None,
        takeover: bool = False,
    ) -> Membership:
        """Give a bound SO_REUSEPORT socket the place ``index``; the caller keeps the socket.

        ``count`` changes the group's number of members and ``weight`` the member's, and only the slots move that must.
        An index held by a live socket is refused with MemberTakenError unless ``takeover`` is asked for: then it is
        replaced in one atomic update, and its owner sees that it was displaced. Raises GroupError, KernelError too.
        """
        changes = {} if weight is None else {index: {"weight": weight}}
        with self.locked():
            self.check_vacant(index, count=count, takeover=takeover)
            self._dealt(changes, count or self.config.count)  # what cannot be is refused before anything is done
            self._adopt()
            self.place(sock, index)
            # The new member first, its slots after it: its sources move once, and straight to it.
            self._deal(changes, count)
            membership = Membership(self, index, sock)
            membership.slots_change()  # what changes from now on is told
            return membership

    def join_all(self, sockets: Mapping[int, socket.socket], *, count: int | None = None) -> None:
        """Give bound SO_REUSEPORT sockets their places by index, all or none; the caller keeps the sockets.

        A socket that has its place already stays in it. ``count`` as in :meth:`join`. Raises MemberTakenError for an
        index that another live socket holds, ConfigurationError, KernelError.
        """
        with self.locked():
            self.check_all_vacant(sockets, count=count)
            self._adopt()
            self.place_all(sockets)
            if count is not None:
                self.resize(count)

    def check_all_vacant(self, sockets: Mapping[int, socket.socket | None], *, count: int | None = None) -> None:
        """As :meth:`check_vacant` for many indexes; one may be held by the socket that is to have it."""
        for index, sock in sockets.items():
            mine = sock is not None and self.cookie_of(index) == cookie(sock)
            self.check_vacant(index, count=count, takeover=mine)

    def check_vacant(self, index: int, *, count: int | None = None, takeover: bool = False) -> None:
        """Raise ConfigurationError for an index outside of the group, MemberTakenError for one in use."""
        if count is not None:
            check_count(count)
        count = count or self.config.count
        if not 0 <= index < count:
            members = "1 member" if count == 1 else f"{count} members"
            raise ConfigurationError(
                f"index {index} is outside of the group at {self.name}, which has {members}",
                hint=f"an --index below {count}, or a larger --count",
            )
        if self.cookie_of(index) is None or takeover:
            return
        holder = self.holder(index)
        since = datetime.fromtimestamp(holder.joined_ns // 10**9, tz=UTC).astimezone()
        raise MemberTakenError(
            f"index {index} of the group at {self.name} is held by pid {holder.pid} since {since:%F %T}",
            hint="choose another --index, or replace it with --takeover",
        )

    def resize(self, count: int) -> None:
        """Make it ``count`` members, and move the slots that must move; who is outside then gets nothing more.

        Raises ConfigurationError; also when all that are left are drained.
        """
        check_count(count)
        self._deal({}, count)

    def prepare(self, uid: int, gid: int, *, shared: bool = False) -> None:
        """Let a user's processes join without any privilege, and with ``shared`` those of a group of users.

        Keeps the group when no member is left. What was asked for when it was opened becomes its own. Raises
        GroupError where another user's member is alive, PrivilegeError, KernelError.
        """
        with self.locked():
            options = self._wanted
            self._check_users(uid)
            self._adopt()
            if options is not None and options.count is not None:
                self.resize(options.count)
            try:
                self._pins.prepare(uid, gid, shared=shared)
            except OSError as error:
                raise PrivilegeError(
                    f"this user may not give the group at {self.name} to {user_name(uid)}: {error.strerror}",
                    errno=error.errno,
                    hint="run as root",
                ) from error

    def _check_users(self, uid: int) -> None:
        """All sockets of a port are one user's (socket(7), SO_REUSEPORT)."""
        others = [index for index in sorted(self.alive()) if self.holder(index).uid != uid]
        if others:
            holder = self.holder(others[0])
            raise GroupError(
                f"the group at {self.name} cannot be {user_name(uid)}'s: "
                f"member {others[0]} is pid {holder.pid} of user {user_name(holder.uid)}",
                hint="all sockets of a port belong to one user: stop its members first",
            )

    def _check_kept(self, options: GroupOptions, pins: Pins) -> None:
        """What a group keeps from its creation on: key and seed."""
        if options.key is not None and options.key != self.key:
            option = "--key-file" if options.key.kind == abi.KEY_CUSTOM else "--key"
            raise GroupError(
                f"the group at {self.name} has the key {self.key}, not {options.key}",
                hint=f"leave {option} out, or start afresh: stop its members, then {pins.command('delete')}",
            )
        if options.key is None and options.program is not None and self.key.kind == abi.KEY_CUSTOM:
            raise GroupError(
                f"the group at {self.name} has the key {self.key}, and a balancer compiled without it cannot steer",
                hint="add its --key-file, or leave --compile and --debug out",
            )
        seed = self.config.seed
        if options.seed not in (None, seed):
            raise GroupError(
                f"the group at {self.name} has the seed {seed}, not {options.seed}",
                hint=f"leave --seed out, or start afresh: stop its members, then {pins.command('delete')}",
            )

    def _adopt(self) -> None:
        """Make what was asked for when the group was opened its own; a join that is refused changes nothing."""
        options, self._wanted = self._wanted, None
        if options is None:
            return
        config = self.config
        if options.strict not in (None, config.strict):
            self._write_config(flags=config.flags ^ abi.FLAG_STRICT)
        self.guard.set(options.guard)
        if config.key == abi.KEY_CUSTOM and options.key is None:
            return  # its program was compiled with a key file that we have not
        if not self._pins.writable:
            return  # nobody else could load the other program from its pin
        if config.program in _digests(options):
            return
        if loaded := self._objects.replace_program(options.programs):
            # The join that follows attaches it.
            self._pins.pin_program(self._objects.program_fd)
            self._write_config(program=loaded.digest)
        else:
            self._program_kept = self._keeps_program(options)

    def _keeps_program(self, options: GroupOptions) -> bool:
        """Whether who asks for a program finds another one. Another one that a package brings needs no word."""
        return options.program is not None and self.config.program not in _digests(options)

    @property
    def cautions(self) -> dict[str, AiolbError]:
        """What a member that has joined is to be warned of, by the names of the events."""
        return cautions(self._pins, program_kept=self._program_kept)


def _digests(options: GroupOptions) -> set[int]:
    return {bytecode.digest for bytecode in options.programs}
