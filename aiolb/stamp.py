"""The stamp that a publisher puts at the start of a datagram, to bytes and back; pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

from aiolb.errors import ConfigurationError, WireError

MAGIC = b"aLb\x01"
_LAYOUT = struct.Struct("!4sQIQQ")

STAMP_SIZE = _LAYOUT.size
"""Bytes: magic (4), run (8), source (4), sequence (8), time of sending (8); network byte order."""

# A named tuple, not a frozen dataclass: both are immutable, and this one is made in a third of the time.


class Stamp(NamedTuple):
    """Who sent a datagram, as which of its datagrams, and when.

    ``run`` is the random 64-bit number of a publisher, ``source`` the number of one of its sources (32 bits),
    ``sequence`` counts the datagrams of that source from 0 (64 bits), ``sent_ns`` is the time of sending
    in nanoseconds since the epoch (64 bits).
    """

    run: int
    source: int
    sequence: int
    sent_ns: int

    def pack_into(self, buffer: bytearray | memoryview, offset: int = 0) -> None:
        """Overwrite STAMP_SIZE bytes of ``buffer``; raises struct.error when they or a number do not fit."""
        _LAYOUT.pack_into(buffer, offset, MAGIC, *self)

    def to_wire(self, size: int = STAMP_SIZE) -> bytes:
        """A datagram of ``size`` bytes that starts with the stamp; the rest is zero.

        Raises ConfigurationError when ``size`` is below STAMP_SIZE.
        """
        if size < STAMP_SIZE:
            raise ConfigurationError(f"a stamp does not fit in {size} bytes", hint=f"give {STAMP_SIZE} bytes or more")
        return _LAYOUT.pack(MAGIC, *self).ljust(size, b"\0")


def stamp_from_wire(data: bytes | bytearray | memoryview) -> Stamp:
    """Read the stamp at the start of a datagram from the network; the bytes after it do not matter.

    Raises WireError, and nothing else, when there is none.
    """
    if len(data) < STAMP_SIZE:
        raise WireError(f"{len(data)} bytes are too short for a stamp of {STAMP_SIZE}")
    magic, run, source, sequence, sent_ns = _LAYOUT.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"a stamp starts with {MAGIC!r}, this datagram with {magic!r}")
    return Stamp(run, source, sequence, sent_ns)
