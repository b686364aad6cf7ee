"""A captured frame to the datagram in it, or the reason why there is none; pure, over dpkt."""

from __future__ import annotations

import struct
from typing import Any, ClassVar, NamedTuple

from dpkt import dpkt, ethernet, ip, ip6, udp

NOT_IP = "not IP"
NOT_UDP = "not UDP"
FRAGMENT = "fragments"
CUT_SHORT = "cut short"
MALFORMED = "malformed"
OTHER_LINK = "of an unknown link type"
"""The reasons, as they read behind a number."""

_ETHERNET, _SLL, _SLL2 = 1, 113, 276  # https://www.tcpdump.org/linktypes.html
_WITH_FAMILY = {0, 108}  # NULL, LOOP: four bytes before the IP header
_RAW = {12, 14, 101, 228, 229}  # RAW on the BSDs and on OpenBSD, RAW, IPV4, IPV6
LINK_TYPES = frozenset({_ETHERNET, _SLL, _SLL2, *_WITH_FAMILY, *_RAW})
"""Link types that are understood: Ethernet, Linux cooked v1 and v2, loopback, raw IP."""

_NO_ADDRESSES = bytes(12)
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, section 2.5.5.2
_UDP_HEADER = 8

# dpkt decodes all it can, and may fail in what nobody wants to know: these decode the way to UDP alone.
_WANTED = {ip.IP_PROTO_UDP: udp.UDP}


class _Ip4(ip.IP):  # type: ignore[misc] # dpkt has no types
    _protosw: ClassVar = _WANTED


class _Ip6(ip6.IP6):  # type: ignore[misc] # dpkt has no types
    _protosw: ClassVar = _WANTED


class _Ethernet(ethernet.Ethernet):  # type: ignore[misc] # dpkt has no types
    _typesw: ClassVar = {ethernet.ETH_TYPE_IP: _Ip4, ethernet.ETH_TYPE_IP6: _Ip6}


class Datagram(NamedTuple):
    """A UDP payload, the packed address of its source (IPv4-mapped counts as IPv4), and the port it went to."""

    source: bytes
    port: int
    payload: bytes


def datagram_of(link_type: int, frame: bytes) -> Datagram | str:
    """The datagram in a frame of this link type, or the reason why there is none."""
    if link_type not in LINK_TYPES:
        return OTHER_LINK
    try:
        packet = _packet_of(link_type, frame)
        return NOT_IP if packet is None else _datagram_of(packet)
    except dpkt.NeedData:
        return CUT_SHORT
    except (dpkt.Error, struct.error, LookupError, AttributeError, TypeError, ValueError):
        return MALFORMED  # dpkt trusts lengths within a packet, such as those of IPv6 extension headers


def _packet_of(link_type: int, frame: bytes) -> Any:
    """The IP packet in a frame; None when there is none."""
    if link_type in _RAW:
        return _ip(frame)
    if link_type in _WITH_FAMILY:  # the number for IPv6 differs among systems: let the packet tell
        return _ip(frame[4:])
    # What follows the protocol in a cooked header is what follows it on Ethernet: VLAN tags, too.
    if link_type == _SLL:
        frame = _NO_ADDRESSES + frame[14:]
    elif link_type == _SLL2:
        frame = _NO_ADDRESSES + frame[:2] + frame[20:]
    return _inside(_Ethernet(frame))


def _ip(packet: bytes) -> Any:
    if not packet:
        raise dpkt.NeedData
    decode = {4: _Ip4, 6: _Ip6}.get(packet[0] >> 4)
    return decode and decode(packet)


def _inside(frame: Any) -> Any:
    """The IP packet in a frame; where dpkt could not decode it, it left bytes, and did not say why."""
    if isinstance(frame.data, _Ip4 | _Ip6):
        return frame.data
    tags = getattr(frame, "vlan_tags", None)
    kind = tags[-1].type if tags else frame.type
    return _ip(frame.data) if kind in (ethernet.ETH_TYPE_IP, ethernet.ETH_TYPE_IP6) else None


def _datagram_of(packet: Any) -> Datagram | str:
    if getattr(packet, "p", None) != ip.IP_PROTO_UDP:  # an encrypted IPv6 packet tells none
        return NOT_UDP
    if _is_fragment(packet):
        return FRAGMENT
    if not isinstance(packet.data, udp.UDP):
        return CUT_SHORT  # too short for the header
    length = packet.data.ulen or _UDP_HEADER + len(packet.data.data)  # 0: a jumbogram (RFC 2675)
    if length < _UDP_HEADER:
        return MALFORMED
    payload = bytes(packet.data.data[: length - _UDP_HEADER])
    if len(payload) < length - _UDP_HEADER:
        return CUT_SHORT
    return Datagram(packet.src.removeprefix(_MAPPED), packet.data.dport, payload)


def _is_fragment(packet: Any) -> bool:
    """Whether it is a part of a packet; an IPv6 one whose only part is itself is whole (RFC 6946)."""
    if isinstance(packet, _Ip4):
        return bool(packet.mf or packet.offset)
    header = packet.extension_hdrs.get(ip.IP_PROTO_FRAGMENT)
    return header is not None and bool(header.m_flag or header.frag_off)
