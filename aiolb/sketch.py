"""How many sources there are, and which send most, in bounded memory; pure."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from heapq import nlargest

from aiolb.address import IPAddress, canonical

REGISTERS = 1024
"""One byte each; the standard error of an estimate is 1.04 / sqrt(1024), 3.3 %, and less below 1,000 sources."""
MOST = 256
"""Sources whose datagrams are counted one by one."""

_INDEX_BITS = 10
_MASK = (1 << 64) - 1
_WORDS = struct.Struct("<QQ")
_MAPPED = bytes(10) + b"\xff\xff"
_ALPHA = 0.7213 / (1 + 1.079 / REGISTERS)


def packed(source: IPAddress) -> bytes:
    """The 16 bytes of a source; IPv4 as ::ffff:a.b.c.d."""
    source = canonical(source)
    return _MAPPED + source.packed if source.version == 4 else source.packed  # noqa: PLR2004 - the IP version


def note(registers: bytearray, source: bytes) -> None:
    """Add a source (its 16 bytes) to a sketch; the compiled receiver has a twin of this.

    HyperLogLog (Flajolet, Fusy, Gandouet, Meunier, 2007), hashed with the finalizer of SplitMix64. Whoever chooses
    sources for it can make an estimate wrong, and nothing else.
    """
    low, high = _WORDS.unpack(source)
    value = _mix(_mix(low) ^ high)
    index, rest = value & (REGISTERS - 1), value >> _INDEX_BITS
    rank = 64 - _INDEX_BITS + 1 - rest.bit_length()
    registers[index] = max(registers[index], rank)


def _mix(value: int) -> int:
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def union(*sketches: bytes) -> bytes:
    """The sketch of all sources that are in one of the sketches."""
    filled = [sketch for sketch in sketches if any(sketch)]
    if len(filled) > 1:
        return bytes(map(max, *filled))
    return bytes(filled[0]) if filled else bytes(REGISTERS)


def estimate(registers: bytes) -> int:
    """How many sources were noted, about; 0 only when none was."""
    empty = registers.count(0)
    raw = _ALPHA * REGISTERS**2 / sum(2.0**-rank for rank in registers)
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

    @property
    def sources(self) -> int:
        """How many there are, exactly; 0 when some were not kept."""
        return 0 if self.error else len(self._counts)

    def busiest(self, recent: Mapping[str, int], number: int) -> list[tuple[str, int, int]]:
        """The sources that sent most ``recent`` datagrams, then those that sent most; what each sent, and recently."""

        def busy(source: str) -> tuple[int, int]:
            return recent.get(source, 0), self._counts[source]

        found = nlargest(number, self._counts.keys() | recent.keys(), key=busy)
        return [(source, max(self._counts[source], recent.get(source, 0)), recent.get(source, 0)) for source in found]

    def most_without(self, sources: Container[str]) -> int:
        """What another source than these sent at most, but for ``error``."""
        return max((count for source, count in self._counts.items() if source not in sources), default=0)


def sketch_of(sources: Iterable[IPAddress]) -> bytes:
    """A sketch of these sources."""
    registers = bytearray(REGISTERS)
    for source in sources:
        note(registers, packed(source))
    return bytes(registers)
