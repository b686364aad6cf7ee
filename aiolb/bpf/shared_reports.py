"""What the members of a group tell of themselves, in memory that all processes map which may open the group."""

from __future__ import annotations

import mmap
import os
import struct
from typing import Self

from aiolb.bpf.abi import MAX_MEMBERS, Report

_SIZE = Report.STRUCT.size
_WRITER = struct.Struct("=8xQQ8xQ")  # cookie, pid, started_ns
_READS = 8  # a write takes microseconds, and the next one comes a quarter of a second later


class SharedReports:
    """The map ``reports``, or memory like it: one entry for each member, written by that member without a system call.

    A reader never sees half of an entry: its checksum would not be right.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @staticmethod
    def make_descriptor() -> int:
        """The same without a group, empty, for processes that inherit it; it is the caller's to close. Raises OSError.

        What nobody has written to takes no memory.
        """
        descriptor = os.memfd_create("aiolb-reports")
        os.truncate(descriptor, _SIZE * MAX_MEMBERS)
        return descriptor

    @classmethod
    def inherited(cls, descriptor: int) -> Self:
        """Map a descriptor of the map, which stays the caller's to close; ``close()`` ends that. Raises OSError."""
        return cls(mmap.mmap(descriptor, _SIZE * MAX_MEMBERS))

    def read(self, index: int) -> Report | None:
        """What member ``index`` told last; None when nobody has, or who did was killed while it wrote.

        Compare its cookie with that of the member's socket: the entry of a member that is dead stays.
        """
        for _ in range(_READS):
            value = self._memory[index * _SIZE : (index + 1) * _SIZE]
            if Report.is_whole(value):
                report = Report.unpack(value)
                return report if report.cookie else None
        return None

    def write(self, index: int, report: Report) -> None:
        """Tell it; one process at a time may write an entry."""
        self._memory[index * _SIZE : (index + 1) * _SIZE] = report.pack()

    def is_of(self, index: int, report: Report) -> bool:
        """Whether entry ``index`` is about the same socket as ``report``, and from the same process."""
        start = index * _SIZE
        found = _WRITER.unpack_from(self._memory[start : start + _WRITER.size])
        return bool(found == (report.cookie, report.pid, report.started_ns))

    def close(self) -> None:
        """Unmap the memory. Idempotent."""
        self._memory.close()
