"""The datagrams of a capture file (pcap or pcapng), one packet at a time; what is none of them has a reason."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aiolb.errors import CaptureError, ConfigurationError

if TYPE_CHECKING:
    from aiolb.frames import Datagram

LONGEST_RECORD = 1 << 24
"""Bytes; a longer record is none, but a broken file. libpcap's limit for a block of a pcapng file."""

_PCAPNG = b"\x0a\x0d\x0d\x0a"
_GZIP = b"\x1f\x8b"
_PCAP = {
    bytes.fromhex(magic)
    for magic in ("a1b2c3d4", "a1b23c4d", "a1b2cd34", "d4c3b2a1", "4d3cb2a1", "34cdb2a1")  # pcap-savefile(5)
}
_LINK_TYPE = 0xFFFF  # the upper bits tell of the frame check sequence (pcap-savefile(5))
_MICROSECONDS = 1e6


class Packet(NamedTuple):
    """One packet of a capture: when it was recorded, in seconds since 1970, and its datagram.

    ``recorded`` is None where the file does not tell. In place of a datagram stands the reason why there is none.
    """

    recorded: float | None
    datagram: Datagram | str


def check_capture(file: Path) -> None:
    """Find out before the start that a file is missing or no capture, or that dpkt is. Raises ConfigurationError."""
    try:
        import dpkt  # noqa: F401 - whether it is there
    except ImportError:
        raise ConfigurationError("--replay needs the package dpkt", hint="pip install dpkt") from None
    with open_capture(file) as opened:
        _check_start(file, opened.peek(4)[:4])


def open_capture(file: Path) -> BufferedReader:
    """Open a capture, which the caller closes. Raises ConfigurationError."""
    try:
        if file.exists() and not file.is_file():
            raise ConfigurationError(f"{file} is no regular file", hint="--replay reads a capture from a file")
        return file.open("rb")
    except OSError as error:
        raise ConfigurationError(f"cannot read the capture {file}: {error.strerror}") from None


def _check_start(file: Path, start: bytes) -> None:
    if start in _PCAP or start == _PCAPNG:
        return
    if not start:
        raise ConfigurationError(f"the capture {file} is empty")
    if start[:2] == _GZIP:
        raise ConfigurationError(f"the capture {file} is compressed", hint=f"gunzip --keep {file}")
    raise ConfigurationError(f"{file} is no capture: it starts with {start!r}", hint="give a pcap or pcapng file")


def read_packets(file: BufferedReader) -> Iterator[Packet]:
    """The packets of a capture in the order of the file, of which it holds one at a time.

    Raises CaptureError where the file is broken or ends within a packet, after the packets before that.
    """
    whole = _Whole(file)
    packets = _pcapng(whole) if file.peek(4)[:4] == _PCAPNG else _pcap(whole)
    number = 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except _BrokenError as error:
            raise CaptureError(f"the capture {file.name} {error} after {number:,} packets") from None
        number += 1
        yield packet


class _BrokenError(Exception):
    """What is wrong with the file."""


class _Whole:
    """A file that is read by whole records: dpkt would take the half of one for all of it."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.name = file.name

    def ended(self) -> bool:
        return not self._file.peek(1)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_RECORD:
            raise _BrokenError(f"is broken: a record of {size:,} bytes comes")
        data = self._file.read(size)
        if len(data) < size:
            raise _BrokenError("is cut off: it ends")
        return data


def _pcap(file: _Whole) -> Iterator[Packet]:
    from dpkt import pcap

    from aiolb.frames import datagram_of

    reader: Any = pcap.Reader(file)
    link_type = reader.datalink() & _LINK_TYPE
    while not file.ended():
        recorded, frame = next(reader)
        yield Packet(float(recorded), datagram_of(link_type, frame))


def _pcapng(file: _Whole) -> Iterator[Packet]:
    """Walk over the blocks: the reader of dpkt knows the first interface of a file only.

    Source: draft-ietf-opsawg-pcapng.
    """
    from dpkt import pcapng

    section = _Section("<")
    while not file.ended():
        start = file.read(8)
        if start[:4] == _PCAPNG:
            start += file.read(4)
            section = _Section(_byte_order(start[8:]))
        kind, length = section.unpack("II", start)
        if length < len(start) + 4 or length % 4:
            raise _BrokenError(f"is broken: a block of {length:,} bytes comes")
        block = start + file.read(length - len(start))
        if kind == pcapng.PCAPNG_BT_IDB:
            section.add_interface(block)
        elif kind in (pcapng.PCAPNG_BT_EPB, pcapng.PCAPNG_BT_PB):
            yield section.packet(block, kind)
        elif kind == pcapng.PCAPNG_BT_SPB:
            yield section.simple_packet(block)


def _byte_order(magic: bytes) -> str:
    orders = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}
    if magic not in orders:
        raise _BrokenError(f"is broken: a section that starts with {magic!r} comes")
    return orders[magic]


class _Interface(NamedTuple):
    """What an interface description block tells of the packets that name it."""

    link_type: int
    snap_length: int
    ticks: float
    offset: int

    def packet(self, recorded: float | None, frame: bytes) -> Packet:
        from aiolb.frames import datagram_of

        return Packet(recorded, datagram_of(self.link_type, frame))


class _Section:
    """A section of a pcapng file: its byte order, and its interfaces."""

    def __init__(self, order: str) -> None:
        self._order = order
        self._interfaces: list[_Interface] = []

    def unpack(self, layout: str, block: bytes) -> tuple[Any, ...]:
        return struct.unpack_from(self._order + layout, block)

    def add_interface(self, block: bytes) -> None:
        from dpkt import dpkt, pcapng

        kind = pcapng.InterfaceDescriptionBlockLE if self._order == "<" else pcapng.InterfaceDescriptionBlock
        try:
            description = kind(block)
        except (dpkt.Error, ValueError, struct.error):
            raise _BrokenError("is broken: an interface that cannot be read comes") from None
        options = {option.code: option.data for option in description.opts}
        ticks = _ticks(options.get(pcapng.PCAPNG_OPT_IF_TSRESOL, b""))
        offset = options.get(pcapng.PCAPNG_OPT_IF_TSOFFSET, b"")
        seconds = self.unpack("q", offset)[0] if len(offset) == 8 else 0  # noqa: PLR2004 - 64 bits
        self._interfaces.append(_Interface(description.linktype, description.snaplen, ticks, seconds))

    def packet(self, block: bytes, kind: int) -> Packet:
        from dpkt import pcapng

        # The old kind has 16 bits of interface, and 16 bits of drops.
        number = self._fixed("8xH" if kind == pcapng.PCAPNG_BT_PB else "8xI", block, 28)[0]
        high, low, length = self._fixed("12xIII", block, 28)
        interface = self._interface(number)
        recorded = interface.offset + ((high << 32) + low) / interface.ticks
        return interface.packet(recorded, _cut(block, 28, length))

    def simple_packet(self, block: bytes) -> Packet:
        """It has neither a time nor an interface: the interface is the first."""
        length = self._fixed("8xI", block, 12)[0]
        interface = self._interface(0)
        if interface.snap_length:
            length = min(length, interface.snap_length)
        return interface.packet(None, _cut(block, 12, length))

    def _fixed(self, layout: str, block: bytes, size: int) -> tuple[Any, ...]:
        if len(block) < size + 4:
            raise _BrokenError(f"is broken: a packet in a block of {len(block)} bytes comes")
        return self.unpack(layout, block)

    def _interface(self, number: int) -> _Interface:
        if number >= len(self._interfaces):
            raise _BrokenError(f"is broken: a packet of interface {number}, which it does not describe, comes")
        return self._interfaces[number]


def _ticks(resolution: bytes) -> float:
    """Ticks of the clock in a second: a power of 10, or with the highest bit one of 2."""
    if len(resolution) != 1:
        return _MICROSECONDS
    return float((2 if resolution[0] & 0x80 else 10) ** (resolution[0] & 0x7F))


def _cut(block: bytes, start: int, length: int) -> bytes:
    if length > len(block) - start - 4:
        raise _BrokenError(f"is broken: a packet of {length:,} bytes in a block of {len(block):,} comes")
    return block[start : start + length]
