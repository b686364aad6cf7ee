"""How many sources there are, and which send most, in bounded memory; pure."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from heapq import nlargest
from typing import Self

from aiolb.address import IPAddress, canonical

EXACT = 512
"""Sources up to which a member's are counted exactly; by then two of them have the same mark once in 30,000 times."""
SURE = 4096
"""Sources up to which those of several members are called exact; by then two have the same mark once in 500 times."""
REGISTERS = 2048
"""One byte each; the standard error of an estimate is 1.04 / sqrt(2048), 2.3 %."""
SIZE = REGISTERS
"""Bytes of a sketch that is written down: so many registers, or EXACT marks of four bytes."""
MOST = 256
"""Sources whose datagrams are counted one by one."""

_INDEX_BITS = 11
_RANK_BITS = 32 - _INDEX_BITS
_MASK = (1 << 64) - 1
_WORDS = struct.Struct("<QQ")
_MAPPED = bytes(10) + b"\xff\xff"
_ALPHA = 0.7213 / (1 + 1.079 / REGISTERS)


def packed(source: IPAddress) -> bytes:
    """The 16 bytes of a source; IPv4 as ::ffff:a.b.c.d."""
    source = canonical(source)
    return _MAPPED + source.packed if source.version == 4 else source.packed  # noqa: PLR2004 - the IP version


def mark(source: bytes) -> int:
    """32 bits that stand for a source (its 16 bytes), never 0; the compiled receiver has a twin of this.

    Hashed with the finalizer of SplitMix64. Whoever chooses sources for it can make a count wrong, and nothing else.
    """
    low, high = _WORDS.unpack(source)
    return _mix(_mix(low) ^ high) >> 32 or 1


def _mix(value: int) -> int:
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


@dataclass(frozen=True, slots=True)
class Sketch:
    """Which sources there are: the ``marks`` of all while they are few, else None and the ``registers``.

    The registers are those of HyperLogLog (Flajolet, Fusy, Gandouet, Meunier, 2007); marks can be turned into them.
    """

    marks: frozenset[int] | None = frozenset()
    registers: bytes = b""

    @classmethod
    def of(cls, sources: Iterable[IPAddress]) -> Self:
        """A sketch of these sources."""
        return cls(frozenset(mark(packed(source)) for source in sources)).fitted()

    @property
    def exact(self) -> bool:
        """Whether ``count`` is."""
        return self.marks is not None and len(self.marks) <= SURE

    @property
    def count(self) -> int:
        """How many sources there are; about, unless it is exact."""
        return _estimate(self.registers) if self.marks is None else len(self.marks)

    def fitted(self) -> Self:
        """The same without its marks when there are more than EXACT."""
        if self.marks is None or len(self.marks) <= EXACT:
            return self
        return type(self)(None, _registers_of(self.marks))

    def to_bytes(self) -> bytes:
        """SIZE bytes of one that is fitted; how many marks are in it must be kept beside it."""
        if self.marks is None:
            return self.registers
        return struct.pack(f"={len(self.marks)}I", *sorted(self.marks)).ljust(SIZE, b"\0")

    @classmethod
    def from_bytes(cls, value: bytes, marks: int) -> Self:
        """What ``to_bytes`` wrote, with so many marks; 0 is a sketch of no source, or of more than EXACT."""
        if marks or not any(value):
            return cls(frozenset(struct.unpack_from(f"={min(marks, EXACT)}I", value)))
        return cls(None, value)


def union(*sketches: Sketch) -> Sketch:
    """The sketch of all sources that are in one of the sketches; it counts exactly if all of them do."""
    marks = [one.marks for one in sketches if one.marks is not None]
    few = frozenset[int]().union(*marks)
    if len(marks) == len(sketches):
        return Sketch(few)
    many = [one.registers for one in sketches if one.marks is None]
    if few:
        many.append(_registers_of(few))
    return Sketch(None, bytes(map(max, *many)) if len(many) > 1 else many[0])


def _registers_of(marks: Iterable[int]) -> bytes:
    registers = bytearray(REGISTERS)
    for one in marks:
        note(registers, one)
    return bytes(registers)


def note(registers: bytearray, one: int) -> None:
    """Add the source with this mark to registers; the compiled receiver has a twin of this."""
    index, rest = one & (REGISTERS - 1), one >> _INDEX_BITS
    registers[index] = max(registers[index], _RANK_BITS + 1 - rest.bit_length())


def _estimate(registers: bytes) -> int:
    """How many sources were noted, about; 0 only when none was."""
    empty = registers.count(0)
    ranks = ((rank, registers.count(rank)) for rank in range(_RANK_BITS + 2))
    raw = _ALPHA * REGISTERS**2 / sum(number * 2.0**-rank for rank, number in ranks)
    if raw <= 2.5 * REGISTERS and empty:
        raw = REGISTERS * math.log(REGISTERS / empty)
    return round(raw)


class TopSources:
    """Counts datagrams per source, exactly up to MOST sources, and keeps those that send most beyond.

    A count is never above the truth, and below it by at most ``error``, which is at most 1 / (MOST + 1) of all that
    was counted, plus what was not told of. A frequent-items summary (Misra, Gries, 1982) that takes many at once
    (Agarwal et al., Mergeable summaries, 2012).
    """

    def __init__(self, counts: Mapping[str, int] | None = None, error: int = 0) -> None:
        self._counts: Counter[str] = Counter(counts or {})
        self.error = error

    def add(self, counts: Mapping[str, int], missed: int = 0) -> None:
        """Count more datagrams by source, and ``missed`` ones whose sources nobody knows."""
        self.error += missed
        self._counts.update(counts)
        if len(self._counts) > MOST:
            cut = self._counts.most_common(MOST + 1)[-1][1]
            self._counts = Counter({source: count - cut for source, count in self._counts.items() if count > cut})
            self.error += cut

    def busiest(self, recent: Mapping[str, int], number: int) -> list[tuple[str, int, int]]:
        """The sources that sent most ``recent`` datagrams, then those that sent most; what each sent, and recently."""

        def busy(source: str) -> tuple[int, int]:
            return recent.get(source, 0), self._counts[source]

        found = nlargest(number, self._counts.keys() | recent.keys(), key=busy)
        return [(source, max(self._counts[source], recent.get(source, 0)), recent.get(source, 0)) for source in found]

    def most_without(self, sources: Container[str]) -> int:
        """What another source than these sent at most, but for ``error``."""
        return max((count for source, count in self._counts.items() if source not in sources), default=0)
