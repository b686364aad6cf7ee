"""The ledger: a file in which every process of a run marks each datagram that it handled; what was killed stays told.

It is mapped into the memory of all of them. Each datagram of the publisher, known by the numbers in its stamp, has
two bytes for the number of the process that handled it and four for its latency. Each process has a line of
counters that it alone writes, and each source the number after the highest that was handled.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from aiolb.stamp import Stamp

HEADER = mmap.PAGESIZE
"""Bytes before everything else: sources, capacity, processes, the number of the sentenced one."""
MAX_PROCESSES = 4096
"""Processes that may enrol in one run."""
MAX_LATENCY = (1 << 32) - 1
"""Microseconds; a longer latency counts as this one."""

_HEADER = struct.Struct("=4Q")
_NUMBER = struct.Struct("=Q")
_NEXT_OFFSET, _SENTENCED_OFFSET = 16, 24
_MEMBER, _PID, _HANDLED, _DUPLICATED, _REORDERED, _STRAY = range(6)
_COUNTERS = 8


@dataclass(frozen=True, slots=True)
class Process:
    """What one process did: ``handled`` datagrams for the first time, ``duplicated`` ones again.

    ``reordered`` ones came after a higher number of their source, whoever handled that. ``stray`` ones have no place
    in the ledger: no stamp, or numbers beyond it.
    """

    number: int
    member: int
    pid: int
    handled: int
    duplicated: int
    reordered: int
    stray: int


class Ledger:
    """A ledger file, mapped; a context manager that unmaps it.

    ``sources`` are numbered from 0, and so are the up to ``capacity`` datagrams of each. The file is sparse: room
    that is not used costs nothing.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        self.sources, self.capacity, *_ = _HEADER.unpack_from(self._map)
        whole, at = memoryview(self._map), HEADER
        parts: list[memoryview] = []
        for size, code in _parts(self.sources, self.capacity):
            parts.append(whole[at : at + size].cast(code))
            at += size
        self._lines, self._next_of, self._marks, self._latencies = self._parts = parts

    @classmethod
    def create(cls, path: Path, *, sources: int, capacity: int) -> Self:
        """Make an empty one."""
        with path.open("xb") as file:
            file.write(_HEADER.pack(sources, capacity, 0, 0))
            file.truncate(HEADER + sum(size for size, _ in _parts(sources, capacity)))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map one that was made before."""
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap it; the file stays. Idempotent."""
        if self._descriptor < 0:
            return
        for part in self._parts:
            part.release()
        self._map.close()
        os.close(self._descriptor)
        self._descriptor = -1

    # Writing

    def enrol(self, member: int) -> Pen:
        """A line for this process, which handles the datagrams of ``member``."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            (before,) = _NUMBER.unpack_from(self._map, _NEXT_OFFSET)
            if before == MAX_PROCESSES:
                raise RuntimeError(f"the ledger has lines for {MAX_PROCESSES} processes")
            _NUMBER.pack_into(self._map, _NEXT_OFFSET, before + 1)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        line = self._lines[before * _COUNTERS : (before + 1) * _COUNTERS]
        line[_MEMBER], line[_PID] = member, os.getpid()
        return Pen(before + 1, line, (self._next_of, self._marks, self._latencies), self.capacity)

    def sentence(self, number: int) -> None:
        """Let a process, if its collector obeys, kill itself with the next datagram that it handles."""
        _NUMBER.pack_into(self._map, _SENTENCED_OFFSET, number)

    # Reading

    @property
    def sentenced(self) -> int:
        """The process that was sentenced last; 0 is none."""
        (number,) = _NUMBER.unpack_from(self._map, _SENTENCED_OFFSET)
        return int(number)

    @property
    def processes(self) -> list[Process]:
        """The processes that enrolled, numbered from 1 in this order."""
        (number,) = _NUMBER.unpack_from(self._map, _NEXT_OFFSET)
        lines = [self._lines[n * _COUNTERS : n * _COUNTERS + _STRAY + 1].tolist() for n in range(number)]
        return [Process(n, *line) for n, line in enumerate(lines, 1)]

    def next_of(self, source: int) -> int:
        """The number after the highest that was handled of a source."""
        number: int = self._next_of[source]
        return number

    def has_reached(self, sent: Mapping[int, int]) -> bool:
        """Whether of each source (number: datagrams sent) the last one was handled."""
        return all(self._next_of[source] >= number for source, number in sent.items())

    def marks(self, source: int, sent: int) -> array[int]:
        """By sequence number, who handled the first ``sent`` datagrams of a source: a process, or 0 for nobody."""
        start = source * self.capacity
        return array("H", self._marks[start : start + sent].tobytes())

    def latencies(self, source: int, sent: int) -> list[int]:
        """Microseconds from sending to handling, of those of the first ``sent`` datagrams that were handled."""
        start = source * self.capacity
        pairs = zip(
            self._marks[start : start + sent].tolist(), self._latencies[start : start + sent].tolist(), strict=True
        )
        return [latency for mark, latency in pairs if mark]


class Pen:
    """Writes one process's part of a ledger; the ledger must stay open."""

    def __init__(
        self, number: int, line: memoryview, parts: tuple[memoryview, memoryview, memoryview], capacity: int
    ) -> None:
        self.number = number
        self._line = line
        self._next_of, self._marks, self._latencies = parts
        self._capacity = capacity

    def mark(self, stamp: Stamp, now_ns: int) -> None:
        """Note that this process handled a datagram at ``now_ns``, nanoseconds since the epoch."""
        line, source, sequence = self._line, stamp.source, stamp.sequence
        if source >= len(self._next_of) or sequence >= self._capacity:
            self.stray()
            return
        place = source * self._capacity + sequence
        if self._marks[place]:
            line[_DUPLICATED] += 1
            return
        self._latencies[place] = max(0, min((now_ns - stamp.sent_ns) // 1000, MAX_LATENCY))
        # From here on it counts as handled, also if the process is killed with the next instruction.
        self._marks[place] = self.number
        line[_HANDLED] += 1
        if sequence < self._next_of[source]:
            line[_REORDERED] += 1
        else:
            self._next_of[source] = sequence + 1

    def stray(self) -> None:
        """Note a datagram that has no place in the ledger."""
        self._line[_STRAY] += 1

    def close(self) -> None:
        """Give the line back; nothing is marked after that."""
        self._line.release()


def _parts(sources: int, capacity: int) -> list[tuple[int, Literal["Q", "H", "I"]]]:
    """Bytes and type of each part: lines of counters, next numbers, marks, latencies."""
    return [
        (MAX_PROCESSES * _COUNTERS * 8, "Q"),
        (sources * 8, "Q"),
        (-(-sources * capacity * 2 // 8) * 8, "H"),
        (sources * capacity * 4, "I"),
    ]
