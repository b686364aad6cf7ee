"""What the report of a member tells of its sources, and the words that hold it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address

from aiolb.address import IPAddress, canonical
from aiolb.bpf.abi import SKETCH_WORDS, TOP_WORDS, Report
from aiolb.sketch import Sketch, packed

_SKETCH = struct.Struct(f"={SKETCH_WORDS}Q")
_TOP = struct.Struct(f"={TOP_WORDS}Q")
_ENTRY = struct.Struct("=16sQQ")


@dataclass(frozen=True, slots=True)
class TopSource:
    """One of the sources that send most to a member.

    ``received`` datagrams since the socket joined, at most the report's ``top_error`` too low; ``rate`` of them a
    second, about a second ago, and 0 when the collector tells nothing any more. Neither is ever too high.
    """

    source: IPAddress
    received: int
    rate: float


def top_of(report: Report) -> list[TopSource]:
    """The sources that send most, the busiest first."""
    entries = _ENTRY.iter_unpack(_TOP.pack(*report.top))
    return [
        TopSource(canonical(IPv6Address(source)), received, rate / 1000)
        for source, received, rate in entries
        if received
    ]


def top_words(top: Iterable[tuple[IPAddress, int, int]]) -> tuple[int, ...]:
    """What ``top_of`` reads: TOP_SOURCES at most, each with its datagrams and with thousandths of one a second."""
    entries = b"".join(_ENTRY.pack(packed(source), received, rate) for source, received, rate in top)
    return _TOP.unpack(entries.ljust(_TOP.size, b"\0"))


def sketch_of(report: Report) -> Sketch:
    """All sources."""
    return Sketch.from_bytes(_SKETCH.pack(*report.sketch), report.sources)


def sketch_words(sketch: Sketch) -> tuple[int, ...]:
    """What ``sketch_of`` reads, of a sketch that is fitted; how many marks it has is the report's ``sources``."""
    return _SKETCH.unpack(sketch.to_bytes())
