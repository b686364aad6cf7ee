"""Capture files for tests, made byte by byte: what reads them shall not also have written them."""

from __future__ import annotations

import struct
from fractions import Fraction
from ipaddress import ip_address

ETHERNET, NULL, LOOP, RAW, IPV4, IPV6, SLL, SLL2, WIFI = 1, 0, 108, 101, 228, 229, 113, 276, 105
UDP, TCP = 17, 6
PCAPNG_SECTION, PCAPNG_INTERFACE, PCAPNG_OLD, PCAPNG_SIMPLE, PCAPNG_PACKET = 0x0A0D0D0A, 1, 2, 3, 6


def udp(payload=b"payload", *, port=2055, length=None):
    """A UDP header with its payload."""
    return struct.pack("!HHHH", 40000, port, 8 + len(payload) if length is None else length, 0) + payload


def ipv4(source="10.0.0.1", data=None, *, protocol=UDP, fragment=0, options=b"", length=None):
    """An IPv4 packet; ``fragment`` is the field of flags and offset."""
    data = udp() if data is None else data
    size = 20 + len(options)
    total = size + len(data) if length is None else length
    first = 0x40 | size // 4
    addresses = ip_address(source).packed + ip_address("10.9.9.9").packed
    return struct.pack("!BBHHHBBH", first, 0, total, 1, fragment, 64, protocol, 0) + addresses + options + data


def ipv6(source="2001:db8::1", data=None, *, following=UDP, length=None):
    """An IPv6 packet; ``data`` may begin with extension headers, of which ``following`` names the first."""
    data = udp() if data is None else data
    addresses = ip_address(source).packed + ip_address("2001:db8::99").packed
    return struct.pack("!IHBB", 0x60000000, len(data) if length is None else length, following, 64) + addresses + data


def ethernet(packet, *, kind=None, tags=()):
    """A frame; ``tags`` are pairs of a VLAN protocol and a VLAN number."""
    kind = (0x86DD if packet[0] >> 4 == 6 else 0x0800) if kind is None else kind
    tagged = b"".join(struct.pack("!HH", *tag) for tag in tags)
    return bytes(6) + b"\x02" * 6 + tagged + struct.pack("!H", kind) + packet


def sll(packet):
    """A Linux cooked v1 frame."""
    return struct.pack("!HHH8sH", 0, 1, 6, b"\x02" * 6, 0x86DD if packet[0] >> 4 == 6 else 0x0800) + packet


def sll2(packet):
    """A Linux cooked v2 frame."""
    return struct.pack("!HHIHBB8s", 0x86DD if packet[0] >> 4 == 6 else 0x0800, 0, 3, 1, 0, 6, b"\x02" * 6) + packet


def pcap(frames, *, link=ETHERNET, order="<", nano=False):
    """A pcap file of (seconds, frame) pairs."""
    parts = [struct.pack(order + "IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, 262144, link)]
    for seconds, frame in frames:
        ticks = round(Fraction(seconds) * (10**9 if nano else 10**6))
        header = (*divmod(ticks, 10**9 if nano else 10**6), len(frame), len(frame))
        parts.append(struct.pack(order + "IIII", *header) + frame)
    return b"".join(parts)


def block(kind, body, order="<"):
    """A block of a pcapng file."""
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order="<"):
    """The block that begins a section."""
    return block(PCAPNG_SECTION, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link=ETHERNET, *, order="<", resolution=None, offset=None, snap=0):
    """The block that describes an interface."""
    options = b""
    if resolution is not None:
        options += struct.pack(order + "HHBxxx", 9, 1, resolution)
    if offset is not None:
        options += struct.pack(order + "HHq", 14, 8, offset)
    if options:
        options += struct.pack(order + "HH", 0, 0)
    return block(PCAPNG_INTERFACE, struct.pack(order + "HHI", link, 0, snap) + options, order)


def packet(ticks, frame, *, number=0, order="<", kind=PCAPNG_PACKET):
    """The block of one packet."""
    first = struct.pack(order + "HH", number, 0) if kind == PCAPNG_OLD else struct.pack(order + "I", number)
    times = struct.pack(order + "IIII", ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return block(kind, first + times + frame, order)


def simple(frame, *, order="<"):
    """The block of a packet without a time."""
    return block(PCAPNG_SIMPLE, struct.pack(order + "I", len(frame)) + frame, order)
