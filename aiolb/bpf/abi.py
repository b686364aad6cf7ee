"""Map layouts and constants: the mirror of balancer.h, which documents each field (a test compares the two)."""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self
from zlib import crc32

BPFFS = Path("/sys/fs/bpf")
"""Where a BPF file system is mounted by convention."""

LAYOUT_VERSION = 3
SLOT_COUNT = 16384
MAX_MEMBERS = 1024
MAX_TRIES = 16
MAX_NEIGHBOURS = 64
STAT_PARTS = 2
BUCKET_SETS = 4096
BUCKET_WAYS = 4

FLAG_STRICT = 1
FLAG_RULES = 2
FLAG_LISTED_ONLY = 4
FLAG_LIMIT = 8
FLAG_EVENTS = 1 << 24

KEY_SOURCE = 0
KEY_FLOW = 1
KEY_RANDOM = 2
KEY_CUSTOM = 3

RULE_DENY = 0
RULE_ALLOW = 1

ACTION_STEER = 0
ACTION_FAILOVER = 1
ACTION_UNSTEERED = 2
ACTION_DROP = 3
ACTION_DENY = 4
ACTION_UNLISTED = 5
ACTION_LIMIT = 6

NO_MEMBER = 65535

TIME_BUCKETS = 40
SIZE_BUCKETS = 16
SKETCH_WORDS = 256
TOP_SOURCES = 16
TOP_WORDS = 4 * TOP_SOURCES

DEFAULT_WEIGHT = 100
"""Of a member that nobody has given another one."""
MAX_RULES = 65536
MAX_OFFENDERS = 1024
EVENTS_SIZE = 256 << 10
"""Bytes of the ring buffer: room for 5,461 events, each of which has a header of 8 bytes."""

MAP_TYPE_ARRAY = 2
MAP_TYPE_PERCPU_ARRAY = 6
MAP_TYPE_LRU_HASH = 9
MAP_TYPE_LPM_TRIE = 11
MAP_TYPE_REUSEPORT_SOCKARRAY = 20
MAP_TYPE_RINGBUF = 27

MAP_NO_PREALLOC = 1 << 0
MAP_MMAPABLE = 1 << 10

U16 = struct.Struct("=H")
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
    key_size: int = 4
    flags: int = 0

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

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=IIIIQQIIQQQQQQQQQQQQIIQQQ")

    layout: int
    count: int
    flags: int
    newest: int
    seed_low: int
    seed_high: int
    key: int
    mask4: int
    mask6_low: int
    mask6_high: int
    key_digest: int
    limit_interval_ns: int
    limit_burst_ns: int
    event_source_low: int
    event_source_high: int
    event_mask_low: int
    event_mask_high: int
    event_patience_ns: int
    event_full_ns: int
    event_position: int
    event_sample: int
    generation: int
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

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQIIII")

    cookie: int
    joined_ns: int
    pid: int
    uid: int
    weight: int
    drained: int

    @property
    def share(self) -> int:
        """Its weight, and 0 while it is drained."""
        return 0 if self.drained else self.weight


@dataclass(frozen=True, slots=True)
class Report(Layout):
    """``struct report``; pack it with :meth:`pack`, which puts the checksum in."""

    ARRAYS: ClassVar[dict[str, int]] = {
        "handler_times": TIME_BUCKETS,
        "batch_sizes": SIZE_BUCKETS,
        "sketch": SKETCH_WORDS,
        "top": TOP_WORDS,
    }
    STRUCT: ClassVar[struct.Struct] = struct.Struct("=" + "Q" * (25 + sum(ARRAYS.values())))

    checksum: int
    cookie: int
    pid: int
    uid: int
    started_ns: int
    written_ns: int
    received: int
    received_bytes: int
    messages: int
    truncated: int
    handled: int
    errors: int
    in_flight: int
    waiting: int
    abandoned: int
    sent: int
    sent_bytes: int
    send_errors: int
    queued_bytes: int
    queue_limit: int
    kernel_drops: int
    sources: int
    handler_ns: int
    handler_times: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    sketch: tuple[int, ...]
    top_error: int
    top_others: int
    top: tuple[int, ...]

    def pack(self) -> bytes:
        """The map value, with its checksum."""
        words: list[int] = []
        for field in fields(self):
            value = getattr(self, field.name)
            words += value if field.name in self.ARRAYS else (value,)
        body = self.STRUCT.pack(*words)[U64.size :]
        return U64.pack(crc32(body)) + body

    @classmethod
    def unpack(cls, value: bytes) -> Self:
        """Read a map value, whatever its checksum says."""
        words = iter(cls.STRUCT.unpack_from(value))
        values: list[Any] = [
            tuple(islice(words, cls.ARRAYS[field.name])) if field.name in cls.ARRAYS else next(words)
            for field in fields(cls)
        ]
        return cls(*values)

    @classmethod
    def is_whole(cls, value: bytes) -> bool:
        """Whether the checksum of a map value is right."""
        (checksum,) = U64.unpack_from(value)
        return bool(checksum == crc32(value[U64.size : cls.STRUCT.size]))


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

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQQQQQQQ")

    failovers: int
    unsteered: int
    dropped: int
    denied: int
    unlisted: int
    limited: int
    migrated: int
    events_lost: int


@dataclass(frozen=True, slots=True)
class Rule(Layout):
    """``struct rule``."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=IIQQ")

    action: int
    ipv6: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Bucket(Layout):
    """``struct bucket``."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQ")

    source: int
    full_ns: int


@dataclass(frozen=True, slots=True)
class Tick(Layout):
    """``struct tick``."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQ")

    jiffies: int
    ns: int


@dataclass(frozen=True, slots=True)
class Event(Layout):
    """``struct event``."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQQIHHHHI")

    time_ns: int
    source_low: int
    source_high: int
    bytes: int
    port: int
    slot: int
    member: int
    action: int
    unused: int


BUCKETS_SIZE = BUCKET_SETS * BUCKET_WAYS * Bucket.STRUCT.size + Tick.STRUCT.size

MAPS = (
    MapSpec("targets", 1, MAP_TYPE_REUSEPORT_SOCKARRAY, 8, MAX_MEMBERS, name="{protocol}_balancing_t"),
    MapSpec("config", 2, MAP_TYPE_ARRAY, Config.STRUCT.size, 1),
    MapSpec("slots", 3, MAP_TYPE_ARRAY, SLOT_COUNT * U16.size, 1, flags=MAP_MMAPABLE),
    MapSpec("member_stats", 4, MAP_TYPE_PERCPU_ARRAY, MemberStats.STRUCT.size, MAX_MEMBERS),
    MapSpec("slot_stats", 5, MAP_TYPE_PERCPU_ARRAY, SLOT_COUNT // STAT_PARTS * U32.size, STAT_PARTS),
    MapSpec("group_stats", 6, MAP_TYPE_PERCPU_ARRAY, GroupStats.STRUCT.size, 1),
    MapSpec("rules", 7, MAP_TYPE_LPM_TRIE, Rule.STRUCT.size, MAX_RULES, key_size=20, flags=MAP_NO_PREALLOC),
    # A map that can be mapped begins on a page, and so each set of buckets on a cache line.
    MapSpec("buckets", 8, MAP_TYPE_ARRAY, BUCKETS_SIZE, 1, flags=MAP_MMAPABLE),
    MapSpec("offenders", 9, MAP_TYPE_LRU_HASH, U64.size, MAX_OFFENDERS, key_size=16),
    MapSpec("events", 10, MAP_TYPE_RINGBUF, 0, EVENTS_SIZE, key_size=0),
    MapSpec("members", 0, MAP_TYPE_ARRAY, Member.STRUCT.size, MAX_MEMBERS),
    MapSpec("reports", 0, MAP_TYPE_ARRAY, Report.STRUCT.size, MAX_MEMBERS, flags=MAP_MMAPABLE),
)
