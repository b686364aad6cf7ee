"""Map layouts and constants: the mirror of balancer.h, which documents each field (a test compares the two)."""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import ClassVar, Self

BPFFS = Path("/sys/fs/bpf")
"""Where a BPF file system is mounted by convention."""

LAYOUT_VERSION = 1
SLOT_COUNT = 16384
MAX_MEMBERS = 1024
MAX_TRIES = 16
MAX_NEIGHBOURS = 64

FLAG_STRICT = 1

MAP_TYPE_ARRAY = 2
MAP_TYPE_PERCPU_ARRAY = 6
MAP_TYPE_REUSEPORT_SOCKARRAY = 20

U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map: ``placeholder`` is the number that the bytecode holds in place of its descriptor."""

    pin: str
    placeholder: int
    type: int
    value_size: int
    entries: int
    name: str = ""

    def name_for(self, protocol: str) -> str:
        """The name that bpftool shows; the kernel allows 15 characters."""
        return self.name.format(protocol=protocol) or self.pin


class Layout:
    """A struct of balancer.h: packs to and from the bytes of a map value."""

    STRUCT: ClassVar[struct.Struct]

    def pack(self) -> bytes:
        """The map value."""
        return self.STRUCT.pack(*astuple(self))  # type: ignore[call-overload]

    @classmethod
    def unpack(cls, value: bytes) -> Self:
        """Read a map value; only the struct's own size is looked at."""
        return cls(*cls.STRUCT.unpack_from(value))


@dataclass(frozen=True, slots=True)
class Config(Layout):
    """``struct config``."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=IIIIQQQQQ")

    layout: int
    count: int
    flags: int
    newest: int
    seed_low: int
    seed_high: int
    program: int
    created_ns: int
    namespace: int

    @property
    def seed(self) -> int:
        """The 128-bit key of the hash."""
        return self.seed_high << 64 | self.seed_low

    @property
    def strict(self) -> bool:
        """Whether packets are dropped when no member is alive."""
        return bool(self.flags & FLAG_STRICT)


@dataclass(frozen=True, slots=True)
class Member(Layout):
    """``struct member``."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQII")

    cookie: int
    joined_ns: int
    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class MemberStats(Layout):
    """``struct member_stats``."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQQ")

    packets: int
    bytes: int
    failovers: int


@dataclass(frozen=True, slots=True)
class GroupStats(Layout):
    """``struct group_stats``."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQQ")

    failovers: int
    unsteered: int
    dropped: int


MAPS = (
    MapSpec("targets", 1, MAP_TYPE_REUSEPORT_SOCKARRAY, 8, MAX_MEMBERS, name="{protocol}_balancing_t"),
    MapSpec("config", 2, MAP_TYPE_ARRAY, Config.STRUCT.size, 1),
    MapSpec("slots", 3, MAP_TYPE_ARRAY, U32.size, SLOT_COUNT),
    MapSpec("member_stats", 4, MAP_TYPE_PERCPU_ARRAY, MemberStats.STRUCT.size, MAX_MEMBERS),
    MapSpec("slot_stats", 5, MAP_TYPE_PERCPU_ARRAY, U64.size, SLOT_COUNT),
    MapSpec("group_stats", 6, MAP_TYPE_PERCPU_ARRAY, GroupStats.STRUCT.size, 1),
    MapSpec("members", 0, MAP_TYPE_ARRAY, Member.STRUCT.size, MAX_MEMBERS),
)
