"""The kernel objects of one group, its maps and its program: made for a new group, opened from its pins, closed."""

from __future__ import annotations

import errno
import os
import secrets
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from aiolb.bpf import abi, program, slots, spec
from aiolb.bpf.abi import BPFFS, Config, Member
from aiolb.bpf.guard import Guard
from aiolb.bpf.keys import TCP_HAS_NO_PAYLOAD, Key
from aiolb.bpf.maps import LayoutMismatchError, Maps
from aiolb.bpf.pins import Pins, namespace_cookie
from aiolb.bpf.rules import GuardOptions
from aiolb.bpf.spec import ProgramSpec
from aiolb.bpf.unpinned import Unpinned
from aiolb.errors import ConfigurationError, GroupError, KernelError, PrivilegeError, StartError

MAX_SEED = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """How a group is created; each None leaves it to the group, or to the default for a new one.

    ``count`` members (1 … 1,024; default 1), ``seed`` of the hash (128 bits; default random), ``strict``:
    drop when no member is alive (default: leave it to the kernel). ``key``: what is hashed (default: the source).
    ``guard``: what is dropped before that (default: nothing). ``program``: the bytecode (default: what is
    shipped), and ``otherwise`` what to take where the kernel refuses that. ``bpffs``: where the group is pinned; None
    makes one that is not, and that no other process finds.
    """

    count: int | None = None
    seed: int | None = None
    strict: bool | None = None
    key: Key | None = None
    guard: GuardOptions = field(default_factory=GuardOptions)
    program: ProgramSpec | None = None
    otherwise: ProgramSpec | None = None
    protocol: str = "udp"
    bpffs: Path | None = BPFFS

    def __post_init__(self) -> None:
        if self.count is not None:
            check_count(self.count)
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ConfigurationError(f"a seed is a number from 0 to 2^128 - 1, not {self.seed}")
        if self.protocol == "tcp" and self.key is not None and self.key.kind == abi.KEY_CUSTOM:
            raise ConfigurationError(TCP_HAS_NO_PAYLOAD)

    @property
    def programs(self) -> tuple[ProgramSpec, ...]:
        """The bytecode, the one to prefer first."""
        if self.program is None:
            return spec.for_protocol(self.protocol)
        return (self.program,) if self.otherwise is None else (self.program, self.otherwise)


def check_count(count: int) -> None:
    """Raise ConfigurationError for a number of members that no group can have."""
    if not 1 <= count <= abi.MAX_MEMBERS:
        raise ConfigurationError(f"a group has 1 to {abi.MAX_MEMBERS} members, not {count}")


class Objects:
    """Descriptors of a group's maps and of its program; owns them until ``close()``."""

    def __init__(self, maps: Maps, program_fd: int) -> None:
        self.maps = maps
        self.program_fd = program_fd

    @classmethod
    def create(cls, pins: Pins | Unpinned, options: GroupOptions) -> Self:
        """Make and pin the objects of a new group, under its lock; nothing is left open on an error.

        What an earlier creation left that was cut off is removed. Raises PrivilegeError, UnsupportedError, KernelError.
        """
        pins.clear()
        with ExitStack() as on_error:
            try:
                maps = Maps.create(options.protocol)
                on_error.callback(maps.close)
                program_fd, loaded = program.load_first(options.programs, maps.by_placeholder())
                on_error.callback(os.close, program_fd)
                _fill(maps, options, loaded.digest)
                Guard(maps).set(options.guard)
                pins.pin(maps, program_fd)
            except KernelError:
                raise
            except OSError as error:
                raise program.privilege_error(error) or KernelError(
                    f"the group at {pins.name} cannot be created: {error}", errno=error.errno
                ) from error
            on_error.pop_all()
        return cls(maps, program_fd)

    @classmethod
    def open(cls, pins: Pins) -> Self | None:
        """The objects that are pinned here; look under the lock. Raises GroupError, PrivilegeError, KernelError.

        None without a group, and for that of a namespace whose number was used again.
        """
        with ExitStack() as on_error:
            try:
                if not pins.complete:
                    return None
                maps = Maps.open(pins.folder)
                on_error.callback(maps.close)
                if maps.read_struct("config", 0, Config).namespace != namespace_cookie():
                    return None
                program_fd = pins.open_program()
            except (OSError, LayoutMismatchError) as error:
                raise _open_error(error, pins) from error
            on_error.pop_all()
        return cls(maps, program_fd)

    def replace_program(self, programs: Sequence[ProgramSpec]) -> ProgramSpec | None:
        """Load another version of the program over the same maps, unless this user may not; which one it is.

        The sockets go on with the one that is attached to them. Raises KernelError.
        """
        try:
            fd, loaded = program.load_first(programs, self.maps.by_placeholder())
        except PrivilegeError:
            return None  # who joins through the pins' permissions alone takes the program that is there
        os.close(self.program_fd)
        self.program_fd = fd
        return loaded

    def close(self) -> None:
        """Close the descriptors; what is pinned or attached lives on. Idempotent."""
        self.maps.close()
        if self.program_fd >= 0:
            os.close(self.program_fd)
            self.program_fd = -1


def _fill(maps: Maps, options: GroupOptions, digest: int) -> None:
    count = options.count or 1
    seed = secrets.randbits(128) if options.seed is None else options.seed
    config = replace(
        Config.unpack(bytes(Config.STRUCT.size)),
        layout=abi.LAYOUT_VERSION,
        count=count,
        flags=abi.FLAG_STRICT if options.strict else 0,
        seed_low=seed & (1 << 64) - 1,
        seed_high=seed >> 64,
        program=digest,
        created_ns=time.time_ns(),
        namespace=namespace_cookie(),
        **(options.key or Key()).settings,
    )
    maps.write("config", 0, config.pack())
    maps.slots[:] = array("H", slots.assign(count)).tobytes()
    nobody = Member(cookie=0, joined_ns=0, pid=0, uid=0, weight=abi.DEFAULT_WEIGHT, drained=0).pack()
    maps.write_many("members", dict.fromkeys(range(abi.MAX_MEMBERS), nobody))


def _open_error(error: OSError | LayoutMismatchError, pins: Pins) -> StartError:
    if isinstance(error, LayoutMismatchError) or error.errno == errno.ENOENT:
        return GroupError(
            f"{pins.folder} holds a group with {error}, and this aiolb works with layout {abi.LAYOUT_VERSION}",
            hint=f"another version made it: stop its members, then {pins.command('delete')}",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return pins.refused(error)
    return KernelError(f"the group in {pins.folder} cannot be opened: {error}", errno=error.errno)
